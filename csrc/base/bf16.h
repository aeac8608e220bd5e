/* bfloat16 and float16 conversions, round to nearest even. Header-only: they sit in inner loops. */
#ifndef NIB_BF16_H
#define NIB_BF16_H

#include <stdint.h>
#include <string.h>

typedef struct {
    uint16_t bits;
} nib_bf16;
typedef struct {
    uint16_t bits;
} nib_f16;

static inline float nib_bf16_to_float(nib_bf16 x)
{
    uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline nib_bf16 nib_bf16_from_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (nib_bf16){(uint16_t)((bits >> 16) | 0x40)}; /* quiet NaN */
    return (nib_bf16){(uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

float nib_f16_to_float(nib_f16 x);
nib_f16 nib_f16_from_float(float x);

#endif
