/* fp16 as CUDA has it, by the compiler's own _Float16: conversions only. */
#ifndef NIB_EMULATOR_CUDA_FP16_H
#define NIB_EMULATOR_CUDA_FP16_H

#include "emulated_device.h"

struct __half {
    unsigned short bits;
};
struct alignas(4) __half2 {
    __half x, y;
};

inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half a) { return static_cast<float>(nib_emulator::bits_as<_Float16>(a.bits)); }
inline __half __float2half_rn(float a) { return {nib_emulator::bits_as<unsigned short>(static_cast<_Float16>(a))}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 a) { return {__half2float(a.x), __half2float(a.y)}; }

#endif
