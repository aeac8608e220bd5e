/* to[r][c] = from[r][c] in to's type; to[i] += from[i].
 *
 * One thread an element, a grid that strides over all of them: neighbours in a warp are neighbours in a row. No shared
 * memory. Bandwidth is what counts, but these run once a step over adapters, not over activations. */
#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"

static const int THREADS = 256;
static const int64_t MOST_BLOCKS = 4096;

static __device__ float widened(float x) { return x; }
static __device__ float widened(__nv_bfloat16 x) { return to_float(x); }
static __device__ void store(float *to, float x) { *to = x; }
static __device__ void store(__nv_bfloat16 *to, float x) { *to = to_bf16(x); }

template <typename From, typename To>
__global__ void convert_kernel(const From *from, int64_t from_stride, To *to, int64_t to_stride, int64_t columns,
                               int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        int64_t r = i / columns, c = i % columns;
        store(&to[r * to_stride + c], widened(from[r * from_stride + c]));
    }
}

__global__ void accumulate_kernel(float *to, const float *from, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) to[i] += from[i];
}

static unsigned blocks_for(int64_t n)
{
    int64_t blocks = (n + THREADS - 1) / THREADS;
    return (unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
}

template <typename From, typename To> static nib_status convert(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    int64_t n = from.rows * from.columns;
    return nib_cuda_launch(convert_kernel<From, To>, dim3(blocks_for(n)), dim3(THREADS), 0, nib_cuda_stream(ops),
                           (const From *)from.data, from.stride, (To *)to.data, to.stride, from.columns, n);
}

nib_status nib_cuda_convert(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    if (from.rows != to.rows || from.columns != to.columns)
        return NIB_FAIL(NIB_ERROR_SHAPE, "convert: [%lld, %lld] to [%lld, %lld]", (long long)from.rows,
                        (long long)from.columns, (long long)to.rows, (long long)to.columns);
    bool from_wide = from.dtype == NIB_DTYPE_F32, to_wide = to.dtype == NIB_DTYPE_F32;
    if ((!from_wide && from.dtype != NIB_DTYPE_BF16) || (!to_wide && to.dtype != NIB_DTYPE_BF16))
        return NIB_FAIL(NIB_ERROR_SHAPE, "convert: %s to %s is not supported", nib_dtype_name(from.dtype),
                        nib_dtype_name(to.dtype));
    if (from.rows * from.columns == 0) return NIB_OK;
    if (from_wide) return to_wide ? convert<float, float>(ops, from, to) : convert<float, __nv_bfloat16>(ops, from, to);
    return to_wide ? convert<__nv_bfloat16, float>(ops, from, to)
                   : convert<__nv_bfloat16, __nv_bfloat16>(ops, from, to);
}

nib_status nib_cuda_accumulate(nib_ops *ops, float *to, const float *from, int64_t n)
{
    if (n == 0) return NIB_OK;
    return nib_cuda_launch(accumulate_kernel, dim3(blocks_for(n)), dim3(THREADS), 0, nib_cuda_stream(ops), to, from, n);
}
