/* What tensors consist of. Kernels compute in float32 and convert where they load and store: rounded once, to the nearest.
   Where the element is a constant, these are an instruction or a few, and loops over them become vectors. */
#ifndef VLLM_EXT_NUMBERS_H
#define VLLM_EXT_NUMBERS_H

#include "kernels.h"
#include "processors.h"

#include <stdint.h>
#include <string.h>

/* The call of an inlined function whose last argument is the element, as a constant. */
#define WITH_ELEMENT(e, function, ...)                                                                                 \
    ((e) == FLOAT32    ? function(__VA_ARGS__, FLOAT32)                                                                \
     : (e) == BFLOAT16 ? function(__VA_ARGS__, BFLOAT16)                                                               \
                       : function(__VA_ARGS__, FLOAT16))

/* Bytes of `count` numbers. */
ALWAYS_INLINE size_t bytes_of(int64_t count, element e) { return (size_t)count * (e == FLOAT32 ? 4 : 2); }

/* The address of number i. */
ALWAYS_INLINE void *at(const void *numbers, int64_t i, element e)
{
    return (char *)(uintptr_t)numbers + i * (e == FLOAT32 ? 4 : 2);
}

ALWAYS_INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

ALWAYS_INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

/* What an exponent of float16 is to be raised by, to be one of float32. */
#define RAISED (112u << 23)

/* Compilers make no vectors of the processor's own conversions. */
ALWAYS_INLINE float from_float16(uint16_t half)
{
    uint32_t bits = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    float normal = float_of(bits + (bits < 31u << 23 ? RAISED : 2 * RAISED)); /* or infinite, or NaN */
    float small = float_of(bits + RAISED + (1u << 23)) - 0x1p-14f;
    return float_of(bits_of(bits < 1u << 23 ? small : normal) | sign);
}

ALWAYS_INLINE uint16_t to_float16(float x)
{
    uint32_t bits = bits_of(x) & 0x7fffffff, sign = bits_of(x) >> 16 & 0x8000;
    uint32_t half = (bits - RAISED + 0xfff + (bits >> 13 & 1)) >> 13;
    half = bits < RAISED + (1u << 23) ? bits_of(float_of(bits) + 0.5f) - bits_of(0.5f) : half;
    half = bits < 0x477ff000 ? half : 0x7c00; /* 65520 and more: infinite */
    half = bits > 0x7f800000 ? 0x7e00 : half;
    return (uint16_t)(half | sign);
}

ALWAYS_INLINE float load(const void *numbers, int64_t i, element e)
{
    if (e == FLOAT32)
        return ((const float *)numbers)[i];
    uint16_t half = ((const uint16_t *)numbers)[i];
    return e == BFLOAT16 ? float_of((uint32_t)half << 16) : from_float16(half);
}

/* Rounded to the nearest, and between two to the even one. */
ALWAYS_INLINE void store(void *numbers, int64_t i, float x, element e)
{
    uint32_t bits = bits_of(x);
    if (e == FLOAT32)
        ((float *)numbers)[i] = x;
    else
        ((uint16_t *)numbers)[i] = e == BFLOAT16 ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : to_float16(x);
}

#endif
