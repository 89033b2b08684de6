/* How a tile is multiplied, for one element on one generation of processors. Included by linear_elements.h with what it
   has defined itself, and
     NAME(x)                         x under a name of its own
     BUILD                           the attribute that says for which processors
     X_PER_STEP                      float32 of x, or what takes as much room, in a step of depth
     PLUS_PRODUCT(sum, w, v, i, x)   sum number v of a row, and what its number i of a step adds to it: w the weights

   A step reads as many bytes of weights in each element: those for one number of a row in float32, for two in others. So
   all elements are the same to what counts steps, and to the caches. */

/* Something is fetched EACH_STEP of depth, or SELDOM. */
static inline __attribute__((always_inline)) BUILD void NAME(multiply_rows)(const tile *whole, int rows, int fetches)
{
    tile t = *whole;
    OF(vector) sums[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = t.start ? (OF(vector)) * (const OF(unaligned) *)(t.start + r * t.start_stride + v * LANES)
                                 : (OF(vector)){0};
    for (int64_t begin = 0, end; begin < t.depth; begin = end) {
        end = fetches == SELDOM && begin + STEPS < t.depth ? begin + STEPS : t.depth;
        for (int64_t line = 0; fetches == SELDOM && line < t.lines; line++)
            __builtin_prefetch(t.ahead + (begin / STEPS * t.lines + line) * LINE, 0, 2);
        for (int64_t step = begin; step < end; step++) {
            const OF(vector) *weights = (const OF(vector) *)(t.panel + step * WIDTH);
            if (fetches == EACH_STEP) {
                __builtin_prefetch(t.ahead + step * t.lines * LINE, 0, 2);
                if (WIDTH > LINE && t.lines * LINE == WIDTH)
                    __builtin_prefetch(t.ahead + step * WIDTH + LINE, 0, 2);
            }
#pragma GCC unroll 2
            for (int i = 0; i < X_PER_STEP; i++)
#pragma GCC unroll 12
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; v++)
                        sums[r][v] = PLUS_PRODUCT(sums[r][v], weights, v, i, t.x[r * t.x_stride + step * X_PER_STEP + i]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++)
            *(OF(unaligned) *)(t.out + r * t.out_stride + v * LANES) = sums[r][v];
}

#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        if (fetches == SELDOM)                                                                                         \
            NAME(multiply_rows)(t, n, SELDOM);                                                                         \
        else                                                                                                           \
            NAME(multiply_rows)(t, n, EACH_STEP);                                                                      \
        break;

/* With a number of rows that the compiler knows, the sums are registers. */
BUILD static void NAME(multiply_tile)(const tile *t, int64_t rows, int fetches)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}

#undef CASE
#undef NAME
#undef BUILD
#undef X_PER_STEP
#undef PLUS_PRODUCT
