/* Dense products of a step with a weight that is laid out once; chosen over oneDNN where it was measured to be faster. */
#include "kernels.h"
#include "numbers.h"
#include "processors.h"

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
    void (*widen)(float *out, const void *numbers, int64_t count, element e);
    void (*narrow)(void *out, const float *sums, int64_t rows, int64_t columns, int64_t stride, element e);
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
enum { EACH_STEP, SELDOM };

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
#define TO_FLOAT16(out, x) _mm256_storeu_si256((__m256i *)(out), _mm512_cvtps_ph(_mm512_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT))
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
#define TO_FLOAT16(out, x) _mm_storeu_si128((__m128i *)(out), _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT))
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

/* What all chunks of a call have in common. */
typedef struct {
    linear_args a;
    const generation *g;
    multiply_tile multiply;
    const unit *x;
    int64_t k, x_stride;                /* in units: a row of weights, and the distance of rows of x */
    int64_t x_per_unit, steps_per_unit; /* units of x, and steps, for a unit of weights */
    int fetches, shares;                /* shares: tiles share a panel that was converted, see multiply_shared() */
} product;

static product product_of(linear_args a)
{
    const generation *g = generation_here();
    int64_t per_unit = a.element == FLOAT32 ? 1 : 2;
    int few = a.m <= FEW_TILES * g->rows, shares = a.element == FLOAT16 && !few;
    return (product){
        .a = a,
        .g = g,
        .multiply = a.element == BFLOAT16 && !a.converted ? g->multiply_pairs : g->multiply[shares ? FLOAT32 : a.element],
        .x = a.converted ? a.converted : a.x,
        .k = a.k / per_unit,
        .x_stride = a.converted ? a.k : a.x_stride / per_unit,
        .x_per_unit = a.converted ? 2 : 1,
        .steps_per_unit = shares ? 2 : 1,
        .fetches = few ? EACH_STEP : SELDOM,
        .shares = shares,
    };
}

/* Rows [begin, end) of x and one panel. The rows are spread evenly over the tiles: 8 + 8 are faster than 12 + 4. What is
   shared has `room`. */
static void multiply_chunk(const product *p, int64_t panel, int64_t begin, int64_t end, float *room)
{
    linear_args a = p->a;
    int64_t width = p->g->width, rows = end - begin, tiles = (rows + p->g->rows - 1) / p->g->rows;
    int64_t columns = a.n - panel * width < width ? a.n - panel * width : width, most = DEPTH / p->steps_per_unit;
    int64_t lines = ((p->fetches == SELDOM ? STEPS : 1) * width / LINE / p->steps_per_unit + tiles - 1) / tiles;
    void *target = at(a.out, begin * a.n + panel * width, a.element);
    /* A panel is written whole, and as sums: where the output ends within it, or is no float32, beside the output first. */
    float beside[CHUNK * MOST_WIDTH], bias[MOST_WIDTH] = {0};
    int directly = columns == width && a.element == FLOAT32;
    float *out = directly ? target : beside;
    int64_t out_stride = directly ? a.n : width;
    for (int64_t c = 0; a.bias && c < columns; c++)
        bias[c] = load(a.bias, panel * width + c, a.element);
    for (int64_t done = 0; done < p->k; done += most) {
        int64_t depth = p->k - done < most ? p->k - done : most;
        const unit *part = (const unit *)a.weight + (panel * p->k + done) * width;
        if (room)
            p->g->widen(room, part, 2 * depth * width, a.element);
        for (int64_t i = 0; i < tiles; i++) {
            int64_t row = rows * i / tiles, next = rows * (i + 1) / tiles;
            tile t = {
                .out = out + row * out_stride,
                .x = p->x + (begin + row) * p->x_stride + done * p->x_per_unit,
                .panel = room ? room : part,
                .start = done ? out + row * out_stride : a.bias ? bias : NULL,
                .ahead = part + (tiles > 1 ? p->k * width + depth * i / tiles * width : AHEAD),
                .out_stride = out_stride,
                .x_stride = p->x_stride,
                .start_stride = done ? out_stride : 0,
                .depth = depth * p->steps_per_unit,
                .lines = lines,
            };
            p->multiply(&t, next - row, p->fetches);
        }
    }
    if (!directly)
        p->g->narrow(target, beside, rows, columns, a.n, a.element);
}

/* To convert float16 takes longer than to shift bfloat16: 0.8 of the time for 16 rows if it is done once for all tiles. */
static __attribute__((noinline)) void multiply_shared(const product *p, int64_t panel, int64_t begin, int64_t end)
{
    _Alignas(64) float room[DEPTH * MOST_WIDTH];
    multiply_chunk(p, panel, begin, end, room);
}

void linear(linear_args a)
{
    product p = product_of(a);
    int64_t panels = (a.n + p.g->width - 1) / p.g->width, chunks = (a.m + CHUNK - 1) / CHUNK;
    if (a.converted) {
#pragma omp for
        for (int64_t r = 0; r < a.m; r++)
            p.g->widen(a.converted + r * a.k, at(a.x, r * a.x_stride, a.element), a.k, a.element);
    }
    /* All panels for one chunk of x after the other: x is read from the second cache, and a panel, which is smaller, from
       further away. A processor that other programs use, too, gets less of the work. */
#pragma omp for collapse(2) schedule(guided)
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t begin = a.m * c / chunks, end = a.m * (c + 1) / chunks;
            if (p.shares)
                multiply_shared(&p, panel, begin, end);
            else
                multiply_chunk(&p, panel, begin, end, NULL);
        }
}
