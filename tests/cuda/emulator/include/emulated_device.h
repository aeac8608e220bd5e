/* What CUDA C++ adds to C++ inside a kernel, under its own names: keywords, indices, barriers, warp operations, atomics
 * and arithmetic. There is no __shared__: kernels take dynamic shared memory (cuda/intrinsics.cuh), which the emulator
 * poisons and bounds. __noinline__ and __CUDA_ARCH__ are not there either.
 */
#ifndef NIB_EMULATOR_DEVICE_H
#define NIB_EMULATOR_DEVICE_H

#include "site.h"
#include "vector_types.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

extern __constinit thread_local uint3 threadIdx, blockIdx;
extern __constinit thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace nib_emulator
{

enum class Shuffle { index, up, down, exclusive_or };
uint64_t shuffle(const char *name, Site site, unsigned mask, uint64_t value, Shuffle kind, unsigned operand, int width);
unsigned ballot(const char *name, Site site, unsigned mask, bool predicate);
enum class Reduction { add, minimum, maximum, and_bits, or_bits, xor_bits };
unsigned reduce(const char *name, Site site, unsigned mask, unsigned value, Reduction kind, bool is_signed);
void sync_threads(Site site);
int sync_threads_vote(const char *name, Site site, int predicate); /* which of and, or, count: by the name */
void sync_warp(Site site, unsigned mask);
void pause();
void *shared_memory();
void check_access(const char *name, Site site, const void *address, unsigned bytes, bool writes);

template <class T>
T shuffle_value(const char *name, Site site, unsigned mask, T value, Shuffle kind, unsigned operand, int width)
{
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = shuffle(name, site, mask, bits, kind, operand, width);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class To, class From> To bits_as(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

/* Any read-modify-write, by compare and swap on the bits. */
template <class T, class Update> T atomic_update(T *address, Update update)
{
    using Bits = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;
    static_assert(sizeof(T) == sizeof(Bits));
    Bits *at = reinterpret_cast<Bits *>(address), old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(at, &old, bits_as<Bits>(update(bits_as<T>(old))), false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
    }
    return bits_as<T>(old);
}

} // namespace nib_emulator

/* ---- barriers and fences ---- */

inline void __syncthreads(nib_emulator::Site site = nib_emulator::Site::here()) { nib_emulator::sync_threads(site); }
inline int __syncthreads_and(int predicate, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::sync_threads_vote("__syncthreads_and", site, predicate);
}
inline int __syncthreads_or(int predicate, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::sync_threads_vote("__syncthreads_or", site, predicate);
}
inline int __syncthreads_count(int predicate, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::sync_threads_vote("__syncthreads_count", site, predicate);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::sync_warp(site, mask);
}
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
/* Waiting for another block's word in memory: others of this block run meanwhile. */
inline void __nanosleep(unsigned) { nib_emulator::pause(); }

/* ---- warps ---- */

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::shuffle_value("__shfl_sync", site, mask, value, nib_emulator::Shuffle::index,
                                       static_cast<unsigned>(lane), width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::shuffle_value("__shfl_up_sync", site, mask, value, nib_emulator::Shuffle::up, delta, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::shuffle_value("__shfl_down_sync", site, mask, value, nib_emulator::Shuffle::down, delta,
                                       width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::shuffle_value("__shfl_xor_sync", site, mask, value, nib_emulator::Shuffle::exclusive_or,
                                       static_cast<unsigned>(lanes), width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::ballot("__ballot_sync", site, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::ballot("__any_sync", site, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::ballot("__all_sync", site, mask, predicate == 0) == 0;
}

#define NIB_EMULATOR_REDUCE(NAME, KIND)                                                                                \
    inline unsigned NAME(unsigned mask, unsigned value, nib_emulator::Site site = nib_emulator::Site::here())          \
    {                                                                                                                  \
        return nib_emulator::reduce(#NAME, site, mask, value, nib_emulator::Reduction::KIND, false);                   \
    }
#define NIB_EMULATOR_REDUCE_SIGNED(NAME, KIND)                                                                         \
    inline int NAME(unsigned mask, int value, nib_emulator::Site site = nib_emulator::Site::here())                    \
    {                                                                                                                  \
        return static_cast<int>(nib_emulator::reduce(#NAME, site, mask, static_cast<unsigned>(value),                  \
                                                     nib_emulator::Reduction::KIND, true));                            \
    }
NIB_EMULATOR_REDUCE(__reduce_add_sync, add)
NIB_EMULATOR_REDUCE(__reduce_min_sync, minimum)
NIB_EMULATOR_REDUCE(__reduce_max_sync, maximum)
NIB_EMULATOR_REDUCE(__reduce_and_sync, and_bits)
NIB_EMULATOR_REDUCE(__reduce_or_sync, or_bits)
NIB_EMULATOR_REDUCE(__reduce_xor_sync, xor_bits)
NIB_EMULATOR_REDUCE_SIGNED(__reduce_add_sync, add)
NIB_EMULATOR_REDUCE_SIGNED(__reduce_min_sync, minimum)
NIB_EMULATOR_REDUCE_SIGNED(__reduce_max_sync, maximum)
#undef NIB_EMULATOR_REDUCE
#undef NIB_EMULATOR_REDUCE_SIGNED

/* ---- atomics: on int, unsigned, unsigned long long, float, double ---- */

template <class T> T atomicAdd(T *address, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T> T atomicSub(T *address, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old - value); });
}
template <class T> T atomicMax(T *address, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T old) { return old > value ? old : value; });
}
template <class T> T atomicMin(T *address, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T old) { return old < value ? old : value; });
}
template <class T> T atomicExch(T *address, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T) { return value; });
}
template <class T> T atomicAnd(T *address, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old & value); });
}
template <class T> T atomicOr(T *address, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <class T> T atomicCAS(T *address, std::common_type_t<T> expected, std::common_type_t<T> value)
{
    return nib_emulator::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}

/* ---- loads and stores with a cache hint ---- */

template <class T> T __ldg(const T *address, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::check_access("__ldg", site, address, sizeof(T), false);
    return *address;
}
template <class T> T __ldcs(const T *address, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::check_access("__ldcs", site, address, sizeof(T), false);
    return *address;
}
template <class T> void __stcs(T *address, T value, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::check_access("__stcs", site, address, sizeof(T), true);
    *address = value;
}

/* ---- arithmetic: the emulated build contracts nothing, so plain operators round as _rn does ---- */

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline int __float2int_rn(float a) { return static_cast<int>(nearbyintf(a)); }
inline int __float2int_rd(float a) { return static_cast<int>(floorf(a)); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? fminf(a, 1.0f) : 0.0f; }

inline unsigned __float_as_uint(float a) { return nib_emulator::bits_as<unsigned>(a); }
inline int __float_as_int(float a) { return nib_emulator::bits_as<int>(a); }
inline float __uint_as_float(unsigned a) { return nib_emulator::bits_as<float>(a); }
inline float __int_as_float(int a) { return nib_emulator::bits_as<float>(a); }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __clz(int a) { return a == 0 ? 32 : __builtin_clz(static_cast<unsigned>(a)); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t bytes = uint64_t{b} << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> (4 * i);
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0; /* the sign, replicated */
        result |= byte << (8 * i);
    }
    return result;
}

#define NIB_EMULATOR_MIN_MAX(T)                                                                                        \
    constexpr T min(T a, T b) { return b < a ? b : a; }                                                                \
    constexpr T max(T a, T b) { return a < b ? b : a; }
NIB_EMULATOR_MIN_MAX(int)
NIB_EMULATOR_MIN_MAX(unsigned)
NIB_EMULATOR_MIN_MAX(long)
NIB_EMULATOR_MIN_MAX(unsigned long)
NIB_EMULATOR_MIN_MAX(long long)
NIB_EMULATOR_MIN_MAX(unsigned long long)
#undef NIB_EMULATOR_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

#endif
