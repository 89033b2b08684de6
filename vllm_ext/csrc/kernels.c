#include "kernels.h"
#include "processors.h"
#include "softmax.h"

#include <math.h>
#include <string.h>

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

void rms_norm(float *out, const float *x, float *residual, const float *weight, int64_t rows, int64_t size, int64_t group,
              int64_t x_stride, float eps)
{
#pragma omp for
    for (int64_t r = 0; r < rows; r++)
        rms_norm_row(out + r * size, x + r / group * x_stride + r % group * size, residual ? residual + r * size : NULL,
                     weight, size, eps);
}

/* Below this expf(-gate) comes near infinity, by which -ffast-math does not divide. At it, silu(gate) is 2e-35 of gate. */
#define LEAST_GATE (-80.0f)

EACH_PROCESSOR
static void silu_and_mul_row(float *restrict out, const float *restrict x, int64_t size)
{
    const float *gate = x, *up = x + size;
    for (int64_t i = 0; i < size; i++)
        out[i] = gate[i] / (1.0f + expf(-(gate[i] < LEAST_GATE ? LEAST_GATE : gate[i]))) * up[i];
}

void silu_and_mul(float *out, const float *x, int64_t rows, int64_t size)
{
#pragma omp for
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
                      int64_t heads, int64_t size, int64_t x_stride)
{
#pragma omp for
    for (int64_t r = 0; r < rows; r++)
        rotate_row(out + r * heads * size, x + r * x_stride, cache + positions[r] * 2 * size, heads, size);
}

void embedding(float *out, const int64_t *ids, const float *table, int64_t count, int64_t rows, int64_t size, int *failed)
{
#pragma omp for
    for (int64_t i = 0; i < count; i++)
        if (ids[i] >= 0 && ids[i] < rows)
            memcpy(out + i * size, table + ids[i] * size, sizeof(float) * (size_t)size);
        else {
#pragma omp atomic write
            *failed = 1;
        }
}

void store_kv(kv_cache cache, const float *key, const float *value, const int64_t *slots, int64_t tokens,
              int64_t key_stride, int64_t value_stride)
{
    size_t bytes = sizeof(float) * (size_t)cache.size;
#pragma omp for
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

/* One KV head of one request: what a thread computes at once. */
typedef struct {
    float *out;
    const float *query, *cache, *after; /* where the next piece begins in the cache, or NULL */
    const int32_t *blocks;
    int64_t group, size, first, len, block_size, block_stride;
    float scale, cap; /* see by_powers_of_2() */
} piece;

/* Tokens that are scored and accumulated together: a vector of scores, which fits any block size of 16 and more. */
#define SPAN 16
/* Query heads that pass over the cache together; more of them pass again. */
#define HEADS 8
/* Numbers in a line of the cache of the processor. */
#define CACHE_LINE 16

/* Up to SPAN tokens of the cache that follow each other in memory, [tokens, 2 * size]. */
typedef struct {
    const float *content;
    int64_t tokens;
} span;

ALWAYS_INLINE span span_at(piece p, int64_t token)
{
    int64_t offset = token % p.block_size, tokens = p.block_size - offset;
    tokens = tokens < SPAN ? tokens : SPAN;
    return (span){p.cache + p.blocks[token / p.block_size] * p.block_stride + offset * 2 * p.size,
                  tokens < p.len - token ? tokens : p.len - token};
}

/* The processor foresees reads within a block only. So while the heads of a pass score a span, each fetches its part of
   the next one: numbers [begin, end) of each token. Many fetches at once would stop it. */
typedef struct {
    const float *content; /* NULL where nothing follows */
    int64_t begin, end;
} fetch;

ALWAYS_INLINE void score(float *restrict scores, piece p, const float *restrict query, span s, fetch next, int64_t size)
{
    for (int64_t t = 0; t < s.tokens; t++) {
        const float *key = s.content + t * 2 * size;
        float sum = 0;
        if (next.content)
            for (int64_t i = next.begin; i < next.end; i += CACHE_LINE)
                __builtin_prefetch(next.content + t * 2 * size + i, 0, 2);
        for (int64_t i = 0; i < size; i++)
            sum += query[i] * key[i];
        scores[t] = sum * p.scale;
    }
    if (p.cap > 0)
        for (int64_t t = 0; t < s.tokens; t++)
            scores[t] = p.cap * tanhf(scores[t]);
    for (int64_t t = s.tokens; t < SPAN; t++)
        scores[t] = LOWEST;
}

/* Scores to weights, against the highest score so far; what was summed up before has to be multiplied by the result. */
ALWAYS_INLINE float weigh(float *restrict scores, float *restrict top, float *restrict total)
{
    float before = *top, high = before, sum = 0, factor = 1;
    for (int t = 0; t < SPAN; t++)
        high = scores[t] > high ? scores[t] : high;
    for (int t = 0; t < SPAN; t++) {
        scores[t] = power_of_2(scores[t] - high);
        sum += scores[t];
    }
    if (high > before)
        factor = power_of_2(before - high);
    *top = high;
    *total = *total * factor + sum;
    return factor;
}

ALWAYS_INLINE void accumulate(float *restrict out, float factor, const float *restrict weights, span s, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        out[i] *= factor;
    int64_t t = 0;
    for (; t + 4 <= s.tokens; t += 4) {
        const float *value = s.content + t * 2 * size + size, *w = weights + t;
        for (int64_t i = 0; i < size; i++)
            out[i] += w[0] * value[i] + w[1] * value[i + 2 * size] + w[2] * value[i + 4 * size] +
                      w[3] * value[i + 6 * size];
    }
    for (; t < s.tokens; t++) {
        const float *value = s.content + t * 2 * size + size;
        for (int64_t i = 0; i < size; i++)
            out[i] += weights[t] * value[i];
    }
}

/* One pass over the cache, with a softmax that is corrected on the way: memory is read once and in order. */
ALWAYS_INLINE void attend_heads(piece p, int64_t size, int64_t begin, int64_t end)
{
    float top[HEADS], total[HEADS] = {0};
    for (int i = 0; i < HEADS; i++)
        top[i] = LOWEST;
    memset(p.out + begin * size, 0, sizeof(float) * (size_t)((end - begin) * size));
    span s = span_at(p, p.first);
    for (int64_t token = p.first; token < p.len;) {
        span next = token + s.tokens < p.len ? span_at(p, token + s.tokens) : (span){p.after, 0};
        for (int64_t g = begin; g < end; g++) {
            float scores[SPAN];
            int64_t part = g - begin, parts = end - begin;
            fetch ahead = {next.content, 2 * size * part / parts, 2 * size * (part + 1) / parts};
            score(scores, p, p.query + g * size, s, ahead, size);
            float factor = weigh(scores, top + g - begin, total + g - begin);
            accumulate(p.out + g * size, factor, scores, s, size);
        }
        token += s.tokens;
        s = next;
    }
    for (int64_t g = begin; g < end; g++)
        for (int64_t i = 0; i < size; i++)
            p.out[g * size + i] *= 1.0f / total[g - begin];
}

ALWAYS_INLINE void attend_sized(piece p, int64_t size)
{
    for (int64_t begin = 0; begin < p.group; begin += HEADS)
        attend_heads(p, size, begin, begin + HEADS < p.group ? begin + HEADS : p.group);
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

static piece piece_of(kv_cache cache, attention_batch batch, int64_t number)
{
    int64_t i = number / cache.kv_heads, h = number % cache.kv_heads, head_stride = cache.block_size * 2 * cache.size;
    int64_t row = batch.rows[i], heads = h * batch.group * cache.size, len = batch.lens[row];
    return (piece){
        .out = batch.out + batch.tokens[i] * batch.out_stride + heads,
        .query = batch.query + batch.tokens[i] * batch.query_stride + heads,
        .cache = cache.data + h * head_stride,
        .blocks = batch.tables + row * batch.table_stride,
        .group = batch.group,
        .size = cache.size,
        .first = batch.window > 0 && len > batch.window ? len - batch.window : 0,
        .len = len,
        .block_size = cache.block_size,
        .block_stride = cache.kv_heads * head_stride,
        .scale = batch.scale,
        .cap = batch.cap,
    };
}

void paged_decode(kv_cache cache, attention_batch batch)
{
    batch = by_powers_of_2(batch);
    int64_t count = batch.count * cache.kv_heads;
#pragma omp for
    for (int64_t number = 0; number < count; number++) {
        piece p = piece_of(cache, batch, number);
        if (number + 1 < count) {
            piece next = piece_of(cache, batch, number + 1);
            p.after = span_at(next, next.first).content;
        }
        attend(p);
    }
}
