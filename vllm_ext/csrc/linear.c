#include "kernels.h"

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

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define AVX512 __attribute__((target("arch=x86-64-v4")))
#define ALWAYS_INLINE static inline __attribute__((always_inline)) AVX512

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

int can_multiply(void) { return __builtin_cpu_supports("x86-64-v4") > 0; }

/* The first tile of a panel would wait for memory, and the others for arithmetic: so each tile fetches its part of the
   next panel while it multiplies. A tile that is alone fetches what comes AHEAD numbers later. That is 1.1 to 1.6 times as
   fast for 8 to 24 rows on Zen 4. Many tiles wait little, and each fetch delays them, so that they fetch once in STEPS:
   1.05 times for 64 rows. Fewer rows only wait for memory, whatever is fetched when. */
#define AHEAD 4096
#define FEW_ROWS 4
#define FEW_TILES 2
#define STEPS 16
enum { NEVER, EACH_STEP, SELDOM };

/* Rows of x and of what is written, with the distances from one to the next. The sums begin with `start`, whose rows
   are `start_stride` apart (0 for a bias); NULL stands for zeros. Of `ahead`, `lines` vectors are fetched at a time. */
typedef struct {
    float *out;
    const float *x, *panel, *start, *ahead;
    int64_t out_stride, x_stride, start_stride, depth, lines;
} tile;

/* Something is fetched EACH_STEP of depth, SELDOM, or NEVER. */
ALWAYS_INLINE void multiply_rows(tile t, int rows, int fetches)
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
                    sums[r][v] += t.x[r * t.x_stride + i] * weights[v];
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
            multiply_rows(t, n, SELDOM);                                                                               \
        else if (fetches == EACH_STEP)                                                                                 \
            multiply_rows(t, n, EACH_STEP);                                                                            \
        else                                                                                                           \
            multiply_rows(t, n, NEVER);                                                                                \
        break;

/* With a number of rows that the compiler knows, the sums are registers. */
AVX512 static void multiply_tile(tile t, int64_t rows, int fetches)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
}

/* See AHEAD. Of several chunks, all but the first find their panel near. */
static int fetches_of(linear_args a, int64_t tiles)
{
    if (a.m <= FEW_ROWS || a.m > CHUNK)
        return NEVER;
    return tiles > FEW_TILES ? SELDOM : EACH_STEP;
}

/* Rows [begin, end) of x and panel p. The rows are spread evenly over the tiles: 8 + 8 are faster than 12 + 4. */
static void multiply_chunk(linear_args a, int64_t p, int64_t begin, int64_t end)
{
    int64_t rows = end - begin, tiles = (rows + ROWS - 1) / ROWS;
    int64_t columns = a.n - p * WIDTH < WIDTH ? a.n - p * WIDTH : WIDTH;
    float last[CHUNK * WIDTH], last_bias[WIDTH] = {0};
    int fetches = fetches_of(a, tiles);
    int64_t lines = ((fetches == SELDOM ? STEPS : 1) * VECTORS + tiles - 1) / tiles;
    float *out = a.out + begin * a.n + p * WIDTH;
    const float *bias = a.bias ? a.bias + p * WIDTH : NULL;
    int64_t out_stride = a.n;
    if (columns < WIDTH) {
        /* A panel is written whole: where the output ends within it, beside the output first. */
        out = last, out_stride = WIDTH;
        if (bias)
            bias = memcpy(last_bias, bias, sizeof(float) * (size_t)columns);
    }
    for (int64_t done = 0; done < a.k; done += DEPTH)
        for (int64_t i = 0; i < tiles; i++) {
            int64_t depth = a.k - done < DEPTH ? a.k - done : DEPTH;
            int64_t row = rows * i / tiles, next = rows * (i + 1) / tiles;
            float *target = out + row * out_stride;
            const float *part = a.weight + (p * a.k + done) * WIDTH;
            tile t = {
                .out = target,
                .x = a.x + (begin + row) * a.x_stride + done,
                .panel = part,
                .start = done ? target : bias,
                .ahead = part + (tiles > 1 ? a.k * WIDTH + depth * i / tiles * WIDTH : AHEAD),
                .out_stride = out_stride,
                .x_stride = a.x_stride,
                .start_stride = done ? out_stride : 0,
                .depth = depth,
                .lines = lines,
            };
            multiply_tile(t, next - row, fetches);
        }
    if (columns < WIDTH)
        for (int64_t r = 0; r < rows; r++)
            memcpy(a.out + (begin + r) * a.n + p * WIDTH, last + r * WIDTH, sizeof(float) * (size_t)columns);
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
int can_multiply(void) { return 0; }
void linear(linear_args a) { (void)a; }

#endif
