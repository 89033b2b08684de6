/* Attention of many query tokens over the paged cache, in tiles: some query rows times a span of keys, with a softmax
   that is corrected from span to span. */
#include "kernels.h"
#include "numbers.h"
#include "processors.h"
#include "softmax.h"

#include <math.h>
#include <string.h>

/* Rows of a product that are computed together, in registers. */
#define ROWS 12
/* Query rows that a thread takes at once; they share what is gathered from the cache. A multiple of LANES. */
#define TILE 128
/* Keys that are scored, weighed and accumulated together: their scores stay in the first cache. */
#define SPAN 96
/* Larger heads have fewer of both, as all of it lies on the stack. */
#define USUAL_SIZE 128

/* Query rows [begin, end) of one KV head of one request; row r is token r / group, query head r % group of the KV
   head. `context` tokens stand in the cache before the first token. */
typedef struct {
    void *out;
    const void *query, *cache;
    const int32_t *blocks;
    int64_t begin, end, span, group, size, context, window, block_size, block_stride, query_stride, out_stride;
    float scale, cap; /* see by_powers_of_2() */
    element element;
} tile;

ALWAYS_INLINE void copy(float *restrict out, const void *restrict source, int64_t count, element e)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = load(source, i, e);
}

EACH_PROCESSOR
static void copy_numbers(float *out, const void *source, int64_t count, element e)
{
    WITH_ELEMENT(e, copy, out, source, count);
}

/* Keys and values of tokens [first, first + count), [count, 2 * size], from their blocks. */
static void gather(float *content, tile t, int64_t first, int64_t count)
{
    for (int64_t token = first; token < first + count;) {
        int64_t offset = token % t.block_size, tokens = t.block_size - offset;
        tokens = tokens < first + count - token ? tokens : first + count - token;
        int64_t place = t.blocks[token / t.block_size] * t.block_stride + offset * 2 * t.size;
        copy_numbers(content + (token - first) * 2 * t.size, at(t.cache, place, t.element), tokens * 2 * t.size, t.element);
        token += tokens;
    }
}

#if BUILT_FOR(4)
#define NAME(x) x##_v4
#define TARGET __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#define LANES 16
#include "prefill_tile.h"
#endif

#if BUILT_FOR(3)
#define NAME(x) x##_v3
#define TARGET __attribute__((target("arch=x86-64-v3")))
#define LANES 8
#include "prefill_tile.h"
#endif

#define NAME(x) x##_any
#define TARGET
#define LANES 4
#include "prefill_tile.h"

static void (*attend_here(void))(tile)
{
#if BUILT_FOR(4)
    if (__builtin_cpu_supports("x86-64-v4"))
        return attend_v4;
#endif
#if BUILT_FOR(3)
    if (__builtin_cpu_supports("x86-64-v3"))
        return attend_v3;
#endif
    return attend_any;
}

static int64_t num_rows(const attention_batch *batch, int64_t i)
{
    const int32_t *start = batch->starts + batch->rows[i];
    return (start[1] - start[0]) * batch->group;
}

/* Out of `most`, as many as fit for heads of this size: a multiple of `step`. */
static int64_t fitting(int64_t most, int64_t step, int64_t size)
{
    int64_t count = most * USUAL_SIZE / size / step * step;
    return count < step ? step : count < most ? count : most;
}

/* Query rows [begin, begin + most) of request number i and one KV head, or those up to its end. */
static tile tile_at(const attention_batch *batch, kv_cache cache, int64_t i, int64_t head, int64_t begin, int64_t most)
{
    int64_t row = batch->rows[i], start = batch->starts[row], rows = num_rows(batch, i);
    int64_t head_stride = cache.block_size * 2 * cache.size, heads = head * batch->group * cache.size;
    element e = cache.element;
    return (tile){
        .out = at(batch->out, start * batch->out_stride + heads, e),
        .query = at(batch->query, start * batch->query_stride + heads, e),
        .cache = at(cache.data, head * head_stride, e),
        .blocks = batch->tables + row * batch->table_stride,
        .begin = begin,
        .end = begin + most < rows ? begin + most : rows,
        .span = fitting(SPAN, ROWS, cache.size),
        .group = batch->group,
        .size = cache.size,
        .context = batch->lens[row] - rows / batch->group,
        .window = batch->window,
        .block_size = cache.block_size,
        .block_stride = cache.kv_heads * head_stride,
        .query_stride = batch->query_stride,
        .out_stride = batch->out_stride,
        .scale = batch->scale,
        .cap = batch->cap,
        .element = e,
    };
}

void paged_attention_prefill(kv_cache cache, attention_batch batch)
{
    batch = by_powers_of_2(batch);
    void (*attend)(tile) = attend_here();
    int64_t most = fitting(TILE, 16, cache.size), total = 0;
    for (int64_t i = 0; i < batch.count; i++)
        total += (num_rows(&batch, i) + most - 1) / most * cache.kv_heads;
    /* A thread meets the tiles in their order: it finds a tile's request by going on from the one before. */
    int64_t request = 0, before = 0, tiles = 0;
#pragma omp for schedule(monotonic : dynamic)
    for (int64_t i = 0; i < total; i++) {
        while (tiles = (num_rows(&batch, request) + most - 1) / most, i >= before + tiles * cache.kv_heads)
            before += tiles * cache.kv_heads, request++;
        /* The last tile of a request has the most keys. */
        int64_t number = tiles - 1 - (i - before) / cache.kv_heads, head = (i - before) % cache.kv_heads;
        attend(tile_at(&batch, cache, request, head, number * most, most));
    }
}
