/* e4m3, the 8-bit floating point of matrix products: 4 bits of exponent, 3 of mantissa, no infinity, the largest number
 * 448 (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
 *
 * Scales are powers of two. A number of the format is a floating-point number, so a scale that fits the row's largest
 * magnitude only to within a factor of two costs nothing but a binade at the bottom; and what is multiplied with it,
 * before or after a sum, by the matrix product or by a kernel behind it, is not rounded: every way gives the same bits.
 */
#ifndef NIB_CUDA_E4M3_CUH
#define NIB_CUDA_E4M3_CUH

#include "cuda/intrinsics.cuh"

#include <cuda_fp8.h>

/* Two e4m3 in the low half of a word, each to nearest even. */
__device__ __forceinline__ uint32_t pack_e4m3(float low, float high)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ float e4m3_to_float(uint8_t x)
{
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(x, __NV_E4M3)));
}

/* The bits of the smallest power of two, of those whose inverse fp32 holds, with which |largest| / scale is at most 448
 * = 1.75 * 2^8; NaN if `largest` is no number or infinite. bits: of |largest|, as fp32. */
__device__ __forceinline__ uint32_t e4m3_scale_bits(uint32_t bits)
{
    if (bits >= 0x7f800000u) return 0x7fc00000u;
    const int exponent = (int)(bits >> 23) - ((bits & 0x7fffffu) > 0x600000u ? 7 : 8);
    return (uint32_t)(exponent < 1 ? 1 : exponent) << 23;
}

/* 1 / scale, exact: the exponent's opposite. NaN stays NaN. */
__device__ __forceinline__ float e4m3_inverse(uint32_t scale_bits)
{
    return __uint_as_float(scale_bits >= 0x7f800000u ? scale_bits : 0x7f000000u - scale_bits);
}

#endif
