/* y[m][n] = sum over k of x[m][k] w[n][k], and over the columns beside W, for many rows m on Hopper.
 *
 * y^T = W x^T, as nf4_matmul_hopper.cuh has it: left rows are outputs of one part, a step is a block of NF4 a row, so
 * that a lane has one absmax for each of its two rows. Codes of a step: [128 outputs][32] bytes; a lane loads 16 of a
 * row at a time, the lanes of a row the same ones. */
#include "cuda/nf4_matmul_hopper.cuh"
#include "cuda/nf4_matmul_hopper.h"

namespace
{

struct forward_product {
    CUtensorMap x, codes[NIB_LINEAR_MAX_PARTS], y[NIB_LINEAR_MAX_PARTS]; /* boxes: [TOKENS][64], [128][32] bytes */
    linear_parts parts;
    nf4_values values;
    const __nv_bfloat16 *beside; /* [outputs, room] */
    int64_t beside_stride;
    int room, left_tiles, tiles, first_tile[NIB_LINEAR_MAX_PARTS]; /* of outputs, of all, of a part's outputs */

#ifdef NIB_HOPPER /* others have no use for what the kernel calls */
    __device__ int steps_beside() const { return (room + NF4_SUM_STEP - 1) / NF4_SUM_STEP; }
    __device__ int steps() const { return steps_beside() + (int)(parts.K / NF4_SUM_STEP); }
    __device__ nf4_tile_place place(int tile) const
    {
        int part = 0;
        while (part + 1 < parts.count && tile >= first_tile[part + 1]) part++;
        return {part, (tile - first_tile[part]) * NF4_LEFT};
    }
    __device__ const CUtensorMap *out(nf4_tile_place at) const { return &y[at.part]; }

    template <int TOKENS>
    __device__ void fetch(const nf4_tile_memory<TOKENS> &memory, int stage, nf4_tile_place at, int token,
                          int step) const
    {
        const int k = (step - steps_beside()) * NF4_SUM_STEP;
        if (k < 0)
            memory.bring(stage, &x, make_int2((int)parts.K + step * NF4_SUM_STEP, token), nullptr, {});
        else
            memory.bring(stage, &x, make_int2(k, token), &codes[at.part], make_int2(k / 2, at.left));
    }

    /* Of the slot's output. */
    __device__ float absmax(nf4_tile_place at, int step, int slot) const
    {
        const linear_part &part = parts.part[at.part];
        const int row = at.left + slot, block = step - steps_beside();
        return block >= 0 && row < part.rows ? nf4_absmax(part.nf4, row * (parts.K / NF4_SUM_STEP) + block) : 0.0f;
    }

    __device__ void decode(nf4_tile_place at, int left, int step, const uint8_t *step_codes, const float *absmax,
                           const float *lane_table, nf4_step_operand &a) const
    {
        if (step < steps_beside())
            load_beside(parts.part[at.part], at.left + left, step * NF4_SUM_STEP, a);
        else
            decode_block(step_codes + left * (NF4_SUM_STEP / 2), absmax, lane_table, a);
    }

    /* Rows 2g and 2g + 1 of the warp's 16 at columns 2t, 2t + 1 and 8 further on. */
    __device__ static void decode_block(const uint8_t *codes, const float *absmax, const float *lane_table,
                                        nf4_step_operand &a)
    {
        const int row = (int)threadIdx.x / 32 % 4 * 16 + (int)threadIdx.x % 32 / 4 * 2, t = (int)threadIdx.x % 4;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float scale = absmax[row + r];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint4 bits = load16(codes + (row + r) * (NF4_SUM_STEP / 2) + half * 16);
                const uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[2 * half + i / 2][i % 2 * 2 + r] = nf4_pair_bf16(word[i], t, lane_table, scale);
            }
        }
    }

    /* The same of the columns beside W, from `column` on; output: the group's first. */
    __device__ void load_beside(const linear_part &part, int output, int column, nf4_step_operand &a) const
    {
        const int row = output + (int)threadIdx.x / 32 % 4 * 16 + (int)threadIdx.x % 32 / 4 * 2;
        column += (int)threadIdx.x % 4 * 2;
#pragma unroll
        for (int s = 0; s < NF4_SUM_STEP / 16; s++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = row + i % 2, c = column + 16 * s + i / 2 * 8;
                a[s][i] = 0;
                if (r < part.rows && c < room)
                    a[s][i] =
                        __ldg(reinterpret_cast<const uint32_t *>(beside + (part.first_row + r) * beside_stride + c));
            }
    }
#endif
};

template <int TOKENS>
__global__ void __launch_bounds__(NF4_THREADS, 1) nf4_matmul_hopper_kernel(const __grid_constant__ forward_product p)
{
#ifdef NIB_HOPPER
    nf4_multiply<TOKENS>(p);
#endif
}

nib_status check(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix beside, nib_matrix y)
{
    const int64_t N = nib_linear_outputs(linear);
    NIB_TRY(nf4_check_product(ops, "nf4_matmul_hopper", linear, x, linear->K + beside.columns, y, N));
    if (beside.columns > 0 && (beside.rows != N || beside.dtype != NIB_DTYPE_BF16 || beside.columns % 2 != 0 ||
                               beside.stride % 2 != 0 || (uintptr_t)beside.data % 4 != 0))
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_matmul_hopper %s: [%lld, %lld] beside W, expected [%lld, even] BF16",
                        linear->name, (long long)beside.rows, (long long)beside.columns, (long long)N);
    return NIB_OK;
}

template <int TOKENS>
nib_status launch(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix beside, nib_matrix y)
{
    forward_product p = {};
    p.parts = linear_parts_of(linear, nib_dropout{});
    p.beside = bf16_of(beside);
    p.beside_stride = beside.stride;
    p.room = (int)beside.columns;
    NIB_TRY(nib_cuda_map_matrix(x, TOKENS, &p.x));
    for (int i = 0; i < linear->parts; i++) {
        const linear_part &part = p.parts.part[i];
        p.first_tile[i] = p.left_tiles;
        p.left_tiles += (int)divide_up(part.rows, NF4_LEFT);
        NIB_TRY(nib_cuda_map_bytes(part.nf4.codes, part.rows, linear->K / 2, NF4_LEFT, NF4_SUM_STEP / 2,
                                   CU_TENSOR_MAP_SWIZZLE_NONE, &p.codes[i]));
        NIB_TRY(nib_cuda_map_matrix(nib_matrix_columns(y, part.first_row, part.rows), TOKENS, &p.y[i]));
    }
    const dim3 grid = nf4_tile_all<TOKENS>(ops, &p, x.rows);
    return nib_cuda_launch(nf4_matmul_hopper_kernel<TOKENS>, grid, dim3(NF4_THREADS), nf4_tile_memory<TOKENS>::BYTES,
                           nib_cuda_stream(ops), p);
}

} // namespace

bool nib_cuda_nf4_matmul_hopper_takes(nib_ops *ops, const nib_linear *linear, nib_matrix from, nib_matrix to)
{
    return nf4_takes_weights(ops, linear) && nf4_vectors(from) && nf4_vectors(to);
}

nib_status nib_cuda_nf4_matmul_hopper(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix beside,
                                      nib_matrix y)
{
    NIB_TRY(check(ops, linear, x, beside, y));
    if (x.rows == 0 || ops->rehearsal) return NIB_OK;
    return x.rows <= 128 ? launch<128>(ops, linear, x, beside, y) : launch<256>(ops, linear, x, beside, y);
}
