/* e4m3 as CUDA has it (OCP 8-bit floating point, 2023): 4 exponent bits of bias 7, 3 of mantissa, no infinity, NaN is
 * all ones, the largest number 448. */
#ifndef NIB_EMULATOR_CUDA_FP8_H
#define NIB_EMULATOR_CUDA_FP8_H

#include "cuda_fp16.h"

typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3 };

struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t __x;
};

namespace nib_emulator
{
float e4m3_to_float(unsigned char bits);
/* To nearest, ties to even; beyond 448 to 448 if saturating, else NaN. */
unsigned char e4m3_from_float(float a, bool saturate);
} // namespace nib_emulator

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float a, __nv_saturation_t saturate, __nv_fp8_interpretation_t)
{
    return nib_emulator::e4m3_from_float(a, saturate == __NV_SATFINITE);
}
/* x in the low byte. */
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 a, __nv_saturation_t saturate,
                                                     __nv_fp8_interpretation_t kind)
{
    return static_cast<unsigned short>(__nv_cvt_float_to_fp8(a.x, saturate, kind) |
                                       __nv_cvt_float_to_fp8(a.y, saturate, kind) << 8);
}
inline __half __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t a, __nv_fp8_interpretation_t)
{
    return __float2half_rn(nib_emulator::e4m3_to_float(a));
}

#endif
