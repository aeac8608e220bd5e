/* The instructions that CUDA C++ has no name for, one thin function each; with intrinsics_hopper.cuh the only PTX.
 *
 * A kernel's source has two meanings: nvcc compiles it for a GPU, and g++ for the emulator that tests run on, which
 * brings its own meaning of the same functions (tests/cuda/emulator/include/emulated_intrinsics.h).
 *
 * Fragments of a warp's matrix product are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16": lane = 4 g + t
 * holds a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]   (two values of 16 bits
 * each) b0 = B[2t..][g], b1 = B[2t+8..][g]            c[0..1] = C[g][2t..], c[2..3] = C[g+8][2t..] and with values of 8
 * bits (k32) four each at 4t and 4t+16.
 */
#ifndef NIB_CUDA_INTRINSICS_CUH
#define NIB_CUDA_INTRINSICS_CUH

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#ifdef NIB_CUDA_EMULATED
#include "emulated_intrinsics.h"
#else

/* ---- memory ---- */

/* The block's dynamic shared memory, aligned to 1024 bytes. Kernels declare no other. */
template <class T> __device__ __forceinline__ T *dynamic_shared()
{
    extern __shared__ __align__(1024) unsigned char nib_dynamic_shared[];
    return reinterpret_cast<T *>(nib_dynamic_shared);
}

/* 16 or 8 bytes in one access; the address must be a multiple of that. */
__device__ __forceinline__ uint4 load16(const void *from) { return *static_cast<const uint4 *>(from); }
__device__ __forceinline__ uint2 load8(const void *from) { return *static_cast<const uint2 *>(from); }
__device__ __forceinline__ void store16(void *to, uint4 value) { *static_cast<uint4 *>(to) = value; }
__device__ __forceinline__ void store8(void *to, uint2 value) { *static_cast<uint2 *>(to) = value; }

/* From global memory that is read once: not kept in L1. */
__device__ __forceinline__ uint4 load16_stream(const void *from)
{
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(from)));
    return v;
}

__device__ __forceinline__ uint32_t shared_address(const void *at)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

/* 16 bytes from global to shared memory, on their way while the thread goes on; zeros if not valid (the address is then
 * not read). They are there after a wait that covers their group, and for other threads after a barrier behind it. */
__device__ __forceinline__ void cp_async_16(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}
/* Closes the group of this thread's copies so far. */
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until at most N of the latest groups are still on their way. */
template <int N> __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- conversions ---- */

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ __nv_bfloat16 to_bf16(float x) { return __float2bfloat16_rn(x); }
/* Two bf16 in one word, lo in the low half. */
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    return word;
}
__device__ __forceinline__ float2 unpack_bf16(uint32_t word)
{
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
/* 2^x to about 2 ulp; subnormal results are zero. */
__device__ __forceinline__ float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- the warp's matrices: all 32 lanes take part ---- */

/* Four 8 x 8 matrices of 16-bit values; lane 8 i + r names row r of matrix i (16 bytes, aligned). m[i] of lane 4 g + t
 * is row g, columns 2t and 2t+1, of matrix i. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&m)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/* The same of the transposed matrices: column g, rows 2t and 2t+1. */
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&m)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/* The way back of ldmatrix_x4. sm_90 and later. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void stmatrix_x4(void *row, const uint32_t (&m)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(m[0]), "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
}
#endif

/* c += a b, fp32 sums of exact products. */
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_m16n8k16_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* sm_89 and later. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

/* ---- barriers of part of a block: id 1 to 15, threads a multiple of 32 ---- */

__device__ __forceinline__ void named_barrier_sync(unsigned id, unsigned threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/* Counts this thread in, and goes on. */
__device__ __forceinline__ void named_barrier_arrive(unsigned id, unsigned threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#endif

/* ---- the same code on both ---- */

/* Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): the words of base/random.h's
 * nib_philox for this key and counter. */
__device__ __forceinline__ uint4 philox4x32(uint64_t key, uint64_t counter_high, uint64_t counter_low)
{
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    uint4 c = make_uint4(static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
                         static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32));
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        uint32_t high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

#endif
