/* dx[m][k] = sum over n of dy[m][n] w[n][k], and over the rows below W, for many rows m on Hopper.
 *
 * dx^T = W^T dy^T, as nf4_matmul_hopper.cuh has it: left rows are inputs, 64 of a group one block of NF4 in each row of
 * W; a step is 64 rows of one part. A byte of codes has two neighbouring inputs of one output, which the permutation
 * makes rows g and g + 8 of a product: a lane's operand of 16 outputs is four bytes, at outputs 2t, 2t + 1, 2t + 8 and
 * 2t + 9, and every lane decodes all that it loads.
 *
 * Codes of a step: [64 outputs][64] bytes, in the swizzle of that width: chunk c of row n lies at chunk c ^ n / 2 % 4.
 * The lanes g of a load read eight bytes of one chunk, the lanes t rows whose chunks differ by the swizzle: no bank
 * conflict, and no step of 16 moves a lane to another chunk. Absmax: of each group's 64 outputs, where a lane finds its
 * four of 16 outputs in one load. */
#include "cuda/nf4_matmul_hopper.cuh"
#include "cuda/nf4_matmul_hopper.h"

namespace
{

constexpr int ROW_BYTES = NF4_LEFT / 2; /* of codes */

struct backward_product {
    CUtensorMap dy[NIB_LINEAR_MAX_PARTS], du, codes[NIB_LINEAR_MAX_PARTS], dx; /* boxes: [TOKENS][64], [64][64] bytes */
    linear_parts parts;
    nf4_values values;
    const __nv_bfloat16 *below; /* [ranks, K] */
    int64_t below_stride;
    int ranks, left_tiles, tiles, first_step[NIB_LINEAR_MAX_PARTS], all_steps; /* of a part's rows, of a tile */

#ifdef NIB_HOPPER /* others have no use for what the kernel calls */
    __device__ int steps() const { return all_steps; }
    __device__ nf4_tile_place place(int tile) const { return {0, tile * NF4_LEFT}; }
    __device__ const CUtensorMap *out(nf4_tile_place) const { return &dx; }

    /* Whose rows a step has; steps before the first part's are those below W. */
    __device__ int part_of(int step) const
    {
        int part = 0;
        while (part + 1 < parts.count && step >= first_step[part + 1]) part++;
        return part;
    }

    template <int TOKENS>
    __device__ void fetch(const nf4_tile_memory<TOKENS> &memory, int stage, nf4_tile_place at, int token,
                          int step) const
    {
        const int part = part_of(step), row = (step - first_step[part]) * NF4_SUM_STEP;
        if (step < first_step[0])
            memory.bring(stage, &du, make_int2(step * NF4_SUM_STEP, token), nullptr, {});
        else
            memory.bring(stage, &dy[part], make_int2(row, token), &codes[part], make_int2(at.left / 2, row));
    }

    /* Slot 16 s + 4 t + i of a group: output 16 s + 2 t + i, or + 6 + i from the second pair on. */
    __device__ float absmax(nf4_tile_place at, int step, int slot) const
    {
        const int part = part_of(step), i = slot % 4, k = at.left + slot / NF4_GROUP_LEFT * NF4_GROUP_LEFT;
        const int row = (step - first_step[part]) * NF4_SUM_STEP + slot % NF4_GROUP_LEFT / 16 * 16 + slot % 16 / 4 * 2 +
                        i % 2 + i / 2 * 8;
        if (step < first_step[0] || row >= parts.part[part].rows || k >= parts.K) return 0.0f;
        return nf4_absmax(parts.part[part].nf4, (row * parts.K + k) / NF4_GROUP_LEFT);
    }

    __device__ void decode(nf4_tile_place at, int left, int step, const uint8_t *step_codes, const float *absmax,
                           const float *lane_table, nf4_step_operand &a) const
    {
        if (step < first_step[0])
            load_below(at.left + left, step * NF4_SUM_STEP, a);
        else
            decode_rows(step_codes, left / 2, absmax, lane_table, a);
    }

    /* Inputs 2g and 2g + 1 of the warp's 16 at outputs 2t, 2t + 1 and 8 further on; `first`: the group's first byte. */
    __device__ static void decode_rows(const uint8_t *codes, int first, const float *absmax, const float *lane_table,
                                       nf4_step_operand &a)
    {
        const int t = (int)threadIdx.x % 4;
        const int byte = first + (int)threadIdx.x / 32 % 4 * 8 + (int)threadIdx.x % 32 / 4;
        const uint8_t *at = codes + 2 * t * ROW_BYTES + (byte / 16 ^ t) * 16 + byte % 16;
#pragma unroll
        for (int s = 0; s < NF4_SUM_STEP / 16; s++) {
            const uint4 scale = load16(absmax + 16 * s + 4 * t);
            const uint32_t bits[4] = {scale.x, scale.y, scale.z, scale.w};
            float2 pair[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                pair[i] =
                    nf4_pair(at[(16 * s + i % 2 + i / 2 * 8) * ROW_BYTES], 0, lane_table, __uint_as_float(bits[i]));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                a[s][2 * i] = pack_bf16(pair[2 * i].x, pair[2 * i + 1].x);
                a[s][2 * i + 1] = pack_bf16(pair[2 * i].y, pair[2 * i + 1].y);
            }
        }
    }

    /* The same of the rows below W, from `row` on; input: the group's first. */
    __device__ void load_below(int input, int row, nf4_step_operand &a) const
    {
        const int k = input + (int)threadIdx.x / 32 % 4 * 16 + (int)threadIdx.x % 32 / 4 * 2;
        row += (int)threadIdx.x % 4 * 2;
#pragma unroll
        for (int s = 0; s < NF4_SUM_STEP / 16; s++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int r = row + 16 * s + 8 * i; /* ranks are even */
                uint32_t even = 0, odd = 0;
                if (r < ranks && k < parts.K) {
                    even = __ldg(reinterpret_cast<const uint32_t *>(below + r * below_stride + k));
                    odd = __ldg(reinterpret_cast<const uint32_t *>(below + (r + 1) * below_stride + k));
                }
                a[s][2 * i] = __byte_perm(even, odd, 0x5410);
                a[s][2 * i + 1] = __byte_perm(even, odd, 0x7632);
            }
    }
#endif
};

template <int TOKENS>
__global__ void __launch_bounds__(NF4_THREADS, 1)
    nf4_matmul_hopper_backward_kernel(const __grid_constant__ backward_product p)
{
#ifdef NIB_HOPPER
    nf4_multiply<TOKENS>(p);
#endif
}

nib_status check(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix below, nib_matrix dx)
{
    NIB_TRY(nf4_check_product(ops, "nf4_matmul_hopper_backward", linear, dy, nib_linear_outputs(linear) + below.rows,
                              dx, linear->K));
    if (below.rows > 0 && (below.columns != linear->K || below.dtype != NIB_DTYPE_BF16 || below.rows % 2 != 0 ||
                           below.stride % 2 != 0 || (uintptr_t)below.data % 4 != 0))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "nf4_matmul_hopper_backward %s: [%lld, %lld] below W, expected [even, %lld] BF16", linear->name,
                        (long long)below.rows, (long long)below.columns, (long long)linear->K);
    return NIB_OK;
}

template <int TOKENS>
nib_status launch(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix below, nib_matrix dx)
{
    backward_product p = {};
    p.parts = linear_parts_of(linear, nib_dropout{});
    p.below = bf16_of(below);
    p.below_stride = below.stride;
    p.ranks = (int)below.rows;
    p.left_tiles = (int)divide_up(linear->K, NF4_LEFT);
    p.all_steps = (int)divide_up(below.rows, NF4_SUM_STEP);
    for (int i = 0; i < linear->parts; i++) {
        const linear_part &part = p.parts.part[i];
        p.first_step[i] = p.all_steps;
        p.all_steps += (int)divide_up(part.rows, NF4_SUM_STEP);
        NIB_TRY(nib_cuda_map_bytes(part.nf4.codes, part.rows, linear->K / 2, NF4_SUM_STEP, ROW_BYTES,
                                   CU_TENSOR_MAP_SWIZZLE_64B, &p.codes[i]));
        NIB_TRY(nib_cuda_map_matrix(nib_matrix_columns(dy, part.first_row, part.rows), TOKENS, &p.dy[i]));
    }
    if (below.rows > 0)
        NIB_TRY(nib_cuda_map_matrix(nib_matrix_columns(dy, nib_linear_outputs(linear), below.rows), TOKENS, &p.du));
    NIB_TRY(nib_cuda_map_matrix(dx, TOKENS, &p.dx));
    const dim3 grid = nf4_tile_all<TOKENS>(ops, &p, dy.rows);
    return nib_cuda_launch(nf4_matmul_hopper_backward_kernel<TOKENS>, grid, dim3(NF4_THREADS),
                           nf4_tile_memory<TOKENS>::BYTES, nib_cuda_stream(ops), p);
}

} // namespace

nib_status nib_cuda_nf4_matmul_hopper_backward(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix below,
                                               nib_matrix dx)
{
    NIB_TRY(check(ops, linear, dy, below, dx));
    if (dy.rows == 0 || ops->rehearsal) return NIB_OK;
    return dy.rows <= 128 ? launch<128>(ops, linear, dy, below, dx) : launch<256>(ops, linear, dy, below, dx);
}
