/* The adapters' products under dropout: each part has a mask of its own on x, so u is a product for each part of what
 * its mask leaves of x, and du A is masked before it is added to dy W. A CHUNK of tokens at a time, so that what is
 * written in between stays small: dropped x in bf16, sums in fp32. The masks are the CPU backend's, from a counter of
 * token and column; a thread has the four columns of one counter. */
#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/dropout.cuh"
#include "cuda/launch.cuh"
#include "cuda/lora.h"
#include "cuda/matmul.h"
#include "cuda/token_chunks.cuh"
#include "cuda/vector.cuh"

namespace
{

constexpr int THREADS = 256;
constexpr int64_t CHUNK = 2048; /* tokens */

struct masked_rows {
    int64_t first, rows, K; /* token of row 0 */
    const uint64_t *key;
    float p, keep;
};

/* to[t][k] = mask x[t][k] / (1 - p). */
__global__ void __launch_bounds__(THREADS)
    lora_drop_kernel(masked_rows m, const __nv_bfloat16 *x, int64_t stride, __nv_bfloat16 *to, int64_t to_stride)
{
    const int64_t groups = (m.K + 3) / 4, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t t = i / groups, k = i % groups * 4;
    if (t >= m.rows) return;
    float factor[4];
    dropout_factors(*m.key, m.p, m.keep, m.first + t, k, factor);
    for (int j = 0; j < 4 && k + j < m.K; j++)
        to[t * to_stride + k + j] = to_bf16(to_float(x[t * stride + k + j]) * factor[j]);
}

/* sum[t][k] += mask from[t][k] / (1 - p); both [rows, K] without gaps. */
__global__ void __launch_bounds__(THREADS) lora_add_dropped_kernel(masked_rows m, const float *from, float *sum)
{
    const int64_t groups = (m.K + 3) / 4, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t t = i / groups, k = i % groups * 4;
    if (t >= m.rows) return;
    float factor[4];
    dropout_factors(*m.key, m.p, m.keep, m.first + t, k, factor);
    for (int j = 0; j < 4 && k + j < m.K; j++)
        sum[t * m.K + k + j] = fmaf(factor[j], from[t * m.K + k + j], sum[t * m.K + k + j]);
}

masked_rows masked(nib_dropout dropout, int part, int64_t first, int64_t rows, int64_t K)
{
    return {first, rows, K, dropout.key + part, dropout.p, 1.0f / (1.0f - dropout.p)};
}

dim3 grid_of(masked_rows m) { return dim3((unsigned)divide_up(m.rows * divide_up(m.K, 4), THREADS)); }

} // namespace

nib_status nib_cuda_lora_drop(nib_ops *ops, int64_t first, nib_matrix x, nib_dropout dropout, int part, nib_matrix to)
{
    const masked_rows m = masked(dropout, part, first, x.rows, x.columns);
    return nib_cuda_launch(lora_drop_kernel, grid_of(m), dim3(THREADS), 0, nib_cuda_stream(ops), m, bf16_of(x),
                           x.stride, bf16_of(to), to.stride);
}

nib_status nib_cuda_lora_add_dropped(nib_ops *ops, int64_t first, nib_matrix from, nib_dropout dropout, int part,
                                     nib_matrix sum)
{
    const masked_rows m = masked(dropout, part, first, sum.rows, sum.columns);
    return nib_cuda_launch(lora_add_dropped_kernel, grid_of(m), dim3(THREADS), 0, nib_cuda_stream(ops), m,
                           float_of(from), float_of(sum));
}

namespace
{

int64_t padded_rank(const nib_linear *linear, int p) { return divide_up(linear->part[p].lora.rank, 8) * 8; }

/* u of tokens first .. first + rows - 1. */
nib_status down_chunk(nib_ops *ops, const nib_linear *linear, int64_t first, nib_matrix x, nib_dropout dropout,
                      nib_matrix a, nib_matrix u)
{
    nib_matrix dropped = {NULL, x.rows, x.columns, x.columns, NIB_DTYPE_BF16};
    NIB_TRY(nib_arena_take(ops->scratch, x.rows * x.columns, sizeof(nib_bf16), &dropped.data));
    for (int64_t p = 0, rank = 0; p < linear->parts; rank += padded_rank(linear, (int)p++)) {
        const int64_t ranks = padded_rank(linear, (int)p);
        if (ranks == 0) continue;
        NIB_TRY(nib_cuda_lora_drop(ops, first, x, dropout, (int)p, dropped));
        NIB_TRY(nib_cuda_matmul(ops, dropped, false, nib_matrix_rows(a, rank, ranks), true, false,
                                nib_matrix_columns(u, rank, ranks)));
    }
    return NIB_OK;
}

/* dx of tokens first .. first + rows - 1. */
nib_status dx_chunk(nib_ops *ops, const nib_linear *linear, int64_t first, nib_matrix dy, nib_dropout dropout,
                    nib_matrix weight, bool accumulate, nib_matrix dx)
{
    const int64_t N = weight.rows - nib_linear_padded_ranks(linear), rows = dx.rows, K = dx.columns;
    nib_matrix sum = {NULL, rows, K, K, NIB_DTYPE_F32}, through = sum;
    NIB_TRY(nib_arena_take(ops->scratch, rows * K, sizeof(float), &sum.data));
    NIB_TRY(nib_arena_take(ops->scratch, rows * K, sizeof(float), &through.data));
    if (accumulate) NIB_TRY(nib_cuda_convert(ops, dx, sum));
    if (N > 0)
        NIB_TRY(nib_cuda_matmul(ops, nib_matrix_columns(dy, 0, N), false, nib_matrix_rows(weight, 0, N), false,
                                accumulate, sum));
    for (int64_t p = 0, rank = N; p < linear->parts; rank += padded_rank(linear, (int)p++)) {
        const int64_t ranks = padded_rank(linear, (int)p);
        if (ranks == 0) continue;
        NIB_TRY(nib_cuda_matmul(ops, nib_matrix_columns(dy, rank, ranks), false, nib_matrix_rows(weight, rank, ranks),
                                false, false, through));
        NIB_TRY(nib_cuda_lora_add_dropped(ops, first, through, dropout, (int)p, sum));
    }
    return nib_cuda_convert(ops, sum, dx);
}

} // namespace

nib_status nib_cuda_lora_down_masked(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                     nib_matrix a, nib_matrix u)
{
    return for_each_chunk(ops, x.rows, CHUNK, [&](int64_t first, int64_t rows) {
        return down_chunk(ops, linear, first, nib_matrix_rows(x, first, rows), dropout, a,
                          nib_matrix_rows(u, first, rows));
    });
}

nib_status nib_cuda_lora_dx_masked(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_dropout dropout,
                                   nib_matrix weight, bool accumulate, nib_matrix dx)
{
    return for_each_chunk(ops, dx.rows, CHUNK, [&](int64_t first, int64_t rows) {
        return dx_chunk(ops, linear, first, nib_matrix_rows(dy, first, rows), dropout, weight, accumulate,
                        nib_matrix_rows(dx, first, rows));
    });
}
