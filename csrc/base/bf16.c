#include "base/bf16.h"

float nib_f16_to_float(nib_f16 x)
{
    uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 0x1f, mantissa = x.bits & 0x3ff;
    float y;
    if (exponent == 0) { /* zero or subnormal: mantissa * 2^-24 exactly */
        y = (float)mantissa * 0x1p-24f;
        return sign ? -y : y;
    }
    uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    memcpy(&y, &bits, 4);
    return y;
}

nib_f16 nib_f16_from_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (nib_f16){(uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff))};
    if (bits >= 0x477ff000u) return (nib_f16){(uint16_t)(sign | 0x7c00)}; /* rounds beyond 65504 */
    if (bits < 0x38800000u) {                                             /* subnormal: let the FPU round at 2^-24 */
        float magnitude, aligned;
        memcpy(&magnitude, &bits, 4);
        aligned = magnitude + 0.5f;
        memcpy(&bits, &aligned, 4);
        return (nib_f16){(uint16_t)(sign | (bits - 0x3f000000u))};
    }
    return (nib_f16){(uint16_t)(sign | ((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13))};
}
