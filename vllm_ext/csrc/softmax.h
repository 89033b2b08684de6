/* What both kinds of attention need for a softmax. It is computed with powers of 2: compilers call a library for each
   expf() of a loop that they unroll, and that was a quarter of the time. */
#ifndef VLLM_EXT_SOFTMAX_H
#define VLLM_EXT_SOFTMAX_H

#include "kernels.h"
#include "processors.h"

#include <stdint.h>
#include <string.h>

#define LOG2_E 1.44269504f
/* Below every score, and finite, as -ffast-math asks. */
#define LOWEST (-1e30f)

/* A batch whose scores are query * scale * key, or cap * tanh(that); as a power of 2 such a score is a weight. */
static inline attention_batch by_powers_of_2(attention_batch batch)
{
    batch.scale = batch.cap > 0 ? batch.scale / batch.cap : batch.scale * LOG2_E;
    batch.cap *= LOG2_E;
    return batch;
}

/* 2 ** x for x up to 0, within 1e-7 of it; at least the smallest number above 0. The polynomial was fitted on -0.5 to
   0.5, by its relative error. */
ALWAYS_INLINE float power_of_2(float x)
{
    x = x < -126 ? -126 : x;
    int32_t whole = (int32_t)(x - 0.5f), bits;
    float r = x - (float)whole;
    float power = 1.534581158e-4f;
    power = power * r + 1.339993122e-3f;
    power = power * r + 9.618488959e-3f;
    power = power * r + 5.550328777e-2f;
    power = power * r + 2.402264689e-1f;
    power = power * r + 6.931472057e-1f;
    power = power * r + 1.0f;
    memcpy(&bits, &power, sizeof(bits));
    bits += whole * (1 << 23);
    memcpy(&power, &bits, sizeof(bits));
    return power;
}

#endif
