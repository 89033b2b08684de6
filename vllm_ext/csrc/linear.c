#include "kernels.h"
#include "numbers.h"
#include "processors.h"

#include <string.h>

/* A weight [n, k] lies in panels of some rows, each as [k, width]: what a step of the inner loop reads is contiguous, one
   line of the caches or more. A tile of some rows of x and one panel accumulates in registers. How many, and how wide, is
   for each generation of processors what its registers hold. */
typedef float unit __attribute__((may_alias)); /* float32, or two numbers in the place of one */

/* Rows of x and of what is written, with the distances from one to the next. The sums begin with `start`, whose rows
   are `start_stride` apart (0 for a bias); NULL stands for zeros. Of `ahead`, `lines` lines are fetched at a time. */
typedef struct {
    float *out;
    const unit *x, *panel, *ahead;
    const float *start;
    int64_t out_stride, x_stride, start_stride, depth, lines;
} tile;

typedef void (*multiply_tile)(const tile *t, int64_t rows, int fetches);

typedef struct {
    int64_t width, rows;                       /* of a panel; of a tile, at most */
    multiply_tile multiply[3], multiply_pairs; /* by element, of x in float32; of pairs of bfloat16, or NULL */
} generation;

#define MOST_WIDTH 32
/* Units in a line of the caches. */
#define LINE 16
/* Rows that a thread takes at once, where there are many. */
#define CHUNK 96
/* So much of a panel, up to 256 KB, is read by all tiles of a chunk before the next part: it stays in the second cache. */
#define DEPTH 2048

/* The first tile of a panel would wait for memory, and the others for arithmetic: so each tile fetches its part of the
   next panel while it multiplies. A tile that is alone fetches what comes AHEAD units later: the processor looks ahead by
   itself, but not as far. That is 1.1 to 1.6 times as fast for up to 24 rows on Zen 4. Many tiles wait little, and each
   fetch delays them, so that they fetch once in STEPS: 1.05 times for 64 rows. */
#define AHEAD 1280
#define FEW_TILES 2
#define STEPS 16
enum { NEVER, EACH_STEP, SELDOM };

#if BUILT_FOR(3)
#include <immintrin.h>
#endif

/* In the products, sums are what the next is added to: compilers would add two products first, one operation more. */
#if BUILT_FOR(4)
/* Of 32 registers: 12 * 2 sums, two vectors of weights and one of x. Measured on Zen 4 against 14 rows, 8 by 48, 6 by 64
   and 24 by 16. */
#define OF(x) x##_v4
#define TARGET __attribute__((target("arch=x86-64-v4")))
#define LANES 16
#define ROWS 12
#define PRODUCT(sum, x, line) ((vector_v4)_mm512_fmadd_ps(_mm512_set1_ps(x), (__m512)(line), (__m512)(sum)))
#define FROM_FLOAT16(halves) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(halves)))
#if BUILT_FOR(5)
#define PRODUCT_OF_PAIRS(sum, x, line)                                                                                 \
    ((vector_v4)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(line), (__m512bh)_mm512_set1_ps(x)))
#define PAIRS_TARGET __attribute__((target("arch=x86-64-v4,avx512bf16")))
#endif
#include "linear_elements.h"
#endif

#if BUILT_FOR(3)
/* Of 16 registers: 6 * 2 sums, two vectors of weights and one of x. */
#define OF(x) x##_v3
#define TARGET __attribute__((target("arch=x86-64-v3")))
#define LANES 8
#define ROWS 6
#define PRODUCT(sum, x, line) ((vector_v3)_mm256_fmadd_ps(_mm256_set1_ps(x), (__m256)(line), (__m256)(sum)))
#define FROM_FLOAT16(halves) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves)))
#include "linear_elements.h"
#endif

/* That of this processor; NULL where nothing was measured, and the library behind torch multiplies. */
static const generation *generation_here(void)
{
#if BUILT_FOR(4)
    if (__builtin_cpu_supports("x86-64-v4"))
        return &generation_v4;
#endif
#if BUILT_FOR(3)
    if (__builtin_cpu_supports("x86-64-v3"))
        return &generation_v3;
#endif
    return NULL;
}

int64_t linear_panel(element e)
{
    const generation *here = generation_here();
#if BUILT_FOR(4)
    /* Where a processor has a unit for matrices of bfloat16, or computes in float16, the library behind torch does. */
    if ((e == BFLOAT16 && __builtin_cpu_supports("amx-bf16")) || (e == FLOAT16 && __builtin_cpu_supports("avx512fp16")))
        return 0;
#endif
    return here ? here->width : 0;
}

int linear_converts(element e)
{
#if BUILT_FOR(5)
    if (e == BFLOAT16 && __builtin_cpu_supports("avx512bf16"))
        return 0;
#endif
    return e != FLOAT32;
}

/* See AHEAD. Of several chunks, all but the first find their panel near. */
static int fetches_of(linear_args a, int64_t tiles)
{
    if (a.m > CHUNK)
        return NEVER;
    return tiles > FEW_TILES ? SELDOM : EACH_STEP;
}

ALWAYS_INLINE void store_each(void *out, linear_args a, const float *sums, int64_t rows, int64_t columns, int64_t width,
                              element e)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            store(out, r * a.n + c, sums[r * width + c], e);
}

/* To columns [0, columns) of rows of out, which are a.n apart. */
EACH_PROCESSOR
static void store_rows(void *out, linear_args a, const float *sums, int64_t rows, int64_t columns, int64_t width)
{
    WITH_ELEMENT(a.element, store_each, out, a, sums, rows, columns, width);
}

/* Rows [begin, end) of x and panel p. The rows are spread evenly over the tiles: 8 + 8 are faster than 12 + 4. */
static void multiply_chunk(linear_args a, generation g, multiply_tile multiply, int64_t p, int64_t begin, int64_t end)
{
    int64_t rows = end - begin, tiles = (rows + g.rows - 1) / g.rows;
    int64_t columns = a.n - p * g.width < g.width ? a.n - p * g.width : g.width;
    /* In units: of a row of weights, and of x. */
    int64_t per_unit = a.element == FLOAT32 ? 1 : 2, k = a.k / per_unit;
    int64_t x_per_step = a.converted ? 2 : 1, x_stride = a.converted ? a.k : a.x_stride / per_unit;
    const unit *x = a.converted ? a.converted : a.x;
    float beside[CHUNK * MOST_WIDTH], bias[MOST_WIDTH] = {0};
    int fetches = fetches_of(a, tiles);
    int64_t lines = ((fetches == SELDOM ? STEPS : 1) * g.width / LINE + tiles - 1) / tiles;
    void *target = at(a.out, begin * a.n + p * g.width, a.element);
    /* A panel is written whole, and as sums: where the output ends within it, or is no float32, beside the output first. */
    int directly = columns == g.width && a.element == FLOAT32;
    float *out = directly ? target : beside;
    int64_t out_stride = directly ? a.n : g.width;
    for (int64_t c = 0; a.bias && c < columns; c++)
        bias[c] = load(a.bias, p * g.width + c, a.element);
    for (int64_t done = 0; done < k; done += DEPTH)
        for (int64_t i = 0; i < tiles; i++) {
            int64_t depth = k - done < DEPTH ? k - done : DEPTH;
            int64_t row = rows * i / tiles, next = rows * (i + 1) / tiles;
            const unit *part = (const unit *)a.weight + (p * k + done) * g.width;
            tile t = {
                .out = out + row * out_stride,
                .x = x + (begin + row) * x_stride + done * x_per_step,
                .panel = part,
                .start = done ? out + row * out_stride : a.bias ? bias : NULL,
                .ahead = part + (tiles > 1 ? k * g.width + depth * i / tiles * g.width : AHEAD),
                .out_stride = out_stride,
                .x_stride = x_stride,
                .start_stride = done ? out_stride : 0,
                .depth = depth,
                .lines = lines,
            };
            multiply(&t, next - row, fetches);
        }
    if (!directly)
        store_rows(target, a, beside, rows, columns, g.width);
}

EACH_PROCESSOR
static void convert(float *out, const void *x, int64_t count, element e)
{
    WITH_ELEMENT(e, to_float32, out, x, count);
}

void linear(linear_args a)
{
    generation g = *generation_here();
    multiply_tile multiply = a.element == BFLOAT16 && !a.converted ? g.multiply_pairs : g.multiply[a.element];
    int64_t panels = (a.n + g.width - 1) / g.width, chunks = (a.m + CHUNK - 1) / CHUNK;
    if (a.converted) {
#pragma omp for
        for (int64_t r = 0; r < a.m; r++)
            convert(a.converted + r * a.k, at(a.x, r * a.x_stride, a.element), a.k, a.element);
    }
    /* A processor that other programs use, too, gets less of the work. */
#pragma omp for collapse(2) schedule(guided)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t c = 0; c < chunks; c++)
            multiply_chunk(a, g, multiply, p, a.m * c / chunks, a.m * (c + 1) / chunks);
}
