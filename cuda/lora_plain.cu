/* LoRA's products without tensor cores: the oracle of cuda/linear.cu, and u of few tokens.
 *
 * Sums over a long dimension (down, du): one block an element of u, threads in strides, then a fixed tree (block_sum).
 * Sums over the rank (up, dx): one thread an element of y, four neighbouring ones of dx (one Philox counter).
 * Sums over tokens (dA, dB): one thread an element, tokens in ascending order.
 * dropout(x) is rounded to bf16, as an operand of a matrix product is.
 */
#include "cuda/backend.h"
#include "cuda/dropout.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear_parts.cuh"
#include "cuda/lora.h"
#include "cuda/reduce.cuh"

namespace
{

constexpr int THREADS = 256, REDUCE_THREADS = 128;

/* bf16 rows in memory. */
struct rows_in {
    const __nv_bfloat16 *data;
    int64_t stride;
    __device__ float at(int64_t row, int64_t column) const { return to_float(data[row * stride + column]); }
};

struct rows_out {
    __nv_bfloat16 *data;
    int64_t stride;
};

rows_in in(nib_matrix m) { return {(const __nv_bfloat16 *)m.data, m.stride}; }
rows_out out(nib_matrix m) { return {(__nv_bfloat16 *)m.data, m.stride}; }

/* The part that a column of u belongs to. */
__device__ const linear_part &part_of_rank(const linear_parts &parts, int rank)
{
    int p = 0;
    while (rank >= parts.part[p].first_rank + parts.part[p].rank) p++;
    return parts.part[p];
}

/* u[t][r] = sum over k of dropout(x)[t][k] a[r][k]. grid (T, ranks). */
__global__ void __launch_bounds__(REDUCE_THREADS)
    lora_down_plain_kernel(linear_parts parts, rows_in x, float p, float keep, rows_out u)
{
    const int64_t t = blockIdx.x;
    const linear_part &part = part_of_rank(parts, (int)blockIdx.y);
    const rows_in a = {part.a, part.a_stride};
    float sum = 0.0f;
    for (int64_t k = 4 * (int64_t)threadIdx.x; k < parts.K; k += 4 * REDUCE_THREADS) {
        float factor[4];
        dropout_factors(dropout_key(part.key, p), p, keep, t, k, factor);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (k + i < parts.K)
                sum =
                    fmaf(to_float(to_bf16(x.at(t, k + i) * factor[i])), a.at(blockIdx.y - part.first_rank, k + i), sum);
    }
    sum = block_sum(sum, dynamic_shared<float>());
    if (threadIdx.x == 0) u.data[t * u.stride + blockIdx.y] = to_bf16(sum);
}

/* y[t][n] += scale * sum over r of u[t][r] b[n][r]. grid (T, N / THREADS). */
__global__ void __launch_bounds__(THREADS) lora_up_plain_kernel(linear_parts parts, rows_in u, int64_t N, rows_out y)
{
    const int64_t t = blockIdx.x, output = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (output >= N) return;
    const linear_part &part = part_of_row(parts, output);
    if (part.rank == 0) return;
    const rows_in b = {part.b, part.b_stride};
    float sum = 0.0f;
    for (int r = 0; r < part.rank; r++) sum = fmaf(u.at(t, part.first_rank + r), b.at(output - part.first_row, r), sum);
    __nv_bfloat16 *at = y.data + t * y.stride + output;
    *at = to_bf16(fmaf(part.scale, sum, to_float(*at)));
}

/* du[t][r] = scale * sum over n of dy[t][n] b[n][r]. grid (T, ranks). */
__global__ void __launch_bounds__(REDUCE_THREADS) lora_du_plain_kernel(linear_parts parts, rows_in dy, rows_out du)
{
    const int64_t t = blockIdx.x;
    const linear_part &part = part_of_rank(parts, (int)blockIdx.y);
    const rows_in b = {part.b, part.b_stride};
    float sum = 0.0f;
    for (int64_t n = threadIdx.x; n < part.rows; n += REDUCE_THREADS)
        sum = fmaf(dy.at(t, part.first_row + n), b.at(n, blockIdx.y - part.first_rank), sum);
    sum = block_sum(sum, dynamic_shared<float>());
    if (threadIdx.x == 0) du.data[t * du.stride + blockIdx.y] = to_bf16(part.scale * sum);
}

/* dx[t][k] += sum over parts of mask[t][k] * sum over r of du[t][r] a[r][k]. grid (T, K / (4 THREADS)). */
__global__ void __launch_bounds__(THREADS)
    lora_dx_plain_kernel(linear_parts parts, rows_in du, float p, float keep, rows_out dx)
{
    const int64_t t = blockIdx.x, k = 4 * ((int64_t)blockIdx.y * THREADS + threadIdx.x);
    if (k >= parts.K) return;
    float total[4] = {};
    for (int i = 0; i < parts.count; i++) {
        const linear_part &part = parts.part[i];
        if (part.rank == 0) continue;
        const rows_in a = {part.a, part.a_stride};
        float sum[4] = {}, factor[4];
        for (int r = 0; r < part.rank; r++)
            for (int j = 0; j < 4 && k + j < parts.K; j++)
                sum[j] = fmaf(du.at(t, part.first_rank + r), a.at(r, k + j), sum[j]);
        dropout_factors(dropout_key(part.key, p), p, keep, t, k, factor);
        for (int j = 0; j < 4; j++) total[j] = fmaf(factor[j], sum[j], total[j]);
    }
    __nv_bfloat16 *at = dx.data + t * dx.stride + k;
    for (int j = 0; j < 4 && k + j < parts.K; j++) at[j] = to_bf16(to_float(at[j]) + total[j]);
}

/* db[n][r] += scale * sum over t of dy[t][n] u[t][r], of one part. */
__global__ void __launch_bounds__(THREADS)
    lora_db_plain_kernel(linear_part part, rows_in dy, rows_in u, int64_t T, float *db)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, n = i / part.rank;
    if (n >= part.rows) return;
    const int r = (int)(i % part.rank);
    float sum = 0.0f;
    for (int64_t t = 0; t < T; t++) sum = fmaf(dy.at(t, part.first_row + n), u.at(t, part.first_rank + r), sum);
    db[i] = fmaf(part.scale, sum, db[i]);
}

/* da[r][k] += sum over t of du[t][r] dropout(x)[t][k], of one part. */
__global__ void __launch_bounds__(THREADS)
    lora_da_plain_kernel(linear_part part, rows_in x, float p, float keep, rows_in du, int64_t T, int64_t K, float *da)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, r = i / K, k = i % K;
    if (r >= part.rank) return;
    float sum = 0.0f;
    for (int64_t t = 0; t < T; t++) {
        const float kept = dropout_factor_of(dropout_key(part.key, p), p, keep, t, k);
        sum = fmaf(du.at(t, part.first_rank + r), to_float(to_bf16(x.at(t, k) * kept)), sum);
    }
    da[i] += sum;
}

unsigned ceil_div(int64_t a, int64_t b) { return (unsigned)((a + b - 1) / b); }

float keep_of(nib_dropout dropout) { return 1.0f / (1.0f - dropout.p); }

} // namespace

nib_status nib_cuda_lora_down_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                    nib_matrix u)
{
    const int64_t ranks = nib_linear_ranks(linear);
    if (ranks == 0 || x.rows == 0) return NIB_OK;
    return nib_cuda_launch(lora_down_plain_kernel, dim3((unsigned)x.rows, (unsigned)ranks), dim3(REDUCE_THREADS),
                           32 * sizeof(float), nib_cuda_stream(ops), linear_parts_of(linear, dropout), in(x), dropout.p,
                           keep_of(dropout), out(u));
}

nib_status nib_cuda_lora_up_plain(nib_ops *ops, const nib_linear *linear, nib_matrix u, nib_matrix y)
{
    if (nib_linear_ranks(linear) == 0 || y.rows == 0) return NIB_OK;
    return nib_cuda_launch(lora_up_plain_kernel, dim3((unsigned)y.rows, ceil_div(y.columns, THREADS)), dim3(THREADS), 0,
                           nib_cuda_stream(ops), linear_parts_of(linear, nib_dropout{}), in(u), y.columns, out(y));
}

nib_status nib_cuda_lora_du_plain(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix du)
{
    const int64_t ranks = nib_linear_ranks(linear);
    if (ranks == 0 || dy.rows == 0) return NIB_OK;
    return nib_cuda_launch(lora_du_plain_kernel, dim3((unsigned)dy.rows, (unsigned)ranks), dim3(REDUCE_THREADS),
                           32 * sizeof(float), nib_cuda_stream(ops), linear_parts_of(linear, nib_dropout{}), in(dy),
                           out(du));
}

nib_status nib_cuda_lora_dx_plain(nib_ops *ops, const nib_linear *linear, nib_matrix du, nib_dropout dropout,
                                  nib_matrix dx)
{
    if (nib_linear_ranks(linear) == 0 || dx.rows == 0) return NIB_OK;
    return nib_cuda_launch(lora_dx_plain_kernel, dim3((unsigned)dx.rows, ceil_div(linear->K, 4 * THREADS)),
                           dim3(THREADS), 0, nib_cuda_stream(ops), linear_parts_of(linear, dropout), in(du), dropout.p,
                           keep_of(dropout), out(dx));
}

nib_status nib_cuda_lora_gradients_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                         nib_matrix u, nib_matrix dy, nib_matrix du)
{
    const linear_parts parts = linear_parts_of(linear, dropout);
    if (x.rows == 0) return NIB_OK;
    for (int p = 0; p < linear->parts; p++) {
        const nib_lora *lora = &linear->part[p].lora;
        if (lora->rank > 0 && lora->db != NULL)
            NIB_TRY(nib_cuda_launch(lora_db_plain_kernel, dim3(ceil_div(linear->part[p].rows * lora->rank, THREADS)),
                                    dim3(THREADS), 0, nib_cuda_stream(ops), parts.part[p], in(dy), in(u), x.rows,
                                    lora->db));
        if (lora->rank > 0 && lora->da != NULL)
            NIB_TRY(nib_cuda_launch(lora_da_plain_kernel, dim3(ceil_div(linear->K * lora->rank, THREADS)),
                                    dim3(THREADS), 0, nib_cuda_stream(ops), parts.part[p], in(x), dropout.p,
                                    keep_of(dropout), in(du), x.rows, linear->K, lora->da));
    }
    return NIB_OK;
}
