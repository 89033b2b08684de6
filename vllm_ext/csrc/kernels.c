#include "kernels.h"
#include "numbers.h"
#include "processors.h"

#include <math.h>
#include <string.h>

static int is_below(int64_t index, int64_t limit) { return 0 <= index && index < limit; }

static void fail(int *failed)
{
#pragma omp atomic write
    *failed = 1;
}

ALWAYS_INLINE void normalise(void *restrict out, const void *restrict x, void *restrict residual,
                             const void *restrict weight, int64_t size, float eps, element e)
{
    const void *row = x;
    float sum = 0;
    if (residual) {
        for (int64_t i = 0; i < size; i++)
            store(residual, i, load(residual, i, e) + load(x, i, e), e);
        row = residual;
    }
    for (int64_t i = 0; i < size; i++)
        sum += load(row, i, e) * load(row, i, e);
    float factor = 1.0f / sqrtf(sum / (float)size + eps);
    for (int64_t i = 0; i < size; i++)
        store(out, i, load(row, i, e) * factor * load(weight, i, e), e);
}

EACH_PROCESSOR
static void rms_norm_row(void *out, const void *x, void *residual, const void *weight, int64_t size, float eps, element e)
{
    WITH_ELEMENT(e, normalise, out, x, residual, weight, size, eps);
}

void rms_norm(void *out, const void *x, void *residual, const void *weight, int64_t rows, int64_t size, int64_t group,
              int64_t x_stride, float eps, element e)
{
#pragma omp for
    for (int64_t r = 0; r < rows; r++)
        rms_norm_row(at(out, r * size, e), at(x, r / group * x_stride + r % group * size, e),
                     residual ? at(residual, r * size, e) : NULL, weight, size, eps, e);
}

/* Below this expf(-gate) comes near infinity, by which -ffast-math does not divide. At it, silu(gate) is 2e-35 of gate. */
#define LEAST_GATE (-80.0f)

ALWAYS_INLINE void gate_row(void *restrict out, const void *restrict x, int64_t size, element e)
{
    const void *up = at(x, size, e);
    for (int64_t i = 0; i < size; i++) {
        float gate = load(x, i, e);
        store(out, i, gate / (1.0f + expf(-(gate < LEAST_GATE ? LEAST_GATE : gate))) * load(up, i, e), e);
    }
}

EACH_PROCESSOR
static void silu_and_mul_row(void *out, const void *x, int64_t size, element e)
{
    WITH_ELEMENT(e, gate_row, out, x, size);
}

void silu_and_mul(void *out, const void *x, int64_t rows, int64_t size, element e)
{
#pragma omp for
    for (int64_t r = 0; r < rows; r++)
        silu_and_mul_row(at(out, r * size, e), at(x, r * 2 * size, e), size, e);
}

ALWAYS_INLINE void rotate(void *restrict out, const void *restrict x, const void *restrict cosine, int64_t heads,
                          int64_t size, element e)
{
    const void *sine = at(cosine, size, e);
    int64_t half = size / 2;
    for (int64_t h = 0; h < heads; h++, x = at(x, size, e), out = at(out, size, e)) {
        for (int64_t i = 0; i < half; i++)
            store(out, i, load(x, i, e) * load(cosine, i, e) + load(x, i + half, e) * load(sine, i, e), e);
        for (int64_t i = half; i < size; i++)
            store(out, i, load(x, i, e) * load(cosine, i, e) + load(x, i - half, e) * load(sine, i, e), e);
    }
}

EACH_PROCESSOR
static void rotate_row(void *out, const void *x, const void *cache, int64_t heads, int64_t size, element e)
{
    WITH_ELEMENT(e, rotate, out, x, cache, heads, size);
}

void rotary_embedding(void *out, const void *x, const int64_t *positions, const void *cache, int64_t rows, int64_t heads,
                      int64_t size, int64_t x_stride, int64_t limit, element e, int *failed)
{
#pragma omp for
    for (int64_t r = 0; r < rows; r++)
        if (is_below(positions[r], limit))
            rotate_row(at(out, r * heads * size, e), at(x, r * x_stride, e), at(cache, positions[r] * 2 * size, e), heads,
                       size, e);
        else
            fail(failed);
}

void embedding(void *out, const int64_t *ids, const void *table, int64_t count, int64_t rows, int64_t size, element e,
               int *failed)
{
#pragma omp for
    for (int64_t i = 0; i < count; i++)
        if (is_below(ids[i], rows))
            memcpy(at(out, i * size, e), at(table, ids[i] * size, e), bytes_of(size, e));
        else
            fail(failed);
}

void reshape_and_cache(kv_cache cache, const void *key, const void *value, const int64_t *slots, int64_t tokens,
                       int64_t key_stride, int64_t value_stride, int64_t blocks, int *failed)
{
    element e = cache.element;
    size_t bytes = bytes_of(cache.size, e);
#pragma omp for
    for (int64_t t = 0; t < tokens; t++) {
        if (!is_below(slots[t], blocks * cache.block_size)) {
            fail(failed);
            continue;
        }
        int64_t block = slots[t] / cache.block_size, offset = slots[t] % cache.block_size;
        for (int64_t h = 0; h < cache.kv_heads; h++) {
            int64_t row = (block * cache.kv_heads + h) * cache.block_size + offset;
            void *content = at(cache.data, row * 2 * cache.size, e);
            memcpy(content, at(key, t * key_stride + h * cache.size, e), bytes);
            memcpy(at(content, cache.size, e), at(value, t * value_stride + h * cache.size, e), bytes);
        }
    }
}
