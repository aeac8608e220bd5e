/* y[m][n] = sum over k of x[m][k] w[n][k], + scale * sum over r of u[m][r] b[n][r], with DoRA times gain[n], + bias[n],
 * for m < 8.
 *
 * Bound by reading the codes, if decoding keeps up: products are the tensor cores', which leaves the other units to
 * decode. The weights are operand A and the rows of x operand B, padded to eight with zeros: y^T = W x^T.
 *
 * A block of 8 warps makes 16 outputs; its warps share the columns among them, NF4_STEP at a time (nf4_fragments.cuh),
 * and their sums are added in order of the warps, which is the split over k. Codes come by asynchronous copies, STAGES
 * - 1 steps ahead, into shared memory that only the lane that copied it reads: no barrier in the loop. absmax is
 * fetched one step ahead. x (at most 8 rows) comes from a cache.
 *
 * 256 threads; shared memory: 32 KB of codes, 4 KB of sums, the table of nf4_decode.cuh.
 */
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/linear_parts.cuh"
#include "cuda/nf4_fragments.cuh"
#include "cuda/nf4_matvec.h"

namespace
{

constexpr int WARPS = 8, STAGES = 4, TOKENS = NIB_CUDA_MATVEC_ROWS;
constexpr int SUMS = WARPS * NF4_TILE_ROWS * TOKENS;
constexpr int SHARED_BYTES = WARPS * STAGES * NF4_TILE_BYTES + SUMS * 4 + NF4_TABLE_BYTES;

/* Operand B of the eight products of a step: 32 columns of token g. */
__device__ void load_tokens(const __nv_bfloat16 *x, bool valid, uint32_t (&b)[16])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 v = valid ? load16(x + 8 * i) : make_uint4(0, 0, 0, 0);
        b[4 * i] = v.x, b[4 * i + 1] = v.y, b[4 * i + 2] = v.z, b[4 * i + 3] = v.w;
    }
}

__global__ void __launch_bounds__(32 * WARPS)
    nf4_matvec_kernel(linear_parts parts, nf4_values values, const __nv_bfloat16 *x, int64_t x_stride, int M,
                      const __nv_bfloat16 *u, int64_t u_stride, __nv_bfloat16 *y, int64_t y_stride)
{
    uint8_t *tiles = dynamic_shared<uint8_t>();
    float *sums = reinterpret_cast<float *>(tiles + WARPS * STAGES * NF4_TILE_BYTES); /* [WARPS][TOKENS][16] */
    float *table = sums + SUMS;
    nf4_fill_table(table, values);
    __syncthreads();

    const int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    const int64_t output0 = (int64_t)blockIdx.x * NF4_TILE_ROWS;
    const linear_part &part = part_of_row(parts, output0);
    const nf4_lane_rows rows = nf4_lane_rows_of(part.nf4, output0 - part.first_row, parts.K);
    uint8_t *tile = tiles + warp * STAGES * NF4_TILE_BYTES;
    x += (g < M ? g : 0) * x_stride + 32 * t;

    constexpr int64_t STRIDE = WARPS * NF4_STEP; /* columns between a warp's steps */
    int64_t k = (int64_t)warp * NF4_STEP;
    for (int stage = 0; stage < STAGES - 1; stage++) {
        nf4_fetch_codes(rows, k + stage * STRIDE, tile + stage * NF4_TILE_BYTES);
        cp_async_commit();
    }
    float2 next_absmax = nf4_lane_absmax(rows, k);
    float c[2][4] = {}; /* two sums, so that a product need not wait for the last */
    for (int stage = 0; k < parts.K; k += STRIDE, stage = (stage + 1) % STAGES) {
        nf4_fetch_codes(rows, k + (STAGES - 1) * STRIDE, tile + (stage + STAGES - 1) % STAGES * NF4_TILE_BYTES);
        cp_async_commit();
        const float2 absmax = next_absmax;
        next_absmax = nf4_lane_absmax(rows, k + STRIDE);
        uint32_t b[16];
        load_tokens(x + k, g < M && k < rows.columns, b);
        cp_async_wait<STAGES - 1>();
        const nf4_lane_codes codes = nf4_read_codes(tile + stage * NF4_TILE_BYTES);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint32_t a[4];
            nf4_fragment(codes, j, absmax, nf4_lane_table(table), a);
            mma_m16n8k16_bf16(c[j % 2], a, b[2 * j], b[2 * j + 1]);
        }
    }
    cp_async_wait<0>();

#pragma unroll
    for (int i = 0; i < 4; i++) /* c[i] is row g + 8 (i / 2), token 2t + i % 2 */
        sums[(warp * TOKENS + 2 * t + i % 2) * NF4_TILE_ROWS + g + 8 * (i / 2)] = c[0][i] + c[1][i];
    __syncthreads();
    const int m = (int)threadIdx.x / NF4_TILE_ROWS, row = (int)threadIdx.x % NF4_TILE_ROWS;
    if (m >= M) return;
    float sum = 0.0f;
    for (int w = 0; w < WARPS; w++) sum += sums[(w * TOKENS + m) * NF4_TILE_ROWS + row];
    const __nv_bfloat16 *u_row = u == nullptr ? nullptr : u + m * u_stride;
    y[m * y_stride + output0 + row] = to_bf16(output_of(part, output0 + row - part.first_row, sum, u_row));
}

} // namespace

nib_status nib_cuda_nf4_matvec(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    return nib_cuda_launch(nf4_matvec_kernel, dim3((unsigned)(y.columns / NF4_TILE_ROWS)), dim3(32 * WARPS),
                           SHARED_BYTES, nib_cuda_stream(ops), linear_parts_of(linear, nib_dropout{}),
                           nf4_values_of_table(), (const __nv_bfloat16 *)x.data, x.stride, (int)x.rows,
                           (const __nv_bfloat16 *)u.data, u.stride, (__nv_bfloat16 *)y.data, y.stride);
}
