/* bfloat16 as CUDA has it, without its implicit conversions and operators: kernels compute in fp32 and say so. */
#ifndef NIB_EMULATOR_CUDA_BF16_H
#define NIB_EMULATOR_CUDA_BF16_H

#include "emulated_device.h"

struct __nv_bfloat16 {
    unsigned short bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline float __bfloat162float(__nv_bfloat16 a) { return __uint_as_float(static_cast<unsigned>(a.bits) << 16); }
/* To nearest, ties to even; a NaN becomes CUDA's canonical one. */
inline __nv_bfloat16 __float2bfloat16_rn(float a)
{
    unsigned bits = __float_as_uint(a);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float a) { return __float2bfloat16_rn(a); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {__bfloat162float(a.x), __bfloat162float(a.y)}; }

#endif
