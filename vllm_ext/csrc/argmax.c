#include "kernels.h"
#include "numbers.h"
#include "processors.h"

/* Numbers that are looked at together, before it is asked where the largest of them is. */
#define BLOCK 1024

#define INFINITE 0x7f800000u

ALWAYS_INLINE uint32_t magnitude_of(float x) { return bits_of(x) & 0x7fffffff; }

/* -ffast-math knows of no NaN: it is told by its bits. */
ALWAYS_INLINE int64_t first_of_largest(const void *row, int64_t size, element e)
{
    float high = load(row, 0, e);
    int64_t place = 0;
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        int64_t end = begin + BLOCK < size ? begin + BLOCK : size;
        float of_block = load(row, begin, e);
        uint32_t magnitude = 0;
        for (int64_t i = begin; i < end; i++) {
            float x = load(row, i, e);
            of_block = x > of_block ? x : of_block;
            magnitude = magnitude_of(x) > magnitude ? magnitude_of(x) : magnitude;
        }
        if (magnitude > INFINITE) {
            while (magnitude_of(load(row, begin, e)) <= INFINITE)
                begin++;
            return begin;
        }
        if (of_block > high)
            high = of_block, place = begin;
    }
    while (load(row, place, e) != high)
        place++;
    return place;
}

EACH_PROCESSOR
static int64_t argmax_row(const void *row, int64_t size, element e)
{
    return WITH_ELEMENT(e, first_of_largest, row, size);
}

void argmax(int64_t *out, const void *x, int64_t rows, int64_t size, int64_t x_stride, element e)
{
#pragma omp for
    for (int64_t r = 0; r < rows; r++)
        out[r] = argmax_row(at(x, r * x_stride, e), size, e);
}
