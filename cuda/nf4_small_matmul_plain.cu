/* y[m][n] = sum over k of x[m][k] w[n][k], + scale * sum over r of u[m][r] b[n][r], with DoRA times gain[n], + bias[n],
 * for few rows m.
 *
 * One warp an output feature n, eight warps a block. A lane decodes 8 weights at a time (a warp reads 128 consecutive
 * bytes of codes) and multiplies them with the same 8 columns of up to 8 rows of x; more rows take another pass over
 * the codes, which then come from a cache. Sums are fp32: over a lane's columns in ascending order, then over lanes by
 * warp_sum. Shared memory: the table of nf4_decode.cuh.
 */
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/linear_parts.cuh"
#include "cuda/nf4_decode.cuh"
#include "cuda/nf4_small_matmul.h"
#include "cuda/reduce.cuh"

namespace
{

constexpr int WARPS = 8;
constexpr int ROWS = 8; /* of x at a time */

/* sum[m] += the products of 8 weights with row m of x. */
__device__ void multiply_8(uint32_t codes, float absmax, const float *table, const __nv_bfloat16 *x, int64_t x_stride,
                           int rows, float (&sum)[ROWS])
{
    float2 weight[4];
#pragma unroll
    for (int byte = 0; byte < 4; byte++) weight[byte] = unpack_bf16(nf4_pair_bf16(codes, byte, table, absmax));
#pragma unroll
    for (int m = 0; m < ROWS; m++) {
        if (m >= rows) break;
        const uint4 bits = load16(x + m * x_stride);
        const uint32_t pair[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 value = unpack_bf16(pair[i]);
            sum[m] = fmaf(weight[i].x, value.x, sum[m]);
            sum[m] = fmaf(weight[i].y, value.y, sum[m]);
        }
    }
}

__global__ void __launch_bounds__(32 * WARPS)
    nf4_small_matmul_plain_kernel(linear_parts parts, nf4_values values, const __nv_bfloat16 *x, int64_t x_stride,
                                  int M, int64_t N, const __nv_bfloat16 *u, int64_t u_stride, __nv_bfloat16 *y,
                                  int64_t y_stride)
{
    float *table = dynamic_shared<float>();
    nf4_fill_table(table, values);
    __syncthreads();
    const int lane = (int)threadIdx.x % 32;
    const int64_t output = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (output >= N) return;
    const linear_part &part = part_of_row(parts, output);
    const int64_t n = output - part.first_row;

    for (int m0 = 0; m0 < M; m0 += ROWS) {
        float sum[ROWS] = {};
        const int rows = M - m0 < ROWS ? M - m0 : ROWS;
        for (int64_t k = lane * 8; k < parts.K; k += 32 * 8) {
            const int64_t element = n * parts.K + k;
            const uint32_t codes = __ldg(reinterpret_cast<const uint32_t *>(part.nf4.codes + element / 2));
            multiply_8(codes, nf4_absmax(part.nf4, element / 64), nf4_lane_table(table), x + m0 * x_stride + k,
                       x_stride, rows, sum);
        }
#pragma unroll
        for (int m = 0; m < ROWS; m++) {
            const float base = warp_sum(sum[m]);
            if (lane == m && m < rows) {
                const __nv_bfloat16 *u_row = u == nullptr ? nullptr : u + (m0 + m) * u_stride;
                y[(m0 + m) * y_stride + output] = to_bf16(output_of(part, n, base, u_row));
            }
        }
    }
}

} // namespace

nib_status nib_cuda_nf4_small_matmul_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u,
                                           nib_matrix y)
{
    NIB_TRY(nib_cuda_nf4_small_matmul_check(linear, x, u, y));
    if (x.rows == 0) return NIB_OK;
    const int64_t N = nib_linear_outputs(linear);
    return nib_cuda_launch(nf4_small_matmul_plain_kernel, dim3((unsigned)((N + WARPS - 1) / WARPS)), dim3(32 * WARPS),
                           NF4_TABLE_BYTES, nib_cuda_stream(ops), linear_parts_of(linear, nib_dropout{}),
                           nf4_values_of_table(), (const __nv_bfloat16 *)x.data, x.stride, (int)x.rows, N,
                           (const __nv_bfloat16 *)u.data, u.stride, (__nv_bfloat16 *)y.data, y.stride);
}
