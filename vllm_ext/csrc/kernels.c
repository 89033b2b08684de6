#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One copy of a function for each generation of processors; the loader picks. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* So few numbers are done before a second thread has begun. */
#define WORTH_A_THREAD 16384

EACH_PROCESSOR
static void rms_norm_row(float *restrict out, const float *restrict x, float *restrict residual,
                         const float *restrict weight, int64_t size, float eps)
{
    const float *row = x;
    float sum = 0;
    if (residual) {
        for (int64_t i = 0; i < size; i++)
            residual[i] += x[i];
        row = residual;
    }
    for (int64_t i = 0; i < size; i++)
        sum += row[i] * row[i];
    float factor = 1.0f / sqrtf(sum / (float)size + eps);
    for (int64_t i = 0; i < size; i++)
        out[i] = row[i] * factor * weight[i];
}

void rms_norm(float *out, const float *x, float *residual, const float *weight, int64_t rows, int64_t size, float eps,
              int threads)
{
#pragma omp parallel for num_threads(threads) if (rows * size > WORTH_A_THREAD)
    for (int64_t r = 0; r < rows; r++)
        rms_norm_row(out + r * size, x + r * size, residual ? residual + r * size : NULL, weight, size, eps);
}

EACH_PROCESSOR
static void silu_and_mul_row(float *restrict out, const float *restrict x, int64_t size)
{
    const float *gate = x, *up = x + size;
    for (int64_t i = 0; i < size; i++)
        out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void silu_and_mul(float *out, const float *x, int64_t rows, int64_t size, int threads)
{
#pragma omp parallel for num_threads(threads) if (rows * size > WORTH_A_THREAD)
    for (int64_t r = 0; r < rows; r++)
        silu_and_mul_row(out + r * size, x + r * 2 * size, size);
}

EACH_PROCESSOR
static void rotate_row(float *restrict out, const float *restrict x, const float *restrict cache, int64_t heads,
                       int64_t size)
{
    const float *cosine = cache, *sine = cache + size;
    int64_t half = size / 2;
    for (int64_t h = 0; h < heads; h++, x += size, out += size) {
        for (int64_t i = 0; i < half; i++)
            out[i] = x[i] * cosine[i] + x[i + half] * sine[i];
        for (int64_t i = half; i < size; i++)
            out[i] = x[i] * cosine[i] + x[i - half] * sine[i];
    }
}

void rotary_embedding(float *out, const float *x, const int64_t *positions, const float *cache, int64_t rows,
                      int64_t heads, int64_t size, int64_t x_stride, int threads)
{
#pragma omp parallel for num_threads(threads) if (rows * heads * size > WORTH_A_THREAD)
    for (int64_t r = 0; r < rows; r++)
        rotate_row(out + r * heads * size, x + r * x_stride, cache + positions[r] * 2 * size, heads, size);
}

void store_kv(kv_cache cache, const float *key, const float *value, const int64_t *slots, int64_t tokens,
              int64_t key_stride, int64_t value_stride, int threads)
{
    size_t bytes = sizeof(float) * (size_t)cache.size;
#pragma omp parallel for num_threads(threads) if (tokens * cache.kv_heads * cache.size > WORTH_A_THREAD)
    for (int64_t t = 0; t < tokens; t++) {
        int64_t block = slots[t] / cache.block_size, offset = slots[t] % cache.block_size;
        for (int64_t h = 0; h < cache.kv_heads; h++) {
            int64_t row = (block * cache.kv_heads + h) * cache.block_size + offset;
            float *content = cache.data + row * 2 * cache.size;
            memcpy(content, key + t * key_stride + h * cache.size, bytes);
            memcpy(content + cache.size, value + t * value_stride + h * cache.size, bytes);
        }
    }
}

/* One KV head of one request: everything that a thread needs for its piece of work. */
typedef struct {
    float *out;
    const float *query, *cache;
    const int32_t *blocks;
    float *scores; /* [group, len - first] */
    int64_t group, size, first, len, block_size, block_stride;
    float scale, cap;
} piece;

/* The tokens of a piece lie in blocks: runs the code for each with `base`, its first token, and [begin, end) in it. */
#define FOR_EACH_BLOCK(p, ...)                                                                                         \
    for (int64_t base = (p).first - (p).first % (p).block_size; base < (p).len; base += (p).block_size) {              \
        const float *block = (p).cache + (p).blocks[base / (p).block_size] * (p).block_stride;                         \
        int64_t begin = base < (p).first ? (p).first - base : 0;                                                       \
        int64_t end = (p).len - base < (p).block_size ? (p).len - base : (p).block_size;                               \
        __VA_ARGS__                                                                                                    \
    }

ALWAYS_INLINE void score(piece p, int64_t size)
{
    int64_t width = p.len - p.first;
    FOR_EACH_BLOCK(p, for (int64_t t = begin; t < end; t++) {
        const float *key = block + t * 2 * size;
        for (int64_t g = 0; g < p.group; g++) {
            const float *query = p.query + g * size;
            float sum = 0;
            for (int64_t i = 0; i < size; i++)
                sum += query[i] * key[i];
            p.scores[g * width + base + t - p.first] = sum * p.scale;
        }
    })
}

ALWAYS_INLINE void softmax(piece p)
{
    int64_t width = p.len - p.first;
    for (int64_t g = 0; g < p.group; g++) {
        float *scores = p.scores + g * width, total = 0, top;
        if (p.cap > 0)
            for (int64_t t = 0; t < width; t++)
                scores[t] = p.cap * tanhf(scores[t] / p.cap);
        top = scores[0];
        for (int64_t t = 1; t < width; t++)
            top = scores[t] > top ? scores[t] : top;
        for (int64_t t = 0; t < width; t++) {
            scores[t] = expf(scores[t] - top);
            total += scores[t];
        }
        float factor = 1.0f / total;
        for (int64_t t = 0; t < width; t++)
            scores[t] *= factor;
    }
}

ALWAYS_INLINE void accumulate(piece p, int64_t size)
{
    int64_t width = p.len - p.first;
    memset(p.out, 0, sizeof(float) * (size_t)(p.group * size));
    FOR_EACH_BLOCK(p, for (int64_t g = 0; g < p.group; g++) {
        float *out = p.out + g * size;
        const float *weights = p.scores + g * width + base - p.first;
        int64_t t = begin;
        for (; t + 4 <= end; t += 4) {
            const float *value = block + t * 2 * size + size, *w = weights + t;
            for (int64_t i = 0; i < size; i++)
                out[i] += w[0] * value[i] + w[1] * value[i + 2 * size] + w[2] * value[i + 4 * size] +
                          w[3] * value[i + 6 * size];
        }
        for (; t < end; t++) {
            const float *value = block + t * 2 * size + size;
            for (int64_t i = 0; i < size; i++)
                out[i] += weights[t] * value[i];
        }
    })
}

ALWAYS_INLINE void attend_sized(piece p, int64_t size)
{
    score(p, size);
    softmax(p);
    accumulate(p, size);
}

EACH_PROCESSOR
static void attend(piece p)
{
    /* Loops of known length are unrolled. */
    switch (p.size) {
    case 64:
        attend_sized(p, 64);
        break;
    case 128:
        attend_sized(p, 128);
        break;
    default:
        attend_sized(p, p.size);
    }
}

int paged_decode(float *out, const float *query, kv_cache cache, decode_batch batch, int threads)
{
    int64_t head_stride = cache.block_size * 2 * cache.size;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *scores = malloc(sizeof(float) * (size_t)(batch.group * batch.max_len));
        failed = scores == NULL;
#pragma omp for collapse(2) schedule(static)
        for (int64_t i = 0; i < batch.count; i++)
            for (int64_t h = 0; h < cache.kv_heads; h++) {
                if (!scores)
                    continue;
                int64_t row = batch.rows[i], heads = h * batch.group * cache.size, len = batch.lens[row];
                piece p = {
                    .out = out + batch.tokens[i] * batch.out_stride + heads,
                    .query = query + batch.tokens[i] * batch.query_stride + heads,
                    .cache = cache.data + h * head_stride,
                    .blocks = batch.tables + row * batch.table_stride,
                    .scores = scores,
                    .group = batch.group,
                    .size = cache.size,
                    .first = batch.window > 0 && len > batch.window ? len - batch.window : 0,
                    .len = len,
                    .block_size = cache.block_size,
                    .block_stride = cache.kv_heads * head_stride,
                    .scale = batch.scale,
                    .cap = batch.cap,
                };
                attend(p);
            }
        free(scores);
    }
    return failed ? -1 : 0;
}
