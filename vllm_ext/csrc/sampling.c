#include "kernels.h"
#include "processors.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of which the largest logit, or the sum of weights, is noted, so that most of the row is never read again. */
#define BLOCK 64
/* Below this exp() leaves the normal numbers: such a token is never drawn. */
#define LEAST_EXPONENT (-87.0f)
#define DIGIT 8
#define BINS (1 << DIGIT)

/* -ffast-math may assume that no number is NaN or infinite. So these are told by ranks: integers in the order of the
   numbers, 0 for either zero, with NaN beyond INFINITE on both sides. */
#define INFINITE 0x7f800000

ALWAYS_INLINE int32_t rank_of(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t size = bits & 0x7fffffff, sign = bits >> 31;
    return (size ^ sign) - sign; /* Without a branch: signs cannot be foreseen. */
}

ALWAYS_INLINE float of_rank(int32_t rank)
{
    uint32_t bits = rank < 0 ? 0x80000000u | (uint32_t)-rank : (uint32_t)rank;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

ALWAYS_INLINE int is_finite(int32_t rank) { return -INFINITE < rank && rank < INFINITE; }

/* Of some numbers: the highest rank, and the highest of any sign. */
typedef struct {
    int32_t highest, widest;
} extremes;

ALWAYS_INLINE extremes survey_block(const float *x, int64_t count)
{
    extremes e = {INT32_MIN, 0};
    for (int64_t i = 0; i < count; i++) {
        int32_t rank = rank_of(x[i]), size = rank < 0 ? -rank : rank;
        e.highest = rank > e.highest ? rank : e.highest;
        e.widest = size > e.widest ? size : e.widest;
    }
    return e;
}

/* Loops of known length are unrolled: FUNCTION(..., BLOCK) for all blocks but a shorter last one. */
#define FOR_BLOCK(function, count, ...) ((count) == BLOCK ? function(__VA_ARGS__, BLOCK) : function(__VA_ARGS__, count))

ALWAYS_INLINE int64_t block_size(int64_t begin, int64_t size) { return size - begin < BLOCK ? size - begin : BLOCK; }

/* What a thread needs for a row of `size` tokens in blocks: `tokens` of those that are left, with their scaled logits or
   weights in `values`. */
typedef struct {
    double *sums;
    float *maxima, *values, *rest;
    int32_t *tokens;
} workspace;

static size_t workspace_bytes(int64_t size)
{
    size_t blocks = (size_t)(size + BLOCK - 1) / BLOCK, left = (size_t)size + 1;
    size_t bytes = blocks * (sizeof(double) + sizeof(float)) + left * (2 * sizeof(float) + sizeof(int32_t));
    return (bytes + 63) / 64 * 64;
}

static workspace workspace_at(char *memory, int64_t size)
{
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
    workspace w = {.sums = (double *)memory};
    w.maxima = (float *)(w.sums + blocks);
    w.values = w.maxima + blocks;
    w.rest = w.values + size + 1;
    w.tokens = (int32_t *)(w.rest + size + 1);
    return w;
}

EACH_PROCESSOR
static extremes survey(float *restrict maxima, const float *restrict x, int64_t size)
{
    extremes all = {INT32_MIN, 0};
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        int64_t count = block_size(begin, size);
        extremes e = FOR_BLOCK(survey_block, count, x + begin);
        maxima[begin / BLOCK] = of_rank(e.highest);
        all.highest = e.highest > all.highest ? e.highest : all.highest;
        all.widest = e.widest > all.widest ? e.widest : all.widest;
    }
    return all;
}

/* The logit divided by the temperature, to the last bit: the reciprocal in double is near enough that rounding to float
   gives what a division of floats does. */
ALWAYS_INLINE float scaled(float x, double scale) { return (float)((double)x * scale); }

/* Values that the search of a limit is still about. */
typedef struct {
    const float *values;
    int64_t count;
    uint32_t low;
    uint64_t span;
    int shift, by_value;
} bracket;

/* Weights by rank, from `low`, in BINS bins of 2^shift ranks. Neighbours add to different tables, and so do not wait for
   each other. */
ALWAYS_INLINE void fill_bins(double *restrict bins, bracket b, int by_value)
{
    double tables[2][BINS] = {{0}};
    for (int64_t i = 0; i < b.count; i++) {
        uint32_t offset = (uint32_t)rank_of(b.values[i]) - b.low;
        tables[i & 1][offset >> b.shift] += by_value ? (double)b.values[i] : 1.0;
    }
    for (int i = 0; i < BINS; i++)
        bins[i] = tables[0][i] + tables[1][i];
}

/* The values within the bracket, into `out`, which may be where they are. */
ALWAYS_INLINE bracket narrowed(float *out, bracket b)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < b.count; i++) {
        float value = b.values[i];
        out[kept] = value;
        kept += (uint32_t)rank_of(value) - b.low < b.span;
    }
    b.values = out;
    b.count = kept;
    return b;
}

/* The value at which weights, taken from the largest value down, sum up to `target`; the smallest where they never do.
   A value weighs 1, or itself. *before becomes the sum of all larger ones. Bins get narrower until one holds a single
   value: no order of the values makes it slow, as could happen to a sort. */
EACH_PROCESSOR
static float reach(float *rest, const float *values, int64_t count, int by_value, double target, double *before)
{
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (int64_t i = 0; i < count; i++) {
        int32_t rank = rank_of(values[i]);
        least = rank < least ? rank : least;
        most = rank > most ? rank : most;
    }
    bracket b = {.values = values, .count = count, .low = (uint32_t)least, .span = (uint64_t)((uint32_t)most - (uint32_t)least) + 1};
    while (b.span > (uint64_t)BINS << b.shift)
        b.shift++;
    *before = 0;
    for (;;) {
        double bins[BINS];
        if (by_value)
            fill_bins(bins, b, 1);
        else
            fill_bins(bins, b, 0);
        int bin = BINS - 1, last = 0;
        for (; bin >= 0; bin--) {
            if (bins[bin] <= 0)
                continue;
            last = bin;
            if (*before + bins[bin] >= target)
                break;
            *before += bins[bin];
        }
        if (bin < 0)
            *before -= bins[last];
        b.low += (uint32_t)last << b.shift;
        if (b.shift == 0)
            return of_rank((int32_t)b.low);
        b.span = (uint64_t)1 << b.shift;
        b.shift = b.shift > DIGIT ? b.shift - DIGIT : 0;
        b = narrowed(rest, b);
    }
}

/* The tokens of the top k, a tie with the last of them included, in their order; how many there are. As many blocks as k
   have a logit that is no less than the k-th largest of the blocks' maxima: so little else has to be looked at. */
EACH_PROCESSOR
static int64_t take_top_k(workspace w, const float *x, int64_t size, double scale, int64_t k)
{
    int64_t blocks = (size + BLOCK - 1) / BLOCK, found = 0, kept = 0;
    double before;
    float bound = k > blocks ? -FLT_MAX : scaled(reach(w.rest, w.maxima, blocks, 0, (double)k, &before), scale);
    if (!is_finite(rank_of(bound)))
        bound = -FLT_MAX;
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        if (scaled(w.maxima[begin / BLOCK], scale) < bound)
            continue;
        for (int64_t i = begin; i < begin + block_size(begin, size); i++) {
            float value = scaled(x[i], scale);
            w.values[found] = value;
            w.tokens[found] = (int32_t)i;
            found += value >= bound;
        }
    }
    float last = reach(w.rest, w.values, found, 0, (double)k, &before);
    for (int64_t i = 0; i < found; i++) {
        float value = w.values[i];
        w.values[kept] = value;
        w.tokens[kept] = w.tokens[i];
        kept += value >= last;
    }
    return kept;
}

ALWAYS_INLINE double weigh_block(float *out, const float *x, double scale, float top, int64_t count)
{
    float weights[BLOCK];
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        float exponent = scaled(x[i], scale) - top;
        float weight = expf(exponent > LEAST_EXPONENT ? exponent : LEAST_EXPONENT);
        weights[i] = exponent > LEAST_EXPONENT ? weight : 0.0f;
    }
    for (int64_t i = 0; i < count; i++)
        sum += (double)weights[i];
    memcpy(out, weights, sizeof(float) * (size_t)count);
    return sum;
}

/* out = exp(x * scale - top), with its sums by block; their sum. `out` may be `x`. */
EACH_PROCESSOR
static double weigh(float *out, double *sums, const float *x, int64_t size, double scale, float top)
{
    double total = 0;
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        int64_t count = block_size(begin, size);
        double sum = FOR_BLOCK(weigh_block, count, out + begin, x + begin, scale, top);
        sums[begin / BLOCK] = sum;
        total += sum;
    }
    return total;
}

/* Of all weights those above `least`, in their order; how many there are. */
EACH_PROCESSOR
static int64_t take_above(workspace w, int64_t size, double least)
{
    int64_t kept = 0;
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        if (w.sums[begin / BLOCK] <= least)
            continue;
        for (int64_t i = begin; i < begin + block_size(begin, size); i++) {
            float weight = w.values[i];
            w.values[kept] = weight;
            w.tokens[kept] = (int32_t)i;
            kept += (double)weight > least;
        }
    }
    return kept;
}

/* The fewest of the largest weights whose sum is `target`, in their order, the first of equal ones; how many there are. */
static int64_t take_top_p(workspace w, int64_t count, double target, double *total)
{
    double before, sum = 0;
    int64_t kept = 0;
    float last = reach(w.rest, w.values, count, 1, target, &before);
    for (int64_t i = 0; i < count; i++) {
        float weight = w.values[i];
        if (weight < last || (weight == last && before >= target))
            continue;
        if (weight == last)
            before += (double)weight;
        w.values[kept] = weight;
        w.tokens[kept++] = w.tokens[i];
        sum += (double)weight;
    }
    *total = sum;
    return kept;
}

/* Where the sum of the weights passes `target`; by rounding it may fall short, then the last place that has any. */
static int64_t pass(const float *weights, int64_t count, double sum, double target)
{
    int64_t last = 0;
    for (int64_t i = 0; i < count; i++) {
        if (weights[i] <= 0)
            continue;
        last = i;
        sum += (double)weights[i];
        if (sum > target)
            break;
    }
    return last;
}

static int64_t pass_by_block(workspace w, int64_t size, double target)
{
    int64_t last = 0;
    double sum = 0, before = 0;
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        double more = w.sums[begin / BLOCK];
        if (more <= 0)
            continue;
        last = begin;
        before = sum;
        sum += more;
        if (sum > target)
            break;
    }
    return last + pass(w.values + last, block_size(last, size), before, target);
}

/* The first place of the highest rank, or of NaN where there is any, as everywhere in torch. */
static int64_t most_likely(const float *x, extremes e)
{
    int64_t i = 0;
    if (e.widest > INFINITE)
        while (abs(rank_of(x[i])) <= INFINITE)
            i++;
    else
        while (rank_of(x[i]) != e.highest)
            i++;
    return i;
}

static int64_t draw_in(workspace w, const float *x, int64_t size, double scale, int64_t top_k, double top_p,
                       double uniform)
{
    extremes e = survey(w.maxima, x, size);
    float top = scaled(of_rank(e.highest), scale);
    if (e.widest > INFINITE || !is_finite(e.highest) || !is_finite(rank_of(top)))
        return most_likely(x, e);
    int64_t count = size;
    double total;
    int listed = top_k > 0 && top_k < size;
    if (listed) {
        count = take_top_k(w, x, size, scale, top_k);
        total = weigh(w.values, w.sums, w.values, count, 1.0, top);
    } else {
        total = weigh(w.values, w.sums, x, size, scale, top);
    }
    if (top_p < 1) {
        /* All that weigh no more than this have a share of 1 - top_p at most: the others reach top_p without them. */
        if (!listed)
            count = take_above(w, size, (1 - top_p) * total / (double)size);
        listed = 1;
        count = take_top_p(w, count, top_p * total, &total);
    }
    return listed ? w.tokens[pass(w.values, count, 0, uniform * total)] : pass_by_block(w, size, uniform * total);
}

int draw_tokens(int64_t *out, draw_batch b, int threads)
{
    size_t bytes = workspace_bytes(b.size);
    threads = b.count > 1 && b.count * b.size > WORTH_A_THREAD ? threads : 1;
    char *memory = malloc(bytes * (size_t)threads);
    if (!memory)
        return 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        workspace w = workspace_at(memory + bytes * (size_t)omp_get_thread_num(), b.size);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < b.count; i++)
            out[i] = draw_in(w, b.logits + b.rows[i] * b.stride, b.size, b.scales[i], b.top_k[i], (double)b.top_p[i],
                             b.uniform[i]);
    }
    free(memory);
    return 1;
}
