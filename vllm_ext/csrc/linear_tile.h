/* How linear.c multiplies a tile, for one element. Included once for each, with
     NAME(x)                      x under a name of its own
     TARGET                       the attribute that says for which processors
     X_PER_STEP                   float32 of x, or what takes as much room, in a step of depth
     PLUS_PRODUCT(sum, w, v, x)   sum number v of a row, and what a step adds to it: w the weights, x the row

   A step reads as many bytes of weights in each element: those for one number of a row in float32, for two in others. So
   all elements are the same to what counts steps, and to the caches. */

/* Something is fetched EACH_STEP of depth, SELDOM, or NEVER. */
static inline __attribute__((always_inline)) TARGET void NAME(multiply_rows)(tile t, int rows, int fetches)
{
    vector sums[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = t.start ? (vector) * (const unaligned *)(t.start + r * t.start_stride + v * LANES) : (vector){0};
    for (int64_t begin = 0, end; begin < t.depth; begin = end) {
        end = fetches == SELDOM && begin + STEPS < t.depth ? begin + STEPS : t.depth;
        for (int64_t line = 0; fetches == SELDOM && line < t.lines; line++)
            __builtin_prefetch(t.ahead + (begin / STEPS * t.lines + line) * LANES, 0, 2);
        for (int64_t i = begin; i < end; i++) {
            const vector *weights = (const vector *)(t.panel + i * WIDTH);
            if (fetches == EACH_STEP) {
                __builtin_prefetch(t.ahead + i * t.lines * LANES, 0, 2);
                if (t.lines == VECTORS)
                    __builtin_prefetch(t.ahead + i * WIDTH + LANES, 0, 2);
            }
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++)
                    sums[r][v] = PLUS_PRODUCT(sums[r][v], weights, v, (t.x + r * t.x_stride + i * X_PER_STEP));
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++)
            *(unaligned *)(t.out + r * t.out_stride + v * LANES) = sums[r][v];
}

#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        if (fetches == SELDOM)                                                                                         \
            NAME(multiply_rows)(t, n, SELDOM);                                                                         \
        else if (fetches == EACH_STEP)                                                                                 \
            NAME(multiply_rows)(t, n, EACH_STEP);                                                                      \
        else                                                                                                           \
            NAME(multiply_rows)(t, n, NEVER);                                                                          \
        break;

/* With a number of rows that the compiler knows, the sums are registers. */
TARGET static void NAME(multiply_tile)(tile t, int64_t rows, int fetches)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
}

#undef CASE
#undef NAME
#undef TARGET
#undef X_PER_STEP
#undef PLUS_PRODUCT
