/* With m = mean(x), r = 1 / sqrt(mean((x - m)^2) + epsilon) and z = (x - m) r:
 *     forward   x += delta,  y = z w + b
 *     backward  dx += r (w dy - mean(w dy) - z mean(w dy z)),  dweight += sum over rows of dy z,  dbias += sum of dy
 *
 * Bandwidth-bound, so a row crosses the memory bus once and is kept in shared memory (row_norm.cuh), from which the
 * squares are summed about the mean that was found first: no cancellation where the mean is large.
 *   threads    4 warps, a row each (C <= 1024), or one block of 256 threads a row
 *   shared     forward 2 C bytes a row, backward 4 C, and a float for each warp and sum
 *   registers  below 64
 * The parameters' gradients are taken over slices of 128 rows, a thread holding its columns, and the slices are then
 * added in order. */
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/layernorm.h"
#include "cuda/row_norm.cuh"

/* m and r of the row that this thread's columns are kept of. sums: of two reductions. */
template <int N, bool WARP>
__device__ __forceinline__ float2 mean_and_inverse(const __nv_bfloat16 *kept, int columns, float own, float epsilon,
                                                   float *sums)
{
    const float mean = row_sum<WARP>(own, sums) / (float)columns;
    float squares = 0.0f;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float v[N];
        load(kept + c, v);
#pragma unroll
        for (int i = 0; i < N; i++) squares += (v[i] - mean) * (v[i] - mean);
    }
    return make_float2(mean, 1.0f / sqrtf(row_sum<WARP>(squares, sums + blockDim.x / 32) / (float)columns + epsilon));
}

template <int N, bool WARP>
__global__ void layernorm_forward_kernel(int64_t rows, int columns, __nv_bfloat16 *x, int64_t x_stride,
                                         const __nv_bfloat16 *delta, int64_t delta_stride, const float *weight,
                                         const float *bias, float epsilon, __nv_bfloat16 *y, int64_t y_stride)
{
    __nv_bfloat16 *kept = dynamic_shared<__nv_bfloat16>() + threadIdx.y * columns;
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (t >= rows) return; /* a whole warp */
    const int first = threadIdx.x * N, step = blockDim.x * N;
    float sum = 0.0f;
    for (int c = first; c < columns; c += step) {
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
        for (int i = 0; i < N; i++) sum += v[i];
    }
    if (y == nullptr) return;
    float *sums = sums_behind(blockDim.y * columns);
    const float2 m = mean_and_inverse<N, WARP>(kept, columns, sum, epsilon, sums);
    for (int c = first; c < columns; c += step) {
        float v[N], w[N], b[N] = {};
        load(kept + c, v);
        load(weight + c, w);
        if (bias != nullptr) load(bias + c, b);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = (v[i] - m.x) * m.y * w[i] + b[i];
        store(y + t * y_stride + c, v);
    }
}

template <int N, bool WARP>
__global__ void layernorm_backward_kernel(int64_t rows, int columns, const __nv_bfloat16 *x, int64_t x_stride,
                                          const float *weight, float epsilon, const __nv_bfloat16 *dy,
                                          int64_t dy_stride, __nv_bfloat16 *dx, int64_t dx_stride, float *moments)
{
    __nv_bfloat16 *kept_x = dynamic_shared<__nv_bfloat16>() + threadIdx.y * 2 * columns, *kept_dy = kept_x + columns;
    const int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (t >= rows) return; /* a whole warp */
    const int first = threadIdx.x * N, step = blockDim.x * N;
    float sum = 0.0f, level = 0.0f, along = 0.0f;
    for (int c = first; c < columns; c += step) {
        float v[N], g[N], w[N];
        load(x + t * x_stride + c, v);
        load(dy + t * dy_stride + c, g);
        load(weight + c, w);
        store(kept_x + c, v);
        store(kept_dy + c, g);
#pragma unroll
        for (int i = 0; i < N; i++) {
            sum += v[i];
            level += g[i] * w[i];
        }
    }
    float *sums = sums_behind(blockDim.y * 2 * columns);
    const float2 m = mean_and_inverse<N, WARP>(kept_x, columns, sum, epsilon, sums);
    if (moments != nullptr && threadIdx.x == 0) {
        moments[t] = m.x;
        moments[rows + t] = m.y;
    }
    for (int c = first; c < columns; c += step) {
        float v[N], g[N], w[N];
        load(kept_x + c, v);
        load(kept_dy + c, g);
        load(weight + c, w);
#pragma unroll
        for (int i = 0; i < N; i++) along += g[i] * w[i] * (v[i] - m.x);
    }
    level = row_sum<WARP>(level, sums) / (float)columns;
    along = row_sum<WARP>(along, sums + blockDim.x / 32) / (float)columns * m.y * m.y;
    for (int c = first; c < columns; c += step) {
        float v[N], g[N], w[N], to[N];
        load(kept_x + c, v);
        load(kept_dy + c, g);
        load(weight + c, w);
        load(dx + t * dx_stride + c, to);
#pragma unroll
        for (int i = 0; i < N; i++) to[i] += m.y * (g[i] * w[i] - level - (v[i] - m.x) * along);
        store(dx + t * dx_stride + c, to);
    }
}

/* partial[slice] = the sums of dy z, then those of dy, over the rows of a slice, in order. */
template <int N>
__global__ void layernorm_slices_kernel(int64_t rows, int columns, const __nv_bfloat16 *x, int64_t x_stride,
                                        const __nv_bfloat16 *dy, int64_t dy_stride, const float *moments,
                                        float *partial)
{
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (c >= columns) return;
    const int64_t first = (int64_t)blockIdx.y * SLICE_ROWS;
    const int64_t last = first + SLICE_ROWS < rows ? first + SLICE_ROWS : rows;
    float along[N] = {}, level[N] = {};
    for (int64_t t = first; t < last; t++) {
        float v[N], g[N];
        load(x + t * x_stride + c, v);
        load(dy + t * dy_stride + c, g);
        const float mean = moments[t], r = moments[rows + t];
#pragma unroll
        for (int i = 0; i < N; i++) {
            along[i] += g[i] * (v[i] - mean) * r;
            level[i] += g[i];
        }
    }
    float *to = partial + (int64_t)blockIdx.y * 2 * columns + c;
    store(to, along);
    store(to + columns, level);
}

__global__ void layernorm_parameters_kernel(int columns, int slices, const float *partial, float *dweight, float *dbias)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    float *to = blockIdx.y == 0 ? dweight : dbias;
    if (c >= columns || to == nullptr) return;
    float sum = 0.0f;
    for (int s = 0; s < slices; s++) sum += partial[((int64_t)s * 2 + blockIdx.y) * columns + c];
    to[c] += sum;
}

static nib_status check(const char *other, nib_matrix x, nib_matrix y)
{
    if (x.dtype != NIB_DTYPE_BF16 || y.dtype != NIB_DTYPE_BF16 || x.rows != y.rows || x.columns != y.columns ||
        x.columns > ROW_NORM_COLUMNS)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "layernorm: x %s [%lld, %lld], %s %s [%lld, %lld]; bf16 and at most %d columns",
                        nib_dtype_name(x.dtype), (long long)x.rows, (long long)x.columns, other,
                        nib_dtype_name(y.dtype), (long long)y.rows, (long long)y.columns, ROW_NORM_COLUMNS);
    return NIB_OK;
}

nib_status nib_cuda_layernorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, const float *weight,
                                      const float *bias, float epsilon, nib_matrix y)
{
    const nib_matrix d = delta != nullptr ? *delta : nib_matrix{};
    if (y.data != nullptr) NIB_TRY(check("y", x, y));
    if (delta != nullptr) NIB_TRY(check("delta", x, d));
    if (x.rows == 0) return NIB_OK;
    const row_launch l = launch_of(x.rows, 1, x.columns, 1, 2);
    const bool vectors = whole_vectors({x, y, d}) && whole_vectors(weight) && whole_vectors(bias);
    const bool warp = l.block.x == 32;
    return nib_cuda_launch(
        vectors ? (warp ? layernorm_forward_kernel<VECTOR, true> : layernorm_forward_kernel<VECTOR, false>)
                : (warp ? layernorm_forward_kernel<1, true> : layernorm_forward_kernel<1, false>),
        l.grid, l.block, l.shared, nib_cuda_stream(ops), x.rows, (int)x.columns, bf16_of(x), x.stride, bf16_of(d),
        d.stride, weight, bias, epsilon, bf16_of(y), y.stride);
}

static nib_status parameter_gradients(nib_ops *ops, nib_matrix x, nib_matrix dy, const float *moments, float *partial,
                                      float *dweight, float *dbias)
{
    const int64_t slices = divide_up(x.rows, SLICE_ROWS);
    const bool vectors = whole_vectors({x, dy});
    const int64_t width = vectors ? VECTOR * BLOCK_THREADS : BLOCK_THREADS;
    NIB_TRY(nib_cuda_launch(vectors ? layernorm_slices_kernel<VECTOR> : layernorm_slices_kernel<1>,
                            dim3((unsigned)divide_up(x.columns, width), (unsigned)slices), dim3(BLOCK_THREADS), 0,
                            nib_cuda_stream(ops), x.rows, (int)x.columns, bf16_of(x), x.stride, bf16_of(dy), dy.stride,
                            moments, partial));
    return nib_cuda_launch(layernorm_parameters_kernel, dim3((unsigned)divide_up(x.columns, BLOCK_THREADS), 2),
                           dim3(BLOCK_THREADS), 0, nib_cuda_stream(ops), (int)x.columns, (int)slices, partial, dweight,
                           dbias);
}

nib_status nib_cuda_layernorm_backward(nib_ops *ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy,
                                       nib_matrix dx, float *dweight, float *dbias)
{
    NIB_TRY(check("dy", x, dy));
    NIB_TRY(check("dx", x, dx));
    if (x.rows == 0) return NIB_OK;
    const size_t mark = ops->scratch->used;
    const bool trained = dweight != nullptr || dbias != nullptr;
    float *moments = nullptr, *partial = nullptr; /* [2, T] mean and r; [slices, 2, C] */
    if (trained) {
        NIB_TRY(nib_arena_take(ops->scratch, 2 * x.rows, sizeof *moments, &moments));
        NIB_TRY(nib_arena_take(ops->scratch, divide_up(x.rows, SLICE_ROWS) * 2 * x.columns, sizeof *partial, &partial));
    }
    nib_arena_reset(ops->scratch, mark);
    if (ops->rehearsal) return NIB_OK;
    const row_launch l = launch_of(x.rows, 1, x.columns, 2, 2);
    const bool vectors = whole_vectors({x, dy, dx}) && whole_vectors(weight), warp = l.block.x == 32;
    NIB_TRY(nib_cuda_launch(
        vectors ? (warp ? layernorm_backward_kernel<VECTOR, true> : layernorm_backward_kernel<VECTOR, false>)
                : (warp ? layernorm_backward_kernel<1, true> : layernorm_backward_kernel<1, false>),
        l.grid, l.block, l.shared, nib_cuda_stream(ops), x.rows, (int)x.columns, bf16_of(x), x.stride, weight, epsilon,
        bf16_of(dy), dy.stride, bf16_of(dx), dx.stride, moments));
    return trained ? parameter_gradients(ops, x, dy, moments, partial, dweight, dbias) : NIB_OK;
}
