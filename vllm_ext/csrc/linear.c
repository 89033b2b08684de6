#include "kernels.h"
#include "numbers.h"
#include "processors.h"

#include <string.h>

/* A weight [n, k] lies in panels of WIDTH rows, each as [k, WIDTH]: what a step of the inner loop reads is contiguous.
   A tile of ROWS rows of x and one panel accumulates in registers, of which AVX-512 has 32: 12 * 2 sums, two vectors of
   weights and one of x. Measured on Zen 4 against 14 rows, 8 by 48, 6 by 64 and 24 by 16. */
#define WIDTH LINEAR_PANEL
#define LANES 16
#define ROWS 12
#define VECTORS (WIDTH / LANES)
/* Rows that a thread takes at once, where there are many. */
#define CHUNK (ROWS * 8)
/* So much of a panel, 256 KB, is read by all tiles of a chunk before the next part: it stays in the second cache. */
#define DEPTH 2048

#if BUILT_FOR(4)
#include <immintrin.h>

#define AVX512 __attribute__((target("arch=x86-64-v4")))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float unit __attribute__((may_alias)); /* see linear_tile.h */

int can_multiply(element e)
{
    /* Where a processor has a unit for matrices of bfloat16, or computes in float16, the library behind torch does. */
    if ((e == BFLOAT16 && __builtin_cpu_supports("amx-bf16")) || (e == FLOAT16 && __builtin_cpu_supports("avx512fp16")))
        return 0;
    return __builtin_cpu_supports("x86-64-v4") > 0;
}

/* The first tile of a panel would wait for memory, and the others for arithmetic: so each tile fetches its part of the
   next panel while it multiplies. A tile that is alone fetches what comes AHEAD units later: the processor looks ahead by
   itself, but not as far. That is 1.1 to 1.6 times as fast for up to 24 rows on Zen 4. Many tiles wait little, and each
   fetch delays them, so that they fetch once in STEPS: 1.05 times for 64 rows. */
#define AHEAD 1280
#define FEW_TILES 2
#define STEPS 16
enum { NEVER, EACH_STEP, SELDOM };

/* Rows of x and of what is written, with the distances from one to the next. The sums begin with `start`, whose rows
   are `start_stride` apart (0 for a bias); NULL stands for zeros. Of `ahead`, `lines` vectors are fetched at a time. */
typedef struct {
    float *out;
    const unit *x, *panel, *ahead; /* float32, or two numbers in the place of one */
    const float *start;
    int64_t out_stride, x_stride, start_stride, depth, lines;
} tile;

#define NAME(x) x##_float32
#define TARGET AVX512
#define X_PER_STEP 1
#define PLUS_PRODUCT(sum, w, v, x) ((sum) + *(x) * (w)[v])
#include "linear_tile.h"

#define NAME(x) x##_bfloat16_pairs
#define TARGET __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define X_PER_STEP 1
#define PLUS_PRODUCT(sum, w, v, x)                                                                                     \
    ((vector)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(w)[v], (__m512bh)_mm512_set1_ps(*(x))))
#include "linear_tile.h"

/* Two products are added to a sum one after the other: compilers would add them first, which is one operation more. */
#define PLUS(sum, a, b) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(sum))

/* Without that instruction: a bfloat16 is the upper half of a float32. */
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
#define FIRST(x) ((words)(x) << 16)
#define SECOND(x) ((words)(x) & 0xffff0000)
#define NAME(x) x##_bfloat16
#define TARGET AVX512
#define X_PER_STEP 1
#define PLUS_PRODUCT(sum, w, v, x)                                                                                     \
    ((vector)PLUS(PLUS(sum, FIRST(_mm512_set1_ps(*(x))), FIRST((w)[v])), SECOND(_mm512_set1_ps(*(x))), SECOND((w)[v])))
#include "linear_tile.h"

/* Of x in float32: see multiply_converted(). */
#define HALF_LINE(w, i) _mm512_cvtph_ps(((const __m256i *)(w))[i])
#define NAME(x) x##_float16
#define TARGET AVX512
#define X_PER_STEP 2
#define PLUS_PRODUCT(sum, w, v, x)                                                                                     \
    ((vector)PLUS(PLUS(sum, _mm512_set1_ps((x)[0]), HALF_LINE(w, v)), _mm512_set1_ps((x)[1]), HALF_LINE(w, VECTORS + (v))))
#include "linear_tile.h"

/* It would take longer to convert a number of x for each panel's column than to multiply by it. */
AVX512 static void multiply_converted(tile t, int64_t rows, int fetches)
{
    float converted[ROWS * 2 * DEPTH];
    int64_t count = 2 * t.depth;
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *row = (const uint16_t *)(t.x + r * t.x_stride);
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES)
            _mm512_storeu_ps(converted + r * count + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + i))));
        for (; i < count; i++)
            converted[r * count + i] = load(row, i, FLOAT16);
    }
    t.x = converted, t.x_stride = count;
    multiply_tile_float16(t, rows, fetches);
}

AVX512 static void multiply_tile(tile t, int64_t rows, int fetches, element e)
{
    if (e == FLOAT32)
        multiply_tile_float32(t, rows, fetches);
    else if (e == FLOAT16)
        multiply_converted(t, rows, fetches);
    else if (BUILT_FOR(5) && __builtin_cpu_supports("avx512bf16"))
        multiply_tile_bfloat16_pairs(t, rows, fetches);
    else
        multiply_tile_bfloat16(t, rows, fetches);
}

/* See AHEAD. Of several chunks, all but the first find their panel near. */
static int fetches_of(linear_args a, int64_t tiles)
{
    if (a.m > CHUNK)
        return NEVER;
    return tiles > FEW_TILES ? SELDOM : EACH_STEP;
}

/* To columns [0, columns) of rows of out, which are a.n apart. */
ALWAYS_INLINE void store_rows(void *out, linear_args a, const float *sums, int64_t rows, int64_t columns, element e)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            store(out, r * a.n + c, sums[r * WIDTH + c], e);
}

/* Rows [begin, end) of x and panel p. The rows are spread evenly over the tiles: 8 + 8 are faster than 12 + 4. */
AVX512 static void multiply_chunk(linear_args a, int64_t p, int64_t begin, int64_t end)
{
    int64_t rows = end - begin, tiles = (rows + ROWS - 1) / ROWS;
    int64_t columns = a.n - p * WIDTH < WIDTH ? a.n - p * WIDTH : WIDTH;
    int64_t per_unit = a.element == FLOAT32 ? 1 : 2, k = a.k / per_unit, x_stride = a.x_stride / per_unit;
    float beside[CHUNK * WIDTH], bias[WIDTH] = {0};
    int fetches = fetches_of(a, tiles);
    int64_t lines = ((fetches == SELDOM ? STEPS : 1) * VECTORS + tiles - 1) / tiles;
    void *target = at(a.out, begin * a.n + p * WIDTH, a.element);
    /* A panel is written whole, and as sums: where the output ends within it, or is no float32, beside the output first. */
    int directly = columns == WIDTH && a.element == FLOAT32;
    float *out = directly ? target : beside;
    int64_t out_stride = directly ? a.n : WIDTH;
    for (int64_t c = 0; a.bias && c < columns; c++)
        bias[c] = load(a.bias, p * WIDTH + c, a.element);
    for (int64_t done = 0; done < k; done += DEPTH)
        for (int64_t i = 0; i < tiles; i++) {
            int64_t depth = k - done < DEPTH ? k - done : DEPTH;
            int64_t row = rows * i / tiles, next = rows * (i + 1) / tiles;
            const unit *part = (const unit *)a.weight + (p * k + done) * WIDTH;
            tile t = {
                .out = out + row * out_stride,
                .x = (const unit *)a.x + (begin + row) * x_stride + done,
                .panel = part,
                .start = done ? out + row * out_stride : a.bias ? bias : NULL,
                .ahead = part + (tiles > 1 ? k * WIDTH + depth * i / tiles * WIDTH : AHEAD),
                .out_stride = out_stride,
                .x_stride = x_stride,
                .start_stride = done ? out_stride : 0,
                .depth = depth,
                .lines = lines,
            };
            multiply_tile(t, next - row, fetches, a.element);
        }
    if (!directly)
        WITH_ELEMENT(a.element, store_rows, target, a, beside, rows, columns);
}

void linear(linear_args a)
{
    int64_t panels = (a.n + WIDTH - 1) / WIDTH, chunks = (a.m + CHUNK - 1) / CHUNK;
    /* A processor that other programs use, too, gets less of the work. */
#pragma omp for collapse(2) schedule(guided)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t c = 0; c < chunks; c++)
            multiply_chunk(a, p, a.m * c / chunks, a.m * (c + 1) / chunks);
}

#else

/* Elsewhere nothing was measured; the library behind torch multiplies. */
int can_multiply(element e) { return (void)e, 0; }
void linear(linear_args a) { (void)a; }

#endif
