/* With r = 1 / sqrt(mean(x^2) + epsilon):
 *     forward   x += delta,  y = x r w
 *     backward  dx += r (w dy - x r^2 mean(w dy x)),  dweight += sum over rows of dy x r
 *
 * Of a matrix of groups, blockIdx.y is the group; C and `columns` are those of one, `begin` the first of this one.
 *
 * Bandwidth-bound, so a row crosses the memory bus once. A row belongs to a warp if it is narrow, else to a block;
 * every thread keeps its own vectors of the row in shared memory (as bf16, 2 bytes a column and operand) until the sum
 * is known, and reads back only what it wrote itself, so there is no barrier but that of the sum. threads    4 warps, a
 * row each (C <= 1024), or one block of 256 threads a row shared     forward 2 C bytes a row, backward 4 C, and a float
 * for each warp registers  below 40: two blocks' worth of loads in flight on every SM dweight is taken over slices of
 * 128 rows, a thread holding its columns, and the slices are then added in order. */
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/rmsnorm.h"
#include "cuda/row_norm.cuh"

template <int N, bool WARP>
__global__ void rmsnorm_forward_kernel(int64_t rows, int columns, __nv_bfloat16 *x, int64_t x_stride,
                                       const __nv_bfloat16 *delta, int64_t delta_stride, const float *weight,
                                       float epsilon, __nv_bfloat16 *y, int64_t y_stride)
{
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (t >= rows) return; /* a whole warp */
    const int begin = blockIdx.y * columns, end = begin + columns;
    const int first = begin + threadIdx.x * N, step = blockDim.x * N;
    __nv_bfloat16 *kept = dynamic_shared<__nv_bfloat16>() + threadIdx.y * columns - begin;
    weight -= begin;
    float squares = 0.0f;
    for (int c = first; c < end; c += step) {
        float v[N];
        load(x + t * x_stride + c, v);
        if (delta != nullptr) {
            float d[N];
            load(delta + t * delta_stride + c, d);
#pragma unroll
            for (int i = 0; i < N; i++) v[i] = round_to_bf16(v[i] + d[i]); /* as the backward pass will see it */
            store(x + t * x_stride + c, v);
        }
        store(kept + c, v);
#pragma unroll
        for (int i = 0; i < N; i++) squares += v[i] * v[i];
    }
    if (y == nullptr) return;
    float *sums = sums_behind(blockDim.y * columns);
    const float r = 1.0f / sqrtf(row_sum<WARP>(squares, sums) / (float)columns + epsilon);
    for (int c = first; c < end; c += step) {
        float v[N], w[N];
        load(kept + c, v);
        load(weight + c, w);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = v[i] * r * w[i];
        store(y + t * y_stride + c, v);
    }
}

template <int N, bool WARP>
__global__ void rmsnorm_backward_kernel(int64_t rows, int columns, const __nv_bfloat16 *x, int64_t x_stride,
                                        const float *weight, float epsilon, const __nv_bfloat16 *dy, int64_t dy_stride,
                                        __nv_bfloat16 *dx, int64_t dx_stride, float *inverse)
{
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (t >= rows) return; /* a whole warp */
    const int begin = blockIdx.y * columns, end = begin + columns;
    const int first = begin + threadIdx.x * N, step = blockDim.x * N;
    __nv_bfloat16 *kept_x = dynamic_shared<__nv_bfloat16>() + threadIdx.y * 2 * columns - begin;
    __nv_bfloat16 *kept_dy = kept_x + columns;
    weight -= begin;
    float squares = 0.0f, products = 0.0f;
    for (int c = first; c < end; c += step) {
        float v[N], g[N], w[N];
        load(x + t * x_stride + c, v);
        load(dy + t * dy_stride + c, g);
        load(weight + c, w);
        store(kept_x + c, v);
        store(kept_dy + c, g);
#pragma unroll
        for (int i = 0; i < N; i++) {
            squares += v[i] * v[i];
            products += g[i] * w[i] * v[i];
        }
    }
    float *sums = sums_behind(blockDim.y * 2 * columns);
    const float r = 1.0f / sqrtf(row_sum<WARP>(squares, sums) / (float)columns + epsilon);
    const float along = row_sum<WARP>(products, sums + blockDim.x / 32) / (float)columns * r * r;
    if (inverse != nullptr && threadIdx.x == 0) inverse[blockIdx.y * rows + t] = r;
    for (int c = first; c < end; c += step) {
        float v[N], g[N], w[N], sum[N];
        load(kept_x + c, v);
        load(kept_dy + c, g);
        load(weight + c, w);
        load(dx + t * dx_stride + c, sum);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += r * (g[i] * w[i] - v[i] * along);
        store(dx + t * dx_stride + c, sum);
    }
}

/* partial[group][slice][c] = sum of dy x r over the rows of a slice, in order; inverse [group][rows]. */
template <int N>
__global__ void rmsnorm_weight_slices_kernel(int64_t rows, int columns, const __nv_bfloat16 *x, int64_t x_stride,
                                             const __nv_bfloat16 *dy, int64_t dy_stride, const float *inverse,
                                             float *partial)
{
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (c >= columns) return;
    const int64_t first = (int64_t)blockIdx.y * SLICE_ROWS;
    const int64_t last = first + SLICE_ROWS < rows ? first + SLICE_ROWS : rows;
    float sum[N] = {};
    x += blockIdx.z * columns;
    dy += blockIdx.z * columns;
    inverse += blockIdx.z * rows;
    for (int64_t t = first; t < last; t++) {
        float v[N], g[N];
        load(x + t * x_stride + c, v);
        load(dy + t * dy_stride + c, g);
        const float r = inverse[t];
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += g[i] * v[i] * r;
    }
    store(partial + (int64_t)(blockIdx.z * gridDim.y + blockIdx.y) * columns + c, sum);
}

__global__ void rmsnorm_weight_kernel(int columns, int slices, const float *partial, float *dweight)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= columns) return;
    float sum = 0.0f;
    for (int s = 0; s < slices; s++) sum += partial[(int64_t)s * columns + c];
    dweight[c] += sum;
}

static nib_status check(const char *other, nib_matrix x, int64_t groups, nib_matrix y)
{
    if (x.dtype != NIB_DTYPE_BF16 || y.dtype != NIB_DTYPE_BF16 || x.rows != y.rows || x.columns != y.columns ||
        x.columns % groups != 0 || x.columns / groups > ROW_NORM_COLUMNS)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "rmsnorm: x %s [%lld, %lld], %s %s [%lld, %lld], %lld groups; bf16 and at most %d columns each",
                        nib_dtype_name(x.dtype), (long long)x.rows, (long long)x.columns, other,
                        nib_dtype_name(y.dtype), (long long)y.rows, (long long)y.columns, (long long)groups,
                        ROW_NORM_COLUMNS);
    return NIB_OK;
}

nib_status nib_cuda_rmsnorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, int64_t groups,
                                    const float *weight, float epsilon, nib_matrix y)
{
    const nib_matrix d = delta != nullptr ? *delta : nib_matrix{};
    if (y.data != nullptr) NIB_TRY(check("y", x, groups, y));
    if (delta != nullptr) NIB_TRY(check("delta", x, groups, d));
    if (x.rows == 0) return NIB_OK;
    const int64_t columns = x.columns / groups;
    const row_launch l = launch_of(x.rows, groups, columns, 1, 1);
    const bool vectors = whole_vectors({x, y, d}) && columns % VECTOR == 0 && whole_vectors(weight);
    const bool warp = l.block.x == 32;
    return nib_cuda_launch(vectors
                               ? (warp ? rmsnorm_forward_kernel<VECTOR, true> : rmsnorm_forward_kernel<VECTOR, false>)
                               : (warp ? rmsnorm_forward_kernel<1, true> : rmsnorm_forward_kernel<1, false>),
                           l.grid, l.block, l.shared, nib_cuda_stream(ops), x.rows, (int)columns, bf16_of(x), x.stride,
                           bf16_of(d), d.stride, weight, epsilon, bf16_of(y), y.stride);
}

static nib_status weight_gradient(nib_ops *ops, nib_matrix x, int64_t groups, nib_matrix dy, const float *inverse,
                                  float *partial, float *dweight)
{
    const int64_t columns = x.columns / groups, slices = divide_up(x.rows, SLICE_ROWS);
    const bool vectors = whole_vectors({x, dy}) && columns % VECTOR == 0;
    const int64_t width = vectors ? VECTOR * BLOCK_THREADS : BLOCK_THREADS;
    NIB_TRY(nib_cuda_launch(vectors ? rmsnorm_weight_slices_kernel<VECTOR> : rmsnorm_weight_slices_kernel<1>,
                            dim3((unsigned)divide_up(columns, width), (unsigned)slices, (unsigned)groups),
                            dim3(BLOCK_THREADS), 0, nib_cuda_stream(ops), x.rows, (int)columns, bf16_of(x), x.stride,
                            bf16_of(dy), dy.stride, inverse, partial));
    return nib_cuda_launch(rmsnorm_weight_kernel, dim3((unsigned)divide_up(columns, BLOCK_THREADS)),
                           dim3(BLOCK_THREADS), 0, nib_cuda_stream(ops), (int)columns, (int)(groups * slices), partial,
                           dweight);
}

nib_status nib_cuda_rmsnorm_backward(nib_ops *ops, nib_matrix x, int64_t groups, const float *weight, float epsilon,
                                     nib_matrix dy, nib_matrix dx, float *dweight)
{
    NIB_TRY(check("dy", x, groups, dy));
    NIB_TRY(check("dx", x, groups, dx));
    if (x.rows == 0) return NIB_OK;
    const int64_t columns = x.columns / groups, slices = divide_up(x.rows, SLICE_ROWS);
    const size_t mark = ops->scratch->used;
    float *inverse = nullptr, *partial = nullptr;
    if (dweight != nullptr) {
        NIB_TRY(nib_arena_take(ops->scratch, groups * x.rows, sizeof *inverse, &inverse));
        NIB_TRY(nib_arena_take(ops->scratch, groups * slices * columns, sizeof *partial, &partial));
    }
    nib_arena_reset(ops->scratch, mark);
    if (ops->rehearsal) return NIB_OK;
    const row_launch l = launch_of(x.rows, groups, columns, 2, 2);
    const bool vectors = whole_vectors({x, dy, dx}) && columns % VECTOR == 0 && whole_vectors(weight);
    const bool warp = l.block.x == 32;
    NIB_TRY(nib_cuda_launch(
        vectors ? (warp ? rmsnorm_backward_kernel<VECTOR, true> : rmsnorm_backward_kernel<VECTOR, false>)
                : (warp ? rmsnorm_backward_kernel<1, true> : rmsnorm_backward_kernel<1, false>),
        l.grid, l.block, l.shared, nib_cuda_stream(ops), x.rows, (int)columns, bf16_of(x), x.stride, weight, epsilon,
        bf16_of(dy), dy.stride, bf16_of(dx), dx.stride, inverse));
    return dweight != nullptr ? weight_gradient(ops, x, groups, dy, inverse, partial, dweight) : NIB_OK;
}
