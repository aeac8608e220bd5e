/* Hopper's own instructions (sm_90a), one thin function each: barriers that count bytes, tensor copies, products of a
 * warp group. A kernel that uses them has its body between #ifdef NIB_HOPPER and #endif: other architectures compile it
 * empty, and its launcher asks for sm_90. The emulator's meaning: tests/cuda/emulator/include/emulated_hopper.h.
 *
 * Warp group: 128 threads, the first a multiple of 128. Sums of a 64 x N product: warp w, lane 4 g + t holds
 * c[j][0..1] = C[16 w + g][8 j + 2t..], c[j][2..3] = C[16 w + g + 8][8 j + 2t..]; a left operand in registers lies as
 * for mma.m16n8k16 (intrinsics.cuh), 16 rows a warp.
 */
#ifndef NIB_CUDA_INTRINSICS_HOPPER_CUH
#define NIB_CUDA_INTRINSICS_HOPPER_CUH

#include "cuda/intrinsics.cuh"

#include <cuda.h>

#if defined(NIB_CUDA_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIB_HOPPER
#endif

#define NIB_WARP_GROUP 128

#ifdef NIB_CUDA_EMULATED
#include "emulated_hopper.h"
#else

/* ---- mbarrier: 8 bytes of shared memory. A phase ends when all arrivals and all bytes expected have come ---- */

/* By one thread; others, and copies, may use it after its fence_proxy_async and a barrier of the block. */
__device__ __forceinline__ void mbarrier_init(uint64_t *barrier, unsigned arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/* Arrives, and makes the phase wait for that many more bytes of copies. */
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t *barrier, unsigned bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
/* Until the phase of this parity has ended: 0 for the first, 1 for the second; 1 on a fresh barrier does not wait. */
__device__ __forceinline__ void mbarrier_wait(uint64_t *barrier, unsigned parity)
{
    uint32_t done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (done == 0);
}

/* What this thread wrote to shared memory is seen by tensor copies and by wgmma that start later (after a barrier, if
 * another thread starts them). */
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* True in one lane of the warp, the same one each time. All 32 lanes take part. */
__device__ __forceinline__ bool elect_one()
{
    uint32_t elected;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(elected) : : "memory");
    return elected != 0;
}

/* ---- TMA: boxes of a tensor (cuda/tensor_map.h) to and from shared memory, by one thread ---- */

/* The map's box whose first element has these coordinates, innermost first, to shared memory (a multiple of 128); zeros
 * where it lies outside of the tensor. Its bytes, all of the box, count on the barrier. */
__device__ __forceinline__ void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int2 at)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(at.x), "r"(at.y)
                 : "memory");
}
__device__ __forceinline__ void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int3 at)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(at.x), "r"(at.y), "r"(at.z)
                 : "memory");
}
__device__ __forceinline__ void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int4 at)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(barrier)), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w)
                 : "memory");
}
/* The way back; what lies outside of the tensor is not written. Closed by tma_store_commit. */
__device__ __forceinline__ void tma_store(const CUtensorMap *map, int2 at, const void *shared)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(shared_address(shared)), "r"(at.x), "r"(at.y)
                 : "memory");
}
__device__ __forceinline__ void tma_store(const CUtensorMap *map, int3 at, const void *shared)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(shared_address(shared)), "r"(at.x), "r"(at.y), "r"(at.z)
                 : "memory");
}
__device__ __forceinline__ void tma_store(const CUtensorMap *map, int4 at, const void *shared)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(shared_address(shared)), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w)
                 : "memory");
}
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Until the shared memory of all but the latest N groups of stores has been read. */
template <int N> __device__ __forceinline__ void tma_store_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
/* `bytes` in a row; addresses and bytes are multiples of 16. */
__device__ __forceinline__ void bulk_load(void *shared, const void *global, unsigned bytes, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* ---- wgmma: products of a warp group, on their way while its threads go on ---- */

/* Before the first product of a group: registers and shared memory written so far are its operands. */
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/* Closes the group of the products so far. */
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Until at most N of the latest groups are under way. Until then their operands and sums belong to them. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Keeps the compiler from using sums ahead of a wait before this, or changing them behind a product after it. */
template <int N8> __device__ __forceinline__ void wgmma_settle(float (&c)[N8][4])
{
#pragma unroll
    for (int n = 0; n < N8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[n][i])::"memory");
}

/* How an instruction names and takes its 16 to 128 sums. */
#define NIB_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NIB_NAMES_32 NIB_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NIB_NAMES_64                                                                                                   \
    NIB_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"                    \
                 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NIB_NAMES_128                                                                                                  \
    NIB_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"                    \
                 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"                    \
                 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"        \
                 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define NIB_SUMS_4(i)   "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define NIB_SUMS_16(i)  NIB_SUMS_4(i), NIB_SUMS_4((i) + 1), NIB_SUMS_4((i) + 2), NIB_SUMS_4((i) + 3)
#define NIB_SUMS_32(i)  NIB_SUMS_16(i), NIB_SUMS_16((i) + 4)
#define NIB_SUMS_64(i)  NIB_SUMS_32(i), NIB_SUMS_32((i) + 8)
#define NIB_SUMS_128(i) NIB_SUMS_64(i), NIB_SUMS_64((i) + 16)

/* The arguments behind the sums have the numbers P0, P1, ... */
#define NIB_WGMMA_SS(N, SUMS, P0, P1, P2, P3, P4)                                                                      \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #P2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N                    \
                 "k16.f32.bf16.bf16 {" NIB_NAMES_##SUMS "}, %" #P0 ", %" #P1 ", p, 1, 1, %" #P3 ", %" #P4 "; }"        \
                 : NIB_SUMS_##SUMS(0)                                                                                  \
                 : "l"(a), "l"(b), "r"(accumulate ? 1 : 0), "n"(A_MN_MAJOR ? 1 : 0), "n"(B_MN_MAJOR ? 1 : 0))
#define NIB_WGMMA_RS(N, SUMS, P0, P1, P2, P3, P4, P5, P6)                                                              \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #P5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N                    \
                 "k16.f32.bf16.bf16 {" NIB_NAMES_##SUMS "}, {%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4           \
                                                        ", p, 1, 1, %" #P6 "; }"                                       \
                 : NIB_SUMS_##SUMS(0)                                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate ? 1 : 0),                        \
                   "n"(B_MN_MAJOR ? 1 : 0))

/* c (+)= A B over 16 of k, N = 8 N8 columns: bf16 operands, fp32 sums, zero before if not `accumulate`. a and b name
 * operands in shared memory (wgmma_operand). */
template <bool A_MN_MAJOR, bool B_MN_MAJOR, int N8>
__device__ __forceinline__ void wgmma_bf16_ss(float (&c)[N8][4], uint64_t a, uint64_t b, bool accumulate)
{
    static_assert(N8 == 4 || N8 == 8 || N8 == 16 || N8 == 32, "32, 64, 128 or 256 columns");
    if constexpr (N8 == 4) NIB_WGMMA_SS(32, 16, 16, 17, 18, 19, 20);
    if constexpr (N8 == 8) NIB_WGMMA_SS(64, 32, 32, 33, 34, 35, 36);
    if constexpr (N8 == 16) NIB_WGMMA_SS(128, 64, 64, 65, 66, 67, 68);
    if constexpr (N8 == 32) NIB_WGMMA_SS(256, 128, 128, 129, 130, 131, 132);
}
/* The same with A, 64 x 16, in registers. */
template <bool B_MN_MAJOR, int N8>
__device__ __forceinline__ void wgmma_bf16_rs(float (&c)[N8][4], const uint32_t (&a)[4], uint64_t b, bool accumulate)
{
    static_assert(N8 == 4 || N8 == 8 || N8 == 16 || N8 == 32, "32, 64, 128 or 256 columns");
    if constexpr (N8 == 4) NIB_WGMMA_RS(32, 16, 16, 17, 18, 19, 20, 21, 22);
    if constexpr (N8 == 8) NIB_WGMMA_RS(64, 32, 32, 33, 34, 35, 36, 37, 38);
    if constexpr (N8 == 16) NIB_WGMMA_RS(128, 64, 64, 65, 66, 67, 68, 69, 70);
    if constexpr (N8 == 32) NIB_WGMMA_RS(256, 128, 128, 129, 130, 131, 132, 133, 134);
}
#undef NIB_WGMMA_SS
#undef NIB_WGMMA_RS

/* ---- setmaxnreg: registers of each thread of the warp group, a multiple of 8 from 24 to 256; all its warps ---- */

/* Waits until other warp groups of the block have given enough back. */
template <int REGISTERS> __device__ __forceinline__ void raise_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void lower_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#endif

/* ---- the same code on both ---- */

/* Patterns by which copies spread the 16-byte chunks of rows over banks; rows of 128, 64 or 32 bytes. Chunk c of row r
 * lies at chunk c ^ r % 8 (128 bytes), c ^ r / 2 % 4 (64), c ^ r / 4 % 2 (32). Values as a descriptor has them. */
enum wgmma_swizzle { WGMMA_PLAIN = 0, WGMMA_SWIZZLE_128 = 1, WGMMA_SWIZZLE_64 = 2, WGMMA_SWIZZLE_32 = 3 };

/* The descriptor of an operand in shared memory (PTX ISA, "Matrix Descriptor Format"). The pattern begins at a multiple
 * of eight of its rows. K-major: eight rows lie together, the next eight `stride` bytes on; `leading` is not used but
 * by plain layouts, where it leads to the next 8 of k. MN-major: rows of the pattern hold consecutive m or n, eight of
 * k lie together, the next eight `stride` bytes on, the next row's width of m or n `leading` bytes on. */
__device__ __forceinline__ uint64_t wgmma_operand(const void *at, unsigned leading, unsigned stride,
                                                  wgmma_swizzle swizzle)
{
    auto encode = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
    return encode(shared_address(at)) | encode(leading) << 16 | encode(stride) << 32 |
           static_cast<uint64_t>(swizzle) << 62;
}

#endif
