/* Products of many rows with NF4 weights on Hopper, decoded into registers as operand A of wgmma: what y^T = W x^T
 * (nf4_matmul_hopper.cu) and dx^T = W^T dy^T (nf4_matmul_hopper_backward.cu) share.
 *
 * A tile is 128 rows of the left operand, weights, by TOKENS rows of the right one, activations (256, or 128 if there
 * are no more); a block takes every gridDim.x-th tile, left rows first, so that blocks that run together share rows of
 * the right operand, the one of more bytes. The sum goes in steps of 64: first over what stands beside W or below it
 * (cuda/linear_joined.h), whose bf16 come straight from memory, then over W.
 *
 * Block: three warp groups. Of the first, warp 0 is the producer: TMA brings a step's activations [TOKENS][64] bf16,
 * swizzled, and 4 KiB of codes. Warps 1 to 3 restore its 128 absmax in turn, one step each, so that their chain of
 * loads has three steps of time. The other two groups own 64 left rows each: the four products of a step run while the
 * next step is decoded into other registers.
 *
 * Left rows of the products are permuted: rows g and g + 8 of warp w's 16 are its rows 2g and 2g + 1, so that a lane's
 * two sums of a token are neighbours in the result, stored as one word without a bank conflict.
 *
 * Shared memory, 256 rows: 4 stages of activations (32 KiB), of codes (4 KiB) and of absmax (512 B), the result on its
 * way out 64 KiB, the table of nf4_decode.cuh, barriers: 212 KiB. Registers: 56 for the first group, 224 for the
 * others: sums TOKENS / 2, operands 2 x 16, codes 16.
 *
 * What copies and products need of each other: a stage is filled when TMA has counted its bytes in and the lanes of an
 * absmax warp have arrived, and free when all eight consumer warps have waited for their products with it.
 *
 * A Product is a kernel's argument with
 *   left_tiles, tiles, values   of left rows, of all; the table's
 *   steps()                     of a tile
 *   place(i)                    where the i-th tile of left rows lies
 *   fetch(memory, stage, at, token, step)   by one thread: what the step reads, counted on the stage's barrier
 *   absmax(at, step, slot)      for slot 0 .. 127 of the step's
 *   decode(at, left, step, codes, absmax, lane_table, a)   a lane's operands: codes [4 KiB] of the stage, absmax [64]
 *                               of the group's slots, left the first of the group's rows in the tile
 *   out(at)                     map of the result
 *
 * Dettmers et al., "QLoRA", 2023; the decoding beside products as in Frantar et al., "MARLIN", 2024. */
#ifndef NIB_CUDA_NF4_MATMUL_HOPPER_CUH
#define NIB_CUDA_NF4_MATMUL_HOPPER_CUH

#include "cuda/backend.h"
#include "cuda/intrinsics_hopper.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear_parts.cuh"
#include "cuda/nf4_decode.cuh"
#include "cuda/tensor_map.h"
#include "cuda/vector.cuh"

constexpr int NF4_THREADS = 3 * NIB_WARP_GROUP, NF4_STAGES = 4, NF4_CONSUMER_WARPS = 8, NF4_SCALE_WARPS = 3;
constexpr int NF4_LEFT = 128, NF4_GROUP_LEFT = 64, NF4_SUM_STEP = 64;
constexpr int NF4_CODE_BYTES = NF4_LEFT * NF4_SUM_STEP / 2;

/* Where a tile lies. */
struct nf4_tile_place {
    int part, left; /* left: its first row, in the part */
};

/* Shared memory; use number `use` of the stages, counted over all tiles, is in stage use % NF4_STAGES. */
template <int TOKENS> struct nf4_tile_memory {
    static constexpr int RIGHT_BYTES = TOKENS * NF4_SUM_STEP * 2;
    static constexpr int OUT_BYTES = TOKENS * NF4_GROUP_LEFT * 2; /* of a group */
    static constexpr int BYTES = NF4_STAGES * (RIGHT_BYTES + NF4_CODE_BYTES + NF4_LEFT * 4) + 2 * OUT_BYTES +
                                 NF4_TABLE_BYTES + 2 * NF4_STAGES * 8;
    uint8_t *right, *out, *codes;
    float *absmax, *table;
    uint64_t *filled, *freed;

    __device__ nf4_tile_memory()
        : right(dynamic_shared<uint8_t>()), out(right + NF4_STAGES * RIGHT_BYTES), codes(out + 2 * OUT_BYTES),
          absmax(reinterpret_cast<float *>(codes + NF4_STAGES * NF4_CODE_BYTES)), table(absmax + NF4_STAGES * NF4_LEFT),
          filled(reinterpret_cast<uint64_t *>(table + NF4_TABLE_FLOATS)), freed(filled + NF4_STAGES)
    {
    }
    /* By one thread. */
    __device__ void make_barriers() const
    {
        for (int stage = 0; stage < NF4_STAGES; stage++) {
            mbarrier_init(filled + stage, 1 + 32); /* the producer, and the lanes of an absmax warp */
            mbarrier_init(freed + stage, NF4_CONSUMER_WARPS);
        }
        fence_proxy_async();
    }
    __device__ void wait_filled(int use) const { mbarrier_wait(filled + use % NF4_STAGES, use / NF4_STAGES % 2); }
    __device__ void wait_freed(int use) const
    {
        mbarrier_wait(freed + use % NF4_STAGES, use / NF4_STAGES % 2 ^ 1); /* the first uses find it free */
    }
    /* By one thread: activations from `column` on, and the box of codes at `code`, if there is one. */
    __device__ void bring(int stage, const CUtensorMap *activations, int2 column, const CUtensorMap *of_codes,
                          int2 code) const
    {
        mbarrier_arrive_expect(filled + stage, RIGHT_BYTES + (of_codes != nullptr ? NF4_CODE_BYTES : 0));
        tma_load(right + stage * RIGHT_BYTES, activations, filled + stage, column);
        if (of_codes != nullptr) tma_load(codes + stage * NF4_CODE_BYTES, of_codes, filled + stage, code);
    }
};

/* A lane's operands A of a step: 64 x 16 for each 16 of the sum. */
typedef uint32_t nf4_step_operand[NF4_SUM_STEP / 16][4];

/* Warp 0. */
template <int TOKENS, class Product>
__device__ void nf4_produce(const Product &p, const nf4_tile_memory<TOKENS> &memory)
{
    const int steps = p.steps();
    const bool leader = elect_one();
    int use = 0;
    for (int tile = (int)blockIdx.x; tile < p.tiles; tile += (int)gridDim.x) {
        const nf4_tile_place at = p.place(tile % p.left_tiles);
        for (int step = 0; step < steps; step++, use++) {
            memory.wait_freed(use);
            if (leader) p.fetch(memory, use % NF4_STAGES, at, tile / p.left_tiles * TOKENS, step);
        }
    }
}

/* Warps 1 to 3: every third use each. */
template <int TOKENS, class Product>
__device__ void nf4_restore_absmax(const Product &p, const nf4_tile_memory<TOKENS> &memory)
{
    const int steps = p.steps(), mine = (int)threadIdx.x / 32 - 1, lane = (int)threadIdx.x % 32;
    int use = 0;
    for (int tile = (int)blockIdx.x; tile < p.tiles; tile += (int)gridDim.x) {
        const nf4_tile_place at = p.place(tile % p.left_tiles);
        for (int step = 0; step < steps; step++, use++) {
            if (use % NF4_SCALE_WARPS != mine) continue;
            const int stage = use % NF4_STAGES;
            float absmax[NF4_LEFT / 32];
#pragma unroll
            for (int i = 0; i < NF4_LEFT / 32; i++) absmax[i] = p.absmax(at, step, lane + 32 * i);
            memory.wait_freed(use);
#pragma unroll
            for (int i = 0; i < NF4_LEFT / 32; i++) memory.absmax[stage * NF4_LEFT + lane + 32 * i] = absmax[i];
            mbarrier_arrive(memory.filled + stage);
        }
    }
}

/* Operands that a product has read stay in their registers until here. */
__device__ inline void nf4_hold(nf4_step_operand &a)
{
#ifndef NIB_CUDA_EMULATED
#pragma unroll
    for (int s = 0; s < NF4_SUM_STEP / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+r"(a[s][i])::"memory");
#else
    (void)a;
#endif
}

/* A group's sums to the result, by way of its tile [TOKENS][64] in shared memory, swizzled; what lies behind the
 * result's rows or columns is not written. */
template <int TOKENS>
__device__ void nf4_store_sums(const float (&sum)[TOKENS / 8][4], uint8_t *tile, const CUtensorMap *map, int2 at)
{
    const unsigned barrier = threadIdx.x / NIB_WARP_GROUP;
    const int warp = (int)threadIdx.x / 32 % 4, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    if (threadIdx.x % NIB_WARP_GROUP == 0) tma_store_wait_read<0>(); /* the last tile has left */
    named_barrier_sync(barrier, NIB_WARP_GROUP);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = 2 * t + i; /* and every eighth from there */
        uint8_t *word = tile + row * 128 + ((2 * warp + g / 4) ^ row) * 16 + g % 4 * 4;
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
            *reinterpret_cast<uint32_t *>(word + j * 1024) = pack_bf16(sum[j][i], sum[j][2 + i]);
    }
    fence_proxy_async();
    named_barrier_sync(barrier, NIB_WARP_GROUP);
    if (threadIdx.x % NIB_WARP_GROUP != 0) return;
    tma_store(map, at, tile);
    tma_store_commit();
}

/* A warp group's 64 left rows of all tiles. */
template <int TOKENS, class Product>
__device__ void nf4_consume(const Product &p, const nf4_tile_memory<TOKENS> &memory)
{
    typedef nf4_tile_memory<TOKENS> sizes;
    const int steps = p.steps(), group = (int)threadIdx.x / NIB_WARP_GROUP - 1, left = group * NF4_GROUP_LEFT;
    const float *lane_table = nf4_lane_table(memory.table);
    float sum[TOKENS / 8][4];
    nf4_step_operand even, odd;
    int use = 0;
    for (int tile = (int)blockIdx.x; tile < p.tiles; tile += (int)gridDim.x) {
        const nf4_tile_place at = p.place(tile % p.left_tiles);
        int step = 0;
        const auto prepare = [&](int of_use, nf4_step_operand &a) {
            const int stage = of_use % NF4_STAGES;
            memory.wait_filled(of_use);
            p.decode(at, left, step, memory.codes + stage * NF4_CODE_BYTES, memory.absmax + stage * NF4_LEFT + left,
                     lane_table, a);
        };
        const auto multiply = [&](nf4_step_operand &now, nf4_step_operand &next) {
            const uint8_t *right = memory.right + use % NF4_STAGES * sizes::RIGHT_BYTES;
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < NF4_SUM_STEP / 16; s++)
                wgmma_bf16_rs<false>(sum, now[s], wgmma_operand(right + s * 32, 16, 1024, WGMMA_SWIZZLE_128),
                                     step > 0 || s > 0);
            wgmma_commit();
            step++;
            if (step < steps) prepare(use + 1, next);
            wgmma_wait<0>();
            nf4_hold(now);
            __syncwarp(); /* one lane speaks for all, whose reads of codes and absmax lie before that */
            if (threadIdx.x % 32 == 0) mbarrier_arrive(memory.freed + use % NF4_STAGES);
            use++;
            return step < steps;
        };
        prepare(use, even);
        while (multiply(even, odd) && multiply(odd, even)) continue;
        wgmma_settle(sum);
        nf4_store_sums<TOKENS>(sum, memory.out + group * sizes::OUT_BYTES, p.out(at),
                               make_int2(at.left + left, tile / p.left_tiles * TOKENS));
    }
    if (threadIdx.x % NIB_WARP_GROUP == 0) tma_store_wait_read<0>();
}

/* The kernels' body. */
template <int TOKENS, class Product> __device__ void nf4_multiply(const Product &p)
{
    const nf4_tile_memory<TOKENS> memory;
    nf4_fill_table(memory.table, p.values);
    if (threadIdx.x == 0) memory.make_barriers();
    __syncthreads();
    if (threadIdx.x < NIB_WARP_GROUP) {
        lower_registers<56>();
        if (threadIdx.x < 32)
            nf4_produce(p, memory);
        else
            nf4_restore_absmax(p, memory);
    } else {
        raise_registers<224>();
        nf4_consume(p, memory);
    }
}

/* Host side. */

/* All tiles of `tokens` rows of the right operand, TOKENS each; p.left_tiles is set. The grid that has them. */
template <int TOKENS, class Product> dim3 nf4_tile_all(nib_ops *ops, Product *p, int64_t tokens)
{
    const int processors = nib_cuda_device_of(ops)->processors;
    p->values = nf4_values_of_table();
    p->tiles = p->left_tiles * (int)divide_up(tokens, TOKENS);
    return dim3((unsigned)(p->tiles < processors ? p->tiles : processors));
}

/* Activations that TMA can take. */
inline bool nf4_vectors(nib_matrix m) { return (uintptr_t)m.data % 16 == 0 && m.stride % 8 == 0; }

inline bool nf4_takes_weights(nib_ops *ops, const nib_linear *linear)
{
    bool takes = nib_cuda_device_of(ops)->architecture == 90 && linear->K % 64 == 0;
    for (int i = 0; i < linear->parts; i++) {
        const nib_linear_part *part = &linear->part[i];
        takes = takes && part->nf4.codes != NULL && (uintptr_t)part->nf4.codes % 16 == 0 && part->rows % 8 == 0;
    }
    return takes;
}

/* What both refuse: weights, and activations [T, from] to [T, to]. */
inline nib_status nf4_check_product(nib_ops *ops, const char *op, const nib_linear *linear, nib_matrix from,
                                    int64_t from_columns, nib_matrix to, int64_t to_columns)
{
    if (!nf4_takes_weights(ops, linear))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "%s %s: K %lld on sm_%d, expected a multiple of 64 on sm_90, and parts in NF4 of a multiple of "
                        "8 rows, their codes 16-byte aligned",
                        op, linear->name, (long long)linear->K, nib_cuda_device_of(ops)->architecture);
    if (from.dtype != NIB_DTYPE_BF16 || to.dtype != NIB_DTYPE_BF16 || from.columns != from_columns ||
        to.columns != to_columns || to.rows != from.rows || !nf4_vectors(from) || !nf4_vectors(to))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "%s %s: [%lld, %lld] in rows of %lld to [%lld, %lld] in rows of %lld, expected [T, %lld] to "
                        "[T, %lld] in 16-byte aligned rows, both BF16",
                        op, linear->name, (long long)from.rows, (long long)from.columns, (long long)from.stride,
                        (long long)to.rows, (long long)to.columns, (long long)to.stride, (long long)from_columns,
                        (long long)to_columns);
    return NIB_OK;
}

#endif
