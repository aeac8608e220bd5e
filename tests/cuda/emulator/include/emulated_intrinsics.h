/* The emulated meaning of cuda/intrinsics.cuh, function by function; the contracts stand there. */
#ifndef NIB_EMULATOR_INTRINSICS_H
#define NIB_EMULATOR_INTRINSICS_H

#include "cuda_bf16.h"
#include "emulated_device.h"

namespace nib_emulator
{

void copy_async(Site site, void *shared, const void *global, bool valid);
void commit_copies();
void wait_copies(unsigned pending);
void load_matrices(const char *name, Site site, uint32_t (&m)[4], const void *row, bool transposed);
void store_matrices(const char *name, Site site, void *row, const uint32_t (&m)[4]);
enum class MatrixType { bf16, f16, e4m3 };
void multiply(const char *name, Site site, MatrixType type, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
              uint32_t b1);
void named_barrier(const char *name, Site site, unsigned id, unsigned threads, bool wait);

template <class T> T load(const char *name, Site site, const void *from)
{
    T value;
    check_access(name, site, from, sizeof value, false);
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <class T> void store(const char *name, Site site, void *to, T value)
{
    check_access(name, site, to, sizeof value, true);
    std::memcpy(to, &value, sizeof value);
}

} // namespace nib_emulator

template <class T> T *dynamic_shared() { return static_cast<T *>(nib_emulator::shared_memory()); }

inline uint4 load16(const void *from, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::load<uint4>("load16", site, from);
}
inline uint2 load8(const void *from, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::load<uint2>("load8", site, from);
}
inline uint4 load16_stream(const void *from, nib_emulator::Site site = nib_emulator::Site::here())
{
    return nib_emulator::load<uint4>("load16_stream", site, from);
}
inline void store16(void *to, uint4 value, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::store("store16", site, to, value);
}
inline void store8(void *to, uint2 value, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::store("store8", site, to, value);
}

inline void cp_async_16(void *shared, const void *global, bool valid,
                        nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::copy_async(site, shared, global, valid);
}
inline void cp_async_commit() { nib_emulator::commit_copies(); }
template <int N> void cp_async_wait() { nib_emulator::wait_copies(N); }

inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
inline __nv_bfloat16 to_bf16(float x) { return __float2bfloat16_rn(x); }
inline uint32_t pack_bf16(float lo, float hi)
{
    return to_bf16(lo).bits | static_cast<uint32_t>(to_bf16(hi).bits) << 16;
}
inline float2 unpack_bf16(uint32_t word)
{
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
inline float exp2_approx(float x)
{
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y; /* a NaN stays one */
}

inline void ldmatrix_x4(uint32_t (&m)[4], const void *row, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::load_matrices("ldmatrix_x4", site, m, row, false);
}
inline void ldmatrix_x4_trans(uint32_t (&m)[4], const void *row, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::load_matrices("ldmatrix_x4_trans", site, m, row, true);
}
inline void stmatrix_x4(void *row, const uint32_t (&m)[4], nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::store_matrices("stmatrix_x4", site, row, m);
}
inline void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::multiply("mma_m16n8k16_bf16", site, nib_emulator::MatrixType::bf16, c, a, b0, b1);
}
inline void mma_m16n8k16_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::multiply("mma_m16n8k16_f16", site, nib_emulator::MatrixType::f16, c, a, b0, b1);
}
inline void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::multiply("mma_m16n8k32_e4m3", site, nib_emulator::MatrixType::e4m3, c, a, b0, b1);
}

inline void named_barrier_sync(unsigned id, unsigned threads, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::named_barrier("named_barrier_sync", site, id, threads, true);
}
inline void named_barrier_arrive(unsigned id, unsigned threads, nib_emulator::Site site = nib_emulator::Site::here())
{
    nib_emulator::named_barrier("named_barrier_arrive", site, id, threads, false);
}

#endif
