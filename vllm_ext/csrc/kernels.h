/* Kernels for processors. All tensors of a call that hold numbers are of one element, and are dense in their last dimension;
   strides count numbers, not bytes.

   A kernel is called by all threads of a team, with the same arguments, and they share the work; where it returns, that
   of all is done. Outside of a parallel region the team is the thread that calls. */
#ifndef VLLM_EXT_KERNELS_H
#define VLLM_EXT_KERNELS_H

#include <stdint.h>

typedef enum { FLOAT32, BFLOAT16, FLOAT16 } element;

/* out = x / sqrt(mean(x^2) + eps) * weight, by row; with a residual, x is added to it first and it takes x's place. Rows
   of x lie side by side in groups, whose distance is x_stride. */
void rms_norm(void *out, const void *x, void *residual, const void *weight, int64_t rows, int64_t size, int64_t group,
              int64_t x_stride, float eps, element e);

/* out[rows, size] = silu(x[:, :size]) * x[:, size:]. */
void silu_and_mul(void *out, const void *x, int64_t rows, int64_t size, element e);

/* Rotates heads of `size` numbers: cache has by position, below `limit`, the cosines of both halves, then the signed sines.
   A row whose position is none of these stays as it was in out, and *failed is set to 1. */
void rotary_embedding(void *out, const void *x, const int64_t *positions, const void *cache, int64_t rows, int64_t heads,
                      int64_t size, int64_t x_stride, int64_t limit, element e, int *failed);

/* out[i] = table[ids[i]], of a table [rows, size]. Where an id is outside of it, its row of out stays as it was, and
   *failed is set to 1. */
void embedding(void *out, const int64_t *ids, const void *table, int64_t count, int64_t rows, int64_t size, element e,
               int *failed);

/* out[rows]: the first place of the largest of a row's `size` numbers, at least one; NaN is larger than all. */
void argmax(int64_t *out, const void *x, int64_t rows, int64_t size, int64_t x_stride, element e);

/* A layer's cache: [blocks, kv_heads, block_size, 2 * size], key before value. */
typedef struct {
    void *data;
    int64_t kv_heads, block_size, size;
    element element;
} kv_cache;

/* Puts keys and values [tokens, kv_heads, size] where `slots` say: block * block_size + offset, of so many `blocks`. A
   token whose slot is in none of these is put nowhere, and *failed is set to 1. */
void reshape_and_cache(kv_cache cache, const void *key, const void *value, const int64_t *slots, int64_t tokens,
                       int64_t key_stride, int64_t value_stride, int64_t blocks, int *failed);

/* Attention of `count` requests over the cache: number i is row rows[i] of tables and lens. `group` query heads share a
   KV head. A window above 0 hides what is that many tokens back, or more; a cap above 0 bounds the scores softly. */
typedef struct {
    void *out;
    const void *query;
    const int32_t *tables, *lens, *starts; /* starts: for paged_attention_prefill */
    const int64_t *rows, *tokens;          /* tokens: for paged_attention_decode */
    int64_t count, group, table_stride, query_stride, out_stride, window;
    float scale, cap;
} attention_batch;

/* One query token each: that of number i is token tokens[i] of query and out. */
void paged_attention_decode(kv_cache cache, attention_batch batch);

/* Several query tokens each: those of number i are starts[rows[i]] up to starts[rows[i] + 1] of query and out, the last of
   the tokens in its cache. Each sees the tokens up to itself. The longest request should be the first. */
void paged_attention_prefill(kv_cache cache, attention_batch batch);

/* out[m, n] = x[m, k] @ weight.T + bias; bias may be NULL. The weight lies in panels of linear_panel() rows, aligned to 64
   bytes and filled up with zeros, [panels, k, panel]; that of bfloat16 as pairs, [panels, k / 2, panel, 2]. But for float32,
   k and x_stride are even. Where linear_panel() is 0, it cannot run. Where linear_converts() the element, `converted` has
   room for x in float32, [m, k]: it would take longer to convert a number for each panel than to multiply by it. Elsewhere
   it is NULL. */
typedef struct {
    void *out;
    const void *x, *weight, *bias;
    float *converted;
    int64_t m, n, k, x_stride;
    element element;
} linear_args;

int64_t linear_panel(element e);
int linear_converts(element e);
void linear(linear_args a);

/* So few numbers are done before a second thread has begun. */
#define WORTH_A_THREAD 16384

/* `count` draws: number i is from row rows[i] of logits, of `size` tokens each. `scales` are reciprocals of the
   temperatures; top_k outside [1, size) and top_p of 1 leave all tokens. */
typedef struct {
    const float *logits, *top_p;
    const double *scales, *uniform;
    const int64_t *rows, *top_k;
    int64_t count, size, stride;
} draw_batch;

/* out[i]: the token at which the running sum of the probabilities, in the order of the vocabulary, passes uniform[i];
   the likeliest one where NaN or infinity leave no probabilities. Returns 0, and writes nothing, where memory is short.
   No part of a graph, it makes a team of `threads` itself. */
int draw_tokens(int64_t *out, draw_batch batch, int threads);

#endif
