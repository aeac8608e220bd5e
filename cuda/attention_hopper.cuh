/* Tiles of attention on Hopper (wgmma, bf16 in, fp32 sums): what forward and backward share.
 *
 * A tile in shared memory is some rows of one head, in panels of 64 columns side by side: [panels][rows][64] bf16, a
 * panel's rows of 128 bytes swizzled as TMA writes and wgmma reads them. Head dims 80 and 96 are padded to 128 with the
 * zeros that TMA fills in; rows at and behind T are zeros too.
 *
 * A warp group owns 64 rows; its sums lie as those of mma.m16n8k16, warp by warp, so that rounded sums are the left
 * operand of the next product without leaving the registers. */
#ifndef NIB_CUDA_ATTENTION_HOPPER_CUH
#define NIB_CUDA_ATTENTION_HOPPER_CUH

#include "cuda/attention_tiles.cuh"
#include "cuda/intrinsics_hopper.cuh"
#include "cuda/tensor_map.h"

#define PANEL             NIB_TENSOR_MAP_COLUMNS
#define PADDED(HD)        ((HD) <= 64 ? 64 : (HD) <= 128 ? 128 : 256)
#define GROUP_ROWS        64   /* of a warp group */
#define EIGHT_ROWS        1024 /* bytes from one eight of a panel's rows to the next */
#define PANEL_BYTES(rows) ((rows)*PANEL * 2)

/* By one thread: rows first .. first + ROWS - 1 of a head, whose bytes count on the barrier. */
template <int HD, int ROWS>
__device__ __forceinline__ void load_tile(__nv_bfloat16 *tile, const CUtensorMap *map, uint64_t *barrier, int head,
                                          int first)
{
#pragma unroll
    for (int panel = 0; panel < PADDED(HD) / PANEL; panel++)
        tma_load(tile + panel * ROWS * PANEL, map, barrier, make_int3(panel * PANEL, head, first));
}

/* sum = A B^T: A the 64 rows of a tile of A_ROWS from `a` on, B the N rows of a tile. Starts it; HD columns. */
template <int HD, int A_ROWS, int N8>
__device__ __forceinline__ void group_multiply_rows(float (&sum)[N8][4], const __nv_bfloat16 *a, const __nv_bfloat16 *b)
{
#pragma unroll
    for (int k = 0; k < HD; k += 16) {
        const __nv_bfloat16 *left = a + k / PANEL * A_ROWS * PANEL + k % PANEL;
        const __nv_bfloat16 *right = b + k / PANEL * N8 * 8 * PANEL + k % PANEL;
        wgmma_bf16_ss<false, false>(sum, wgmma_operand(left, 16, EIGHT_ROWS, WGMMA_SWIZZLE_128),
                                    wgmma_operand(right, 16, EIGHT_ROWS, WGMMA_SWIZZLE_128), k > 0);
    }
}

/* sum += A B: A [64, K] in registers, B the K rows of a tile, 8 N8 columns from the panel `b` on. Starts it. */
template <int K, int N8>
__device__ __forceinline__ void group_multiply_columns(float (&sum)[N8][4], const uint32_t (&a)[K / 16][4],
                                                       const __nv_bfloat16 *b)
{
#pragma unroll
    for (int k = 0; k < K; k += 16)
        wgmma_bf16_rs<true>(sum, a[k / 16], wgmma_operand(b + k * PANEL, PANEL_BYTES(K), EIGHT_ROWS, WGMMA_SWIZZLE_128),
                            true);
}

/* Rounds sums to a left operand. */
template <int N8> __device__ __forceinline__ void round_left(uint32_t (&a)[N8 / 2][4], const float (&sum)[N8][4])
{
#pragma unroll
    for (int n = 0; n < N8; n++) {
        a[n / 2][n % 2 * 2] = pack_bf16(sum[n][0], sum[n][1]);
        a[n / 2][n % 2 * 2 + 1] = pack_bf16(sum[n][2], sum[n][3]);
    }
}

/* Rounds the warp's 16 of a group's 64 rows into a tile of 64 rows; factor[0] scales rows g, factor[1] rows g + 8. */
template <int N8>
__device__ __forceinline__ void round_rows(__nv_bfloat16 *tile, const float (&sum)[N8][4], const float (&factor)[2])
{
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
    for (int n = 0; n < N8; n += 2) {
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            m[i] = pack_bf16(sum[n + i / 2][i % 2 * 2] * factor[i % 2], sum[n + i / 2][i % 2 * 2 + 1] * factor[i % 2]);
        const int chunk = n + lane / 16; /* of 8 columns */
        stmatrix_x4(tile + chunk / 8 * GROUP_ROWS * PANEL + row * PANEL + (chunk % 8 ^ row % 8) * 8, m);
    }
}

/* Writes a group's tile of 64 rows, which its warps have filled, to memory; what lies behind T or HD is not written.
 * All threads of the group; `barrier` is a named one of theirs. */
template <int COLUMNS>
__device__ __forceinline__ void store_tile(const CUtensorMap *map, const __nv_bfloat16 *tile, int first_column,
                                           int head, int first_row, unsigned barrier)
{
    fence_proxy_async();
    named_barrier_sync(barrier, NIB_WARP_GROUP);
    if (threadIdx.x % NIB_WARP_GROUP != 0) return;
#pragma unroll
    for (int panel = 0; panel < COLUMNS / PANEL; panel++)
        tma_store(map, make_int3(first_column + panel * PANEL, head, first_row), tile + panel * GROUP_ROWS * PANEL);
    tma_store_commit();
    tma_store_wait_read<0>();
}

/* A buffer of two stages between one producer warp and consumer warps. `filled` and `freed` are pairs of barriers; the
 * use number `use` of the buffer is in stage use % 2. */
__device__ __forceinline__ void wait_filled(uint64_t *filled, int use) { mbarrier_wait(filled + use % 2, use / 2 % 2); }
__device__ __forceinline__ void wait_freed(uint64_t *freed, int use)
{
    mbarrier_wait(freed + use % 2, use / 2 % 2 ^ 1); /* the first two uses find it free */
}
/* By all lanes of a consumer warp, whose products with the stage have been waited for. One lane speaks for all, whose
 * own reads of the stage must lie before that. */
__device__ __forceinline__ void free_stage(uint64_t *freed, int use)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(freed + use % 2);
}

#endif
