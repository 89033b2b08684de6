/* Attention of one query token per request over the paged cache: one pass, with a softmax that is corrected on the way, so
   that memory is read once and in order. */
#include "kernels.h"
#include "numbers.h"
#include "processors.h"
#include "softmax.h"

#include <math.h>
#include <omp.h>
#include <string.h>

/* Some KV heads of one request: what a thread computes at once. */
typedef struct {
    void *out;
    const void *query, *cache, *after; /* where the next piece begins in the cache, or NULL */
    const int32_t *blocks;
    int64_t kv_heads, group, size, first, len, block_size, block_stride, head_stride;
    float scale, cap; /* see by_powers_of_2() */
    element element;
} piece;

/* Tokens that are scored and accumulated together: a vector of scores, which fits any block size of 16 and more. */
#define SPAN 16
/* Query heads that pass over the cache together, and numbers of theirs, which stay in the first cache of the processor. */
#define HEADS 32
#define NUMBERS 2048
/* Pieces for each thread, if there are as many: requests are of different lengths. */
#define PIECES 4
/* Bytes in a line of the cache of the processor. */
#define CACHE_LINE 64

/* Up to SPAN tokens of a KV head that follow each other in memory, [tokens, 2 * size]. */
typedef struct {
    const void *content;
    int64_t tokens;
} span;

ALWAYS_INLINE span span_at(piece p, int64_t token, int64_t head, element e)
{
    int64_t offset = token % p.block_size, tokens = p.block_size - offset;
    tokens = tokens < SPAN ? tokens : SPAN;
    int64_t block = p.blocks[token / p.block_size] * p.block_stride;
    return (span){at(p.cache, block + head * p.head_stride + offset * 2 * p.size, e),
                  tokens < p.len - token ? tokens : p.len - token};
}

/* The processor foresees reads within a block only. So while the query heads score a span, each fetches its part of
   the next one: bytes [begin, end) of each token's. Many fetches at once would stop it. */
typedef struct {
    const char *content; /* NULL where nothing follows */
    int64_t bytes, begin, end;
} fetch;

ALWAYS_INLINE void score(float *restrict scores, const float *restrict query, span s, fetch next, float cap, int64_t size,
                         element e)
{
    for (int64_t t = 0; t < s.tokens; t++) {
        const void *key = at(s.content, t * 2 * size, e);
        float sum = 0;
        if (next.content)
            for (int64_t i = next.begin; i < next.end; i += CACHE_LINE)
                __builtin_prefetch(next.content + t * next.bytes + i, 0, 2);
        for (int64_t i = 0; i < size; i++)
            sum += query[i] * load(key, i, e);
        scores[t] = sum;
    }
    if (cap > 0)
        for (int64_t t = 0; t < s.tokens; t++)
            scores[t] = cap * tanhf(scores[t]);
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

ALWAYS_INLINE void accumulate(float *restrict sums, float factor, const float *restrict weights, span s, int64_t size,
                              element e)
{
    for (int64_t i = 0; i < size; i++)
        sums[i] *= factor;
    int64_t t = 0;
    for (; t + 4 <= s.tokens; t += 4) {
        const void *value = at(s.content, t * 2 * size + size, e);
        const float *w = weights + t;
        for (int64_t i = 0; i < size; i++)
            sums[i] += w[0] * load(value, i, e) + w[1] * load(value, i + 2 * size, e) +
                       w[2] * load(value, i + 4 * size, e) + w[3] * load(value, i + 6 * size, e);
    }
    for (; t < s.tokens; t++) {
        const void *value = at(s.content, t * 2 * size + size, e);
        for (int64_t i = 0; i < size; i++)
            sums[i] += weights[t] * load(value, i, e);
    }
}

/* A span in float32, at `wide`. */
ALWAYS_INLINE span widened(float *restrict wide, span s, int64_t size, element e)
{
    for (int64_t i = 0; i < s.tokens * 2 * size; i++)
        wide[i] = load(s.content, i, e);
    return (span){wide, s.tokens};
}

/* How many query heads pass over the cache together. */
ALWAYS_INLINE int64_t heads_of_pass(int64_t size)
{
    int64_t heads = NUMBERS / size;
    return heads > HEADS ? HEADS : heads > 1 ? heads : 1;
}

/* Query heads [begin, end) of each KV head, in one pass over the cache, whose elements are `e`; they are computed with as
   `of`. The heads of a block lie side by side: a span of each in turn is memory in order, which is read faster. */
ALWAYS_INLINE void attend_heads(piece p, int64_t begin, int64_t end, int64_t size, element e, element of)
{
    int64_t parts = end - begin, bytes = (int64_t)bytes_of(2 * size, e), most = heads_of_pass(size);
    int64_t heads = p.kv_heads * parts; /* side by side: a piece of several KV heads has all query heads of each */
    float top[HEADS], total[HEADS] = {0}, queries[most * size], sums[most * size], wide[SPAN * 2 * size];
    for (int i = 0; i < HEADS; i++)
        top[i] = LOWEST;
    for (int64_t i = 0; i < heads * size; i++) {
        queries[i] = load(p.query, begin * size + i, e) * p.scale;
        sums[i] = 0;
    }
    span s = span_at(p, p.first, 0, e);
    for (int64_t token = p.first; token < p.len;) {
        int64_t tokens = s.tokens;
        for (int64_t h = 0; h < p.kv_heads; h++) {
            span next = h + 1 < p.kv_heads       ? span_at(p, token, h + 1, e)
                        : token + tokens < p.len ? span_at(p, token + tokens, 0, e)
                                                 : (span){p.after, 0};
            span seen = of == e ? s : widened(wide, s, size, e);
            for (int64_t g = 0; g < parts; g++) {
                float scores[SPAN];
                int64_t i = h * parts + g;
                fetch ahead = {next.content, bytes, bytes * g / parts, bytes * (g + 1) / parts};
                score(scores, queries + i * size, seen, ahead, p.cap, size, of);
                float factor = weigh(scores, top + i, total + i);
                accumulate(sums + i * size, factor, scores, seen, size, of);
            }
            s = next;
        }
        token += tokens;
    }
    for (int64_t g = 0; g < heads; g++)
        for (int64_t i = 0; i < size; i++)
            store(p.out, (begin + g) * size + i, sums[g * size + i] * (1.0f / total[g]), e);
}

ALWAYS_INLINE void attend_sized(piece p, int64_t size, element e)
{
    int64_t most = heads_of_pass(size);
    /* Heads that share keys and values share their conversion; for one head it is quicker on the way. */
    if (p.group == 1)
        attend_heads(p, 0, 1, size, e, e);
    else
        for (int64_t begin = 0; begin < p.group; begin += most)
            attend_heads(p, begin, begin + most < p.group ? begin + most : p.group, size, e, FLOAT32);
}

/* Loops of known length are unrolled. */
EACH_PROCESSOR
static void attend(piece p)
{
    switch (p.size) {
    case 64:
        WITH_ELEMENT(p.element, attend_sized, p, 64);
        break;
    case 128:
        WITH_ELEMENT(p.element, attend_sized, p, 128);
        break;
    default:
        WITH_ELEMENT(p.element, attend_sized, p, p.size);
    }
}

/* Of how many pieces a request consists, where each has up to `kv_heads` heads. */
static int64_t pieces_of(kv_cache cache, int64_t kv_heads) { return (cache.kv_heads + kv_heads - 1) / kv_heads; }

static piece piece_of(kv_cache cache, attention_batch batch, int64_t kv_heads, int64_t number)
{
    element e = cache.element;
    int64_t pieces = pieces_of(cache, kv_heads), i = number / pieces, begin = number % pieces * kv_heads;
    int64_t head_stride = cache.block_size * 2 * cache.size;
    int64_t row = batch.rows[i], heads = begin * batch.group * cache.size, len = batch.lens[row];
    return (piece){
        .out = at(batch.out, batch.tokens[i] * batch.out_stride + heads, e),
        .query = at(batch.query, batch.tokens[i] * batch.query_stride + heads, e),
        .cache = at(cache.data, begin * head_stride, e),
        .blocks = batch.tables + row * batch.table_stride,
        .kv_heads = cache.kv_heads - begin < kv_heads ? cache.kv_heads - begin : kv_heads,
        .group = batch.group,
        .size = cache.size,
        .first = batch.window > 0 && len > batch.window ? len - batch.window : 0,
        .len = len,
        .block_size = cache.block_size,
        .block_stride = cache.kv_heads * head_stride,
        .head_stride = head_stride,
        .scale = batch.scale,
        .cap = batch.cap,
        .element = e,
    };
}

/* KV heads of a piece: as many as pass together, but so few that there are pieces for all threads. */
static int64_t kv_heads_of_piece(kv_cache cache, attention_batch batch)
{
    int64_t heads = heads_of_pass(cache.size) / batch.group;
    heads = heads > cache.kv_heads ? cache.kv_heads : heads > 1 ? heads : 1;
    while (heads > 1 && batch.count * pieces_of(cache, heads) < PIECES * omp_get_num_threads())
        heads = (heads + 1) / 2;
    return heads;
}

void paged_attention_decode(kv_cache cache, attention_batch batch)
{
    batch = by_powers_of_2(batch);
    int64_t kv_heads = kv_heads_of_piece(cache, batch), count = batch.count * pieces_of(cache, kv_heads);
#pragma omp for
    for (int64_t number = 0; number < count; number++) {
        piece p = piece_of(cache, batch, kv_heads, number);
        if (number + 1 < count) {
            piece next = piece_of(cache, batch, kv_heads, number + 1);
            p.after = span_at(next, next.first, 0, next.element).content;
        }
        attend(p);
    }
}
