/* How linear.c multiplies the elements, for one generation of processors. Included once for each, with
     OF(x)                    x under a name of its own
     TARGET                   the attribute that says for which
     LANES                    float32 in a vector
     ROWS                     rows of x in a tile, at most
     PRODUCT(sum, x, line)    sum + x * line, of a number and a vector of weights
     FROM_FLOAT16(halves)     a vector of these
     TO_FLOAT16(out, x)       and a vector's numbers, of x, as these
   and, where some processors of the generation have an instruction for it,
     PRODUCT_OF_PAIRS(sum, x, line)    sum + x[0] * line[0] + x[1] * line[1], of pairs of bfloat16
     PAIRS_TARGET                      the attribute that says for which

   A panel's width is two vectors. Its tile's sums are registers: see `generation`. */
#define VECTORS 2
#define WIDTH (VECTORS * LANES)

typedef float OF(vector) __attribute__((vector_size(4 * LANES)));
typedef float OF(unaligned) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t OF(words) __attribute__((vector_size(4 * LANES)));

#define NAME(x) OF(x##_float32)
#define BUILD TARGET
#define X_PER_STEP 1
#define PLUS_PRODUCT(sum, w, v, i, x) PRODUCT(sum, x, (w)[v])
#include "linear_tile.h"

/* The others, of x in float32: see linear_converts(). A bfloat16 is the upper half of a float32. */
#define HALF_OF_PAIR(w, i) ((i) == 0 ? (OF(words))(w) << 16 : (OF(words))(w) & 0xffff0000)
#define NAME(x) OF(x##_bfloat16)
#define BUILD TARGET
#define X_PER_STEP 2
#define PLUS_PRODUCT(sum, w, v, i, x) PRODUCT(sum, x, HALF_OF_PAIR((w)[v], i))
#include "linear_tile.h"

#define NAME(x) OF(x##_float16)
#define BUILD TARGET
#define X_PER_STEP 2
#define PLUS_PRODUCT(sum, w, v, i, x) PRODUCT(sum, x, FROM_FLOAT16((const uint16_t *)(w) + ((i) * VECTORS + (v)) * LANES))
#include "linear_tile.h"

#ifdef PRODUCT_OF_PAIRS
#define NAME(x) OF(x##_bfloat16_pairs)
#define BUILD PAIRS_TARGET
#define X_PER_STEP 1
#define PLUS_PRODUCT(sum, w, v, i, x) PRODUCT_OF_PAIRS(sum, x, (w)[v])
#include "linear_tile.h"
#endif

ALWAYS_INLINE TARGET void OF(widen_each)(float *restrict out, const void *restrict numbers, int64_t count, element e)
{
    int64_t i = 0;
    for (; e == FLOAT16 && i + LANES <= count; i += LANES)
        *(OF(unaligned) *)(out + i) = (OF(vector))FROM_FLOAT16(at(numbers, i, e));
    for (; i < count; i++)
        out[i] = load(numbers, i, e);
}

TARGET static void OF(widen)(float *out, const void *numbers, int64_t count, element e)
{
    WITH_ELEMENT(e, OF(widen_each), out, numbers, count);
}

/* Rows of a panel's sums, which go to columns [0, columns) of rows that are `stride` apart. */
ALWAYS_INLINE TARGET void OF(narrow_each)(void *restrict out, const float *restrict sums, int64_t rows, int64_t columns,
                                          int64_t stride, element e)
{
    for (int64_t r = 0; r < rows; r++) {
        int64_t c = 0;
        for (; e == FLOAT16 && c + LANES <= columns; c += LANES)
            TO_FLOAT16(at(out, r * stride + c, e), sums + r * WIDTH + c);
        for (; c < columns; c++)
            store(out, r * stride + c, sums[r * WIDTH + c], e);
    }
}

TARGET static void OF(narrow)(void *out, const float *sums, int64_t rows, int64_t columns, int64_t stride, element e)
{
    WITH_ELEMENT(e, OF(narrow_each), out, sums, rows, columns, stride);
}

static const generation OF(generation) = {
    .width = WIDTH,
    .rows = ROWS,
    .multiply = {OF(multiply_tile_float32), OF(multiply_tile_bfloat16), OF(multiply_tile_float16)},
    .widen = OF(widen),
    .narrow = OF(narrow),
#ifdef PRODUCT_OF_PAIRS
    .multiply_pairs = OF(multiply_tile_bfloat16_pairs),
#endif
};

#undef OF
#undef TARGET
#undef LANES
#undef ROWS
#undef PRODUCT
#undef FROM_FLOAT16
#undef TO_FLOAT16
#undef PRODUCT_OF_PAIRS
#undef PAIRS_TARGET
#undef VECTORS
#undef WIDTH
#undef HALF_OF_PAIR
