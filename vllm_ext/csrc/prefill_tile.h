/* How prefill.c computes a tile, for one generation of processors. Included once for each, with
     NAME(x)    x under a name of its own
     TARGET     the attribute that says for which
     LANES      numbers in a vector

   LANES query rows are a panel: queries, scores and sums lie with the row last, [.., LANES]. So keys and values are
   multiplied as the cache has them, one number of theirs with a vector of rows, and the softmax goes through all rows of
   a panel at once. ROWS keys, or ROWS of the numbers in a head, are multiplied together: that many sums stay in
   registers, in all generations. */
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef float NAME(unaligned) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t NAME(numbers) __attribute__((vector_size(4 * LANES)));

/* A panel of query rows, and what was summed up for it. */
typedef struct {
    NAME(vector) top, total, *queries, *sums; /* [size] */
    int32_t positions[LANES];
    int begun; /* else sums are yet to be written */
} NAME(panel);

/* out[r] = sum over i < depth of x[r * row_stride + i * stride] * panel[i]; with factors, what was there times these is
   added. */
INLINE void NAME(multiply_rows)(NAME(vector) *out, const float *x, int64_t row_stride, int64_t stride,
                                const NAME(vector) *panel, int64_t depth, const NAME(vector) *factors, int rows)
{
    NAME(vector) sums[ROWS];
    for (int r = 0; r < rows; r++)
        sums[r] = factors ? out[r] * *factors : (NAME(vector)){0};
    /* One address for four rows, which the compiler may not replace by one for each: there are not that many registers
       for addresses. */
    const float *fours[ROWS / 4] = {x, x + 4 * row_stride, x + 8 * row_stride};
    for (int64_t i = 0; i < depth; i++) {
        NAME(vector) line = panel[i];
        __asm__("" : "+r"(fours[0]), "+r"(fours[1]), "+r"(fours[2]));
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
            sums[r] += fours[r / 4][r % 4 * row_stride] * line;
#pragma GCC unroll 4
        for (int f = 0; f < ROWS / 4; f++)
            fours[f] += stride;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        out[r] = sums[r];
}

#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        NAME(multiply_rows)(out, x, row_stride, stride, panel, depth, factors, n);                                     \
        break;

/* With a number of rows that the compiler knows, the sums are registers. */
INLINE void NAME(multiply)(NAME(vector) *out, const float *x, int64_t row_stride, int64_t stride,
                           const NAME(vector) *panel, int64_t depth, const NAME(vector) *factors, int64_t rows)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
}
#undef CASE

/* Rows are spread evenly: 8 + 8 are faster than 12 + 4. */
INLINE void NAME(score)(NAME(vector) *scores, const float *keys, const NAME(vector) *queries, int64_t count,
                        int64_t size)
{
    int64_t parts = (count + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < parts; i++) {
        int64_t k = count * i / parts, next = count * (i + 1) / parts;
        NAME(multiply)(scores + k, keys + k * 2 * size, 2 * size, 1, queries, size, NULL, next - k);
    }
}

INLINE void NAME(accumulate)(NAME(vector) *sums, const NAME(vector) *factors, const float *values,
                             const NAME(vector) *weights, int64_t count, int64_t size)
{
    int64_t parts = (size + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < parts; i++) {
        int64_t d = size * i / parts, next = size * (i + 1) / parts;
        NAME(multiply)(sums + d, values + d, 1, 2 * size, weights, count, factors, next - d);
    }
}

/* Gives LOWEST to keys that a row does not see: those after it, or with a window, those that far before it. */
INLINE void NAME(hide)(NAME(vector) *scores, const int32_t *restrict positions, int64_t first, int64_t count,
                       int64_t window)
{
    float *restrict score = (float *)scores;
    for (int64_t k = 0; k < count; k++, score += LANES) {
        int32_t key = (int32_t)(first + k);
        for (int j = 0; j < LANES; j++) {
            int hidden = window ? key <= positions[j] - (int32_t)window : key > positions[j];
            score[j] = hidden ? LOWEST : score[j];
        }
    }
}

INLINE NAME(vector) NAME(higher)(NAME(vector) a, NAME(vector) b)
{
    for (int j = 0; j < LANES; j++)
        a[j] = a[j] > b[j] ? a[j] : b[j];
    return a;
}

INLINE NAME(vector) NAME(powers_of_2)(NAME(vector) x)
{
    for (int j = 0; j < LANES; j++)
        x[j] = power_of_2(x[j]);
    return x;
}

/* Scores to weights, against the highest score so far; what was summed up before has to be multiplied by the result. */
INLINE NAME(vector) NAME(weigh)(NAME(vector) *scores, int64_t count, NAME(panel) *p)
{
    NAME(vector) high = p->top, sum = {0};
    for (int64_t k = 0; k < count; k++)
        high = NAME(higher)(scores[k], high);
    for (int64_t k = 0; k < count; k++) {
        scores[k] = NAME(powers_of_2)(scores[k] - high);
        sum += scores[k];
    }
    NAME(vector) factors = NAME(powers_of_2)(p->top - high);
    p->total = p->total * factors + sum;
    p->top = high;
    return factors;
}

/* Keys [first, first + count) and their values, at `content`, for a panel whose rows see some of them. */
TARGET static void NAME(attend_panel)(NAME(panel) *p, tile t, const float *content, int64_t first, int64_t count)
{
    NAME(vector) scores[SPAN];
    int64_t low = p->positions[0], high = p->positions[LANES - 1];
    int64_t begin = t.window > 0 && low - t.window >= first ? low - t.window + 1 - first : 0;
    int64_t end = high + 1 - first < count ? high + 1 - first : count;
    if (begin >= end)
        return;
    content += begin * 2 * t.size, first += begin, count = end - begin;
    NAME(score)(scores, content, p->queries, count, t.size);
    if (t.cap > 0)
        for (int64_t i = 0; i < count * LANES; i++)
            ((float *)scores)[i] = t.cap * tanhf(((float *)scores)[i]);
    if (first + count - 1 > low)
        NAME(hide)(scores, p->positions, first, count, 0);
    if (t.window > 0 && first <= high - t.window)
        NAME(hide)(scores, p->positions, first, count, t.window);
    NAME(vector) factors = NAME(weigh)(scores, count, p);
    NAME(accumulate)(p->sums, p->begun ? &factors : NULL, content + t.size, scores, count, t.size);
    p->begun = 1;
}

#if LANES > 4
/* Swaps rows and columns: of pairs of vectors that lie `s` apart, the parts that lie `s` apart. */
INLINE void NAME(transpose)(NAME(vector) x[LANES])
{
    NAME(numbers) place;
    for (int i = 0; i < LANES; i++)
        place[i] = i;
#pragma GCC unroll 4
    for (int s = 1; s < LANES; s *= 2) {
        NAME(numbers) odd = (place & s) != 0;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & s)) {
                NAME(vector) a = x[i], b = x[i + s];
                x[i] = __builtin_shuffle(a, b, place + (odd & (LANES - s)));
                x[i + s] = __builtin_shuffle(a, b, place + (~odd & s) + (odd & LANES));
            }
    }
}
#endif

#if LANES > 4
/* Numbers [i, i + LANES). */
INLINE NAME(vector) NAME(load_vector)(const void *numbers, int64_t i, element e)
{
    NAME(vector) x;
    for (int j = 0; j < LANES; j++)
        x[j] = load(numbers, i + j, e);
    return x;
}

INLINE void NAME(store_vector)(void *numbers, int64_t i, NAME(vector) x, element e)
{
    for (int j = 0; j < LANES; j++)
        store(numbers, i + j, x[j], e);
}
#endif

/* Rows [begin, begin + LANES) of a tile, scaled; filled up with its last. */
TARGET static void NAME(begin_panel)(NAME(panel) *p, tile t, int64_t begin)
{
    const void *rows[LANES];
    for (int64_t j = 0; j < LANES; j++) {
        int64_t row = begin + j < t.end ? begin + j : t.end - 1;
        rows[j] = at(t.query, row / t.group * t.query_stride + row % t.group * t.size, t.element);
        p->positions[j] = (int32_t)(t.context + row / t.group);
        p->top[j] = LOWEST;
        p->total[j] = 0;
    }
    p->begun = 0;
    int64_t i = 0;
#if LANES > 4
    for (; i + LANES <= t.size; i += LANES) {
        for (int j = 0; j < LANES; j++)
            p->queries[i + j] = WITH_ELEMENT(t.element, NAME(load_vector), rows[j], i) * t.scale;
        NAME(transpose)(p->queries + i);
    }
#endif
    for (; i < t.size; i++)
        for (int64_t j = 0; j < LANES; j++)
            p->queries[i][j] = load(rows[j], i, t.element) * t.scale;
}

/* What was summed up, divided by the weights, to the output. */
TARGET static void NAME(end_panel)(NAME(panel) *p, tile t, int64_t begin)
{
    int64_t count = t.end - begin < LANES ? t.end - begin : LANES;
    void *rows[LANES];
    for (int64_t j = 0; j < count; j++)
        rows[j] = at(t.out, (begin + j) / t.group * t.out_stride + (begin + j) % t.group * t.size, t.element);
    NAME(vector) factors = 1.0f / p->total;
    int64_t i = 0;
#if LANES > 4
    for (; i + LANES <= t.size; i += LANES) {
        for (int j = 0; j < LANES; j++)
            p->sums[i + j] *= factors;
        NAME(transpose)(p->sums + i);
        for (int64_t j = 0; j < count; j++)
            WITH_ELEMENT(t.element, NAME(store_vector), rows[j], i, p->sums[i + j]);
    }
#endif
    for (; i < t.size; i++)
        for (int64_t j = 0; j < count; j++)
            store(rows[j], i, p->sums[i][j] * factors[j], t.element);
}

TARGET static void NAME(attend)(tile t)
{
    NAME(panel) panels[TILE / LANES];
    int64_t count = (t.end - t.begin + LANES - 1) / LANES, numbers = t.size * 2 * (count * LANES + t.span);
    NAME(vector) *room = __builtin_alloca_with_align(sizeof(float) * (size_t)numbers, 512);
    float *content = (float *)(room + t.size * 2 * count);
    for (int64_t i = 0; i < count; i++) {
        panels[i].queries = room + t.size * 2 * i;
        panels[i].sums = panels[i].queries + t.size;
        NAME(begin_panel)(panels + i, t, t.begin + i * LANES);
    }
    int64_t seen = t.context + t.begin / t.group - t.window + 1, len = t.context + (t.end - 1) / t.group + 1;
    for (int64_t key = t.window > 0 && seen > 0 ? seen : 0; key < len; key += t.span) {
        int64_t keys = len - key < t.span ? len - key : t.span;
        gather(content, t, key, keys);
        for (int64_t i = 0; i < count; i++)
            NAME(attend_panel)(panels + i, t, content, key, keys);
    }
    for (int64_t i = 0; i < count; i++)
        NAME(end_panel)(panels + i, t, t.begin + i * LANES);
}

#undef INLINE
#undef NAME
#undef TARGET
#undef LANES
