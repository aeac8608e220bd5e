/* c [M, N] = op(a) op(b) (+ c) without tensor cores, of bf16, or of e4m3 with scales: the oracle of cublasLt on a card
 * that nobody has tried, and what is left where the two disagree.
 *
 * A block of 16 x 16 threads computes 16 x 16 elements of c, a thread one of them, over tiles of 16 of the sum: 16 x 16
 * values of op(a) and of op(b) through shared memory, rows one float longer than a tile so that a column's values lie
 * in different banks. fp32 sums in ascending order of k, rounded once. Any size and stride.
 */
#include "cuda/backend.h"
#include "cuda/e4m3.cuh"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"
#include "cuda/matmul.h"

namespace
{

constexpr int TILE = 16, PADDED = TILE + 1;

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return to_float(x); }
__device__ float widen(uint8_t x) { return e4m3_to_float(x); }
__device__ void narrow(float sum, float *at) { *at = sum; }
__device__ void narrow(float sum, __nv_bfloat16 *at) { *at = to_bf16(sum); }

/* op(m)[row][column], 0 beyond its end; of e4m3, what has still to be multiplied with the row's or column's scale. */
template <class In> struct operand {
    const In *data;
    int64_t row_stride, column_stride, rows, columns;
    const float *scale; /* NULL: 1 */
    __device__ float at(int64_t row, int64_t column) const
    {
        return row < rows && column < columns ? widen(data[row * row_stride + column * column_stride]) : 0.0f;
    }
    __device__ float scale_of(int64_t i) const { return scale == nullptr ? 1.0f : scale[i]; }
};

operand<__nv_bfloat16> operand_of(nib_matrix m, bool transpose)
{
    const __nv_bfloat16 *data = (const __nv_bfloat16 *)m.data;
    return transpose ? operand<__nv_bfloat16>{data, 1, m.stride, m.columns, m.rows, NULL}
                     : operand<__nv_bfloat16>{data, m.stride, 1, m.rows, m.columns, NULL};
}

/* grid (N / TILE, M / TILE) */
template <class In, class Out>
__global__ void __launch_bounds__(TILE *TILE)
    matmul_plain_kernel(operand<In> a, operand<In> b, bool accumulate, Out *c, int64_t c_stride)
{
    float *a_tile = dynamic_shared<float>(), *b_tile = a_tile + TILE * PADDED;
    const int i = (int)threadIdx.y, j = (int)threadIdx.x;
    const int64_t row = (int64_t)blockIdx.y * TILE + i, column = (int64_t)blockIdx.x * TILE + j;
    float sum = 0.0f;
    for (int64_t k = 0; k < a.columns; k += TILE) {
        a_tile[i * PADDED + j] = a.at(row, k + j);
        b_tile[i * PADDED + j] = b.at(k + i, column);
        __syncthreads();
        for (int t = 0; t < TILE; t++) sum = fmaf(a_tile[i * PADDED + t], b_tile[t * PADDED + j], sum);
        __syncthreads();
    }
    if (row >= a.rows || column >= b.columns) return;
    sum *= a.scale_of(row) * b.scale_of(column);
    Out *at = c + row * c_stride + column;
    narrow(accumulate ? sum + widen(*at) : sum, at);
}

template <class In, class Out>
nib_status launch(nib_ops *ops, operand<In> a, operand<In> b, bool accumulate, nib_matrix c)
{
    const dim3 grid((unsigned)((c.columns + TILE - 1) / TILE), (unsigned)((c.rows + TILE - 1) / TILE));
    return nib_cuda_launch(matmul_plain_kernel<In, Out>, grid, dim3(TILE, TILE), 2 * TILE * PADDED * sizeof(float),
                           nib_cuda_stream(ops), a, b, accumulate, (Out *)c.data, c.stride);
}

} // namespace

nib_status nib_cuda_matmul_plain(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                                 bool accumulate, nib_matrix c)
{
    const operand<__nv_bfloat16> left = operand_of(a, transpose_a), right = operand_of(b, transpose_b);
    return c.dtype == NIB_DTYPE_F32 ? launch<__nv_bfloat16, float>(ops, left, right, accumulate, c)
                                    : launch<__nv_bfloat16, __nv_bfloat16>(ops, left, right, accumulate, c);
}

nib_status nib_cuda_matmul_e4m3_plain(nib_ops *ops, const nib_cuda_e4m3 *a, const nib_cuda_e4m3 *b, bool accumulate,
                                      nib_matrix c)
{
    const operand<uint8_t> left = {a->data, a->stride, 1, a->rows, a->columns, a->scale};
    const operand<uint8_t> right = {b->data, 1, b->stride, b->columns, b->rows, b->scale};
    return launch<uint8_t, __nv_bfloat16>(ops, left, right, accumulate, c);
}
