/* y[m][n] = sum over k of x[m][k] w[n][k], and over the columns beside W, for many rows m on Hopper.
 *
 * y^T = W x^T: weights are operand A of wgmma, decoded into registers, rows of x operand B. A tile is 128 outputs of
 * one part by TOKENS rows of x (256, or 128 if x has no more); a block takes every gridDim.x-th tile, outputs first, so
 * that blocks that run together share rows of x, the operand of more bytes. Steps are 64 columns, one block of NF4 a
 * row: first those beside W, whose bf16 come straight from memory, then W's.
 *
 * Block: three warp groups. Of the first, warp 0 is the producer: TMA brings a step's x [TOKENS][64] bf16, swizzled,
 * and codes [128][32] bytes. Warps 1 to 3 restore its 128 absmax in turn, one step each, so that their chain of loads
 * has three steps of time. The other two groups own 64 outputs each: the four products of a step run while the next
 * step is decoded into other registers.
 *
 * Rows of the products are permuted: rows g and g + 8 of warp w's 16 are its outputs 2g and 2g + 1, so that a lane's
 * two sums of a token are neighbours in y, stored as one word without a bank conflict.
 *
 * Shared memory, 256 rows: 4 stages of x (32 KiB), of codes (4 KiB) and of absmax (512 B), y on its way out 64 KiB, the
 * table of nf4_decode.cuh, barriers: 212 KiB. Registers: 56 for the first group, 224 for the others: sums TOKENS / 2,
 * operands 2 x 16, codes 16.
 *
 * What copies and products need of each other: a stage is filled when TMA has counted its bytes in and the lanes of an
 * absmax warp have arrived, and free when all eight consumer warps have waited for their products with it.
 *
 * Dettmers et al., "QLoRA", 2023; the decoding beside products as in Frantar et al., "MARLIN", 2024. */
#include "cuda/backend.h"
#include "cuda/intrinsics_hopper.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear_parts.cuh"
#include "cuda/nf4_decode.cuh"
#include "cuda/nf4_matmul_hopper.h"
#include "cuda/tensor_map.h"
#include "cuda/vector.cuh"

namespace
{

constexpr int THREADS = 3 * NIB_WARP_GROUP, STAGES = 4;
constexpr int OUTPUTS = 128, GROUP_OUTPUTS = 64, STEP = 64;
constexpr int CODE_BYTES = OUTPUTS * STEP / 2;

template <int TOKENS> struct tile_sizes {
    static constexpr int X_BYTES = TOKENS * STEP * 2, Y_BYTES = TOKENS * GROUP_OUTPUTS * 2; /* y: of a group */
    static constexpr int SHARED_BYTES =
        STAGES * (X_BYTES + CODE_BYTES + OUTPUTS * 4) + 2 * Y_BYTES + NF4_TABLE_BYTES + 2 * STAGES * 8;
};

struct operands {
    CUtensorMap x, codes[NIB_LINEAR_MAX_PARTS], y[NIB_LINEAR_MAX_PARTS]; /* boxes: [TOKENS][64], [128][32] bytes */
    linear_parts parts;
    nf4_values values;
    const __nv_bfloat16 *beside; /* [outputs, room] */
    int64_t beside_stride;
    int room, output_tiles, tiles, first_tile[NIB_LINEAR_MAX_PARTS]; /* of outputs, of all, of a part's outputs */
};

#ifdef NIB_HOPPER /* others have no use for what the kernel calls */

constexpr int CONSUMER_WARPS = 8, SCALE_WARPS = 3;

/* Where a tile lies. */
struct tile_place {
    int part, output, token; /* output: in the part */
};

__device__ tile_place place_of(const operands &p, int tile, int tokens)
{
    const int of_outputs = tile % p.output_tiles;
    int part = 0;
    while (part + 1 < p.parts.count && of_outputs >= p.first_tile[part + 1]) part++;
    return {part, (of_outputs - p.first_tile[part]) * OUTPUTS, tile / p.output_tiles * tokens};
}

/* Shared memory; use number `use` of the stages, counted over all tiles, is in stage use % STAGES. */
template <int TOKENS> struct block_memory {
    typedef tile_sizes<TOKENS> sizes;
    uint8_t *x, *y, *codes;
    float *absmax, *table;
    uint64_t *filled, *freed;

    __device__ block_memory()
        : x(dynamic_shared<uint8_t>()), y(x + STAGES * sizes::X_BYTES), codes(y + 2 * sizes::Y_BYTES),
          absmax(reinterpret_cast<float *>(codes + STAGES * CODE_BYTES)), table(absmax + STAGES * OUTPUTS),
          filled(reinterpret_cast<uint64_t *>(table + NF4_TABLE_FLOATS)), freed(filled + STAGES)
    {
    }
    /* By one thread. */
    __device__ void make_barriers() const
    {
        for (int stage = 0; stage < STAGES; stage++) {
            mbarrier_init(filled + stage, 1 + 32); /* the producer, and the lanes of an absmax warp */
            mbarrier_init(freed + stage, CONSUMER_WARPS);
        }
        fence_proxy_async();
    }
    __device__ void wait_filled(int use) const { mbarrier_wait(filled + use % STAGES, use / STAGES % 2); }
    __device__ void wait_freed(int use) const
    {
        mbarrier_wait(freed + use % STAGES, use / STAGES % 2 ^ 1); /* the first uses find it free */
    }
};

struct step_counts {
    int beside, all;
};
__device__ step_counts steps_of(const operands &p)
{
    const int beside = (p.room + STEP - 1) / STEP;
    return {beside, beside + (int)(p.parts.K / STEP)};
}

/* Warp 0. */
template <int TOKENS> __device__ void produce(const operands &p, const block_memory<TOKENS> &memory)
{
    typedef tile_sizes<TOKENS> sizes;
    const step_counts steps = steps_of(p);
    const bool leader = elect_one();
    int use = 0;
    for (int tile = (int)blockIdx.x; tile < p.tiles; tile += (int)gridDim.x) {
        const tile_place at = place_of(p, tile, TOKENS);
        for (int step = 0; step < steps.all; step++, use++) {
            const int stage = use % STAGES, k = (step - steps.beside) * STEP;
            memory.wait_freed(use);
            if (!leader) continue;
            mbarrier_arrive_expect(memory.filled + stage, sizes::X_BYTES + (k < 0 ? 0 : CODE_BYTES));
            tma_load(memory.x + stage * sizes::X_BYTES, &p.x, memory.filled + stage,
                     make_int2(k < 0 ? (int)p.parts.K + step * STEP : k, at.token));
            if (k >= 0)
                tma_load(memory.codes + stage * CODE_BYTES, &p.codes[at.part], memory.filled + stage,
                         make_int2(k / 2, at.output));
        }
    }
}

/* Warps 1 to 3: every third use each. */
template <int TOKENS> __device__ void restore_absmax(const operands &p, const block_memory<TOKENS> &memory)
{
    const step_counts steps = steps_of(p);
    const int mine = (int)threadIdx.x / 32 - 1, lane = (int)threadIdx.x % 32;
    const int64_t row_blocks = p.parts.K / STEP;
    int use = 0;
    for (int tile = (int)blockIdx.x; tile < p.tiles; tile += (int)gridDim.x) {
        const tile_place at = place_of(p, tile, TOKENS);
        const linear_part &part = p.parts.part[at.part];
        for (int step = 0; step < steps.all; step++, use++) {
            if (use % SCALE_WARPS != mine) continue;
            const int stage = use % STAGES, row_block = step - steps.beside;
            float absmax[OUTPUTS / 32] = {};
#pragma unroll
            for (int i = 0; i < OUTPUTS / 32; i++) {
                const int row = at.output + lane + 32 * i;
                if (row_block >= 0 && row < part.rows) absmax[i] = nf4_absmax(part.nf4, row * row_blocks + row_block);
            }
            memory.wait_freed(use);
#pragma unroll
            for (int i = 0; i < OUTPUTS / 32; i++) memory.absmax[stage * OUTPUTS + lane + 32 * i] = absmax[i];
            mbarrier_arrive(memory.filled + stage);
        }
    }
}

/* A lane's operands A of a step: 64 x 16 for each 16 columns. */
typedef uint32_t step_operand[STEP / 16][4];

/* From codes: rows 2g and 2g + 1 of the warp's 16 at columns 2t, 2t + 1 and 8 further on. */
__device__ void decode_step(const uint8_t *codes, const float *absmax, const float *lane_table, step_operand &a)
{
    const int row = (int)threadIdx.x / 32 % 4 * 16 + (int)threadIdx.x % 32 / 4 * 2, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float scale = absmax[row + r];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 bits = load16(codes + (row + r) * (STEP / 2) + half * 16);
            const uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[2 * half + i / 2][i % 2 * 2 + r] = nf4_pair_bf16(word[i], t, lane_table, scale);
        }
    }
}

/* The same of the columns beside W, from `column` on; output: the group's first. */
__device__ void load_step(const operands &p, const linear_part &part, int output, int column, step_operand &a)
{
    const int row = output + (int)threadIdx.x / 32 % 4 * 16 + (int)threadIdx.x % 32 / 4 * 2;
    column += (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int s = 0; s < STEP / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = row + i % 2, c = column + 16 * s + i / 2 * 8;
            a[s][i] = 0;
            if (r < part.rows && c < p.room)
                a[s][i] =
                    __ldg(reinterpret_cast<const uint32_t *>(p.beside + (part.first_row + r) * p.beside_stride + c));
        }
}

/* Operands that a product has read stay in their registers until here. */
__device__ void hold(step_operand &a)
{
#ifndef NIB_CUDA_EMULATED
#pragma unroll
    for (int s = 0; s < STEP / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+r"(a[s][i])::"memory");
#else
    (void)a;
#endif
}

/* A group's sums to y, by way of its tile [TOKENS][64] in shared memory, swizzled; what lies behind T or the part is
 * not written. */
template <int TOKENS>
__device__ void store_sums(const float (&sum)[TOKENS / 8][4], uint8_t *tile, const CUtensorMap *map, int output,
                           int token)
{
    const unsigned barrier = threadIdx.x / NIB_WARP_GROUP;
    const int warp = (int)threadIdx.x / 32 % 4, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    if (threadIdx.x % NIB_WARP_GROUP == 0) tma_store_wait_read<0>(); /* the last tile has left */
    named_barrier_sync(barrier, NIB_WARP_GROUP);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = 2 * t + i; /* and every eighth from there */
        uint8_t *at = tile + row * 128 + ((2 * warp + g / 4) ^ row) * 16 + g % 4 * 4;
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++)
            *reinterpret_cast<uint32_t *>(at + j * 1024) = pack_bf16(sum[j][i], sum[j][2 + i]);
    }
    fence_proxy_async();
    named_barrier_sync(barrier, NIB_WARP_GROUP);
    if (threadIdx.x % NIB_WARP_GROUP != 0) return;
    tma_store(map, make_int2(output, token), tile);
    tma_store_commit();
}

/* A warp group's 64 outputs of all tiles. */
template <int TOKENS> __device__ void consume(const operands &p, const block_memory<TOKENS> &memory)
{
    typedef tile_sizes<TOKENS> sizes;
    const step_counts steps = steps_of(p);
    const int group = (int)threadIdx.x / NIB_WARP_GROUP - 1;
    const float *lane_table = nf4_lane_table(memory.table);
    float sum[TOKENS / 8][4];
    step_operand even, odd;
    int use = 0;
    for (int tile = (int)blockIdx.x; tile < p.tiles; tile += (int)gridDim.x) {
        const tile_place at = place_of(p, tile, TOKENS);
        const int output = at.output + group * GROUP_OUTPUTS;
        const auto prepare = [&](int step, int of_use, step_operand &a) {
            const int stage = of_use % STAGES;
            memory.wait_filled(of_use);
            if (step < steps.beside)
                load_step(p, p.parts.part[at.part], output, step * STEP, a);
            else
                decode_step(memory.codes + stage * CODE_BYTES + group * (CODE_BYTES / 2),
                            memory.absmax + stage * OUTPUTS + group * GROUP_OUTPUTS, lane_table, a);
        };
        int step = 0;
        const auto multiply = [&](step_operand &now, step_operand &next) {
            const uint8_t *x = memory.x + use % STAGES * sizes::X_BYTES;
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < STEP / 16; s++)
                wgmma_bf16_rs<false>(sum, now[s], wgmma_operand(x + s * 32, 16, 1024, WGMMA_SWIZZLE_128),
                                     step > 0 || s > 0);
            wgmma_commit();
            step++;
            if (step < steps.all) prepare(step, use + 1, next);
            wgmma_wait<0>();
            hold(now);
            __syncwarp(); /* one lane speaks for all, whose reads of codes and absmax lie before that */
            if (threadIdx.x % 32 == 0) mbarrier_arrive(memory.freed + use % STAGES);
            use++;
            return step < steps.all;
        };
        prepare(0, use, even);
        while (multiply(even, odd) && multiply(odd, even)) continue;
        wgmma_settle(sum);
        store_sums<TOKENS>(sum, memory.y + group * sizes::Y_BYTES, &p.y[at.part], output, at.token);
    }
    if (threadIdx.x % NIB_WARP_GROUP == 0) tma_store_wait_read<0>();
}

#endif

template <int TOKENS>
__global__ void __launch_bounds__(THREADS, 1) nf4_matmul_hopper_kernel(const __grid_constant__ operands p)
{
#ifdef NIB_HOPPER
    const block_memory<TOKENS> memory;
    nf4_fill_table(memory.table, p.values);
    if (threadIdx.x == 0) memory.make_barriers();
    __syncthreads();
    if (threadIdx.x < NIB_WARP_GROUP) {
        lower_registers<56>();
        if (threadIdx.x < 32)
            produce(p, memory);
        else
            restore_absmax(p, memory);
    } else {
        raise_registers<224>();
        consume(p, memory);
    }
#endif
}

bool vectors(nib_matrix m) { return (uintptr_t)m.data % 16 == 0 && m.stride % 8 == 0; }

bool takes_weights(nib_ops *ops, const nib_linear *linear)
{
    bool takes = nib_cuda_device_of(ops)->architecture == 90 && linear->K % STEP == 0;
    for (int i = 0; i < linear->parts; i++) {
        const nib_linear_part *part = &linear->part[i];
        takes = takes && part->nf4.codes != NULL && (uintptr_t)part->nf4.codes % 16 == 0 && part->rows % 8 == 0;
    }
    return takes;
}

nib_status check(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix beside, nib_matrix y)
{
    const int64_t N = nib_linear_outputs(linear);
    if (!takes_weights(ops, linear))
        return NIB_FAIL(
            NIB_ERROR_SHAPE,
            "nf4_matmul_hopper %s: K %lld on sm_%d, expected a multiple of 64 on sm_90, and parts in NF4 of "
            "a multiple of 8 rows, their codes 16-byte aligned",
            linear->name, (long long)linear->K, nib_cuda_device_of(ops)->architecture);
    if (x.dtype != NIB_DTYPE_BF16 || y.dtype != NIB_DTYPE_BF16 || x.columns != linear->K + beside.columns ||
        y.columns != N || y.rows != x.rows || !vectors(x) || !vectors(y))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "nf4_matmul_hopper %s: x [%lld, %lld] in rows of %lld to y [%lld, %lld] in rows of %lld, "
                        "expected [T, %lld] to [T, %lld] in 16-byte aligned rows, both BF16",
                        linear->name, (long long)x.rows, (long long)x.columns, (long long)x.stride, (long long)y.rows,
                        (long long)y.columns, (long long)y.stride, (long long)(linear->K + beside.columns),
                        (long long)N);
    if (beside.columns > 0 && (beside.rows != N || beside.dtype != NIB_DTYPE_BF16 || beside.columns % 2 != 0 ||
                               beside.stride % 2 != 0 || (uintptr_t)beside.data % 4 != 0))
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_matmul_hopper %s: [%lld, %lld] beside W, expected [%lld, even] BF16",
                        linear->name, (long long)beside.rows, (long long)beside.columns, (long long)N);
    return NIB_OK;
}

/* All but what T decides. */
operands operands_of(const nib_linear *linear, nib_matrix beside)
{
    operands p = {};
    p.parts = linear_parts_of(linear, nib_dropout{});
    p.values = nf4_values_of_table();
    p.beside = (const __nv_bfloat16 *)beside.data;
    p.beside_stride = beside.stride;
    p.room = (int)beside.columns;
    for (int i = 0; i < linear->parts; i++) {
        p.first_tile[i] = p.output_tiles;
        p.output_tiles += (int)divide_up(linear->part[i].rows, OUTPUTS);
    }
    return p;
}

template <int TOKENS>
nib_status launch(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix beside, nib_matrix y)
{
    operands p = operands_of(linear, beside);
    NIB_TRY(nib_cuda_map_matrix(x, TOKENS, &p.x));
    for (int i = 0; i < linear->parts; i++) {
        const linear_part &part = p.parts.part[i];
        NIB_TRY(nib_cuda_map_bytes(part.nf4.codes, part.rows, linear->K / 2, OUTPUTS, STEP / 2, &p.codes[i]));
        NIB_TRY(nib_cuda_map_matrix(nib_matrix_columns(y, part.first_row, part.rows), TOKENS, &p.y[i]));
    }
    p.tiles = p.output_tiles * (int)divide_up(x.rows, TOKENS);
    const int processors = nib_cuda_device_of(ops)->processors;
    return nib_cuda_launch(nf4_matmul_hopper_kernel<TOKENS>,
                           dim3((unsigned)(p.tiles < processors ? p.tiles : processors)), dim3(THREADS),
                           tile_sizes<TOKENS>::SHARED_BYTES, nib_cuda_stream(ops), p);
}

} // namespace

bool nib_cuda_nf4_matmul_hopper_takes(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix y)
{
    return takes_weights(ops, linear) && vectors(x) && vectors(y);
}

nib_status nib_cuda_nf4_matmul_hopper(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix beside,
                                      nib_matrix y)
{
    NIB_TRY(check(ops, linear, x, beside, y));
    if (x.rows == 0 || ops->rehearsal) return NIB_OK;
    return x.rows <= 128 ? launch<128>(ops, linear, x, beside, y) : launch<256>(ops, linear, x, beside, y);
}
