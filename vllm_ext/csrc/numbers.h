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
    ((e) == BFLOAT16 ? function(__VA_ARGS__, BFLOAT16) : function(__VA_ARGS__, FLOAT32))

/* Bytes of `count` numbers. */
ALWAYS_INLINE size_t bytes_of(int64_t count, element e) { return (size_t)count * (e == BFLOAT16 ? 2 : 4); }

/* The address of number i. */
ALWAYS_INLINE void *at(const void *numbers, int64_t i, element e)
{
    return (char *)(uintptr_t)numbers + i * (e == BFLOAT16 ? 2 : 4);
}

/* The upper half of a float32. */
ALWAYS_INLINE float load(const void *numbers, int64_t i, element e)
{
    if (e == FLOAT32)
        return ((const float *)numbers)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)numbers)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* To the nearest, and between two to the even one. */
ALWAYS_INLINE void store(void *numbers, int64_t i, float x, element e)
{
    if (e == FLOAT32) {
        ((float *)numbers)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    bits += 0x7fff + (bits >> 16 & 1);
    ((uint16_t *)numbers)[i] = (uint16_t)(bits >> 16);
}

#endif
