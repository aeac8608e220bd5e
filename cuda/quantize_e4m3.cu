/* out[t][k] = e4m3(x[t][k] / scale[t]), scale[t] = the smallest power of two with which row t's largest magnitude stays
 * within the format.
 *
 * A warp has a row, and reads it twice, 16 bytes a lane: for the largest magnitude, whose order among bf16 is that of
 * their bits (so NaN is the largest of all), and, from the cache, to convert. Eight warps a block, no shared memory.
 * Bound by memory: 3 bytes move for an element; for all linears of a layer of Llama-3-8B, forward and backward, 70,000
 * elements a token. cuda/e4m3.cuh says why scales are powers of two. */
#include "cuda/backend.h"
#include "cuda/e4m3.cuh"
#include "cuda/launch.cuh"
#include "cuda/quantize_e4m3.h"
#include "cuda/vector.cuh"

namespace
{

constexpr int WARPS = 8, THREADS = 32 * WARPS;

__device__ uint32_t larger(uint32_t most, uint32_t pair)
{
    return max(most, max(pair & 0x7fffu, pair >> 16 & 0x7fffu));
}

__device__ uint32_t convert_pair(uint32_t pair, float inverse)
{
    const float2 x = unpack_bf16(pair);
    return pack_e4m3(x.x * inverse, x.y * inverse);
}

/* grid (T / WARPS) */
__global__ void __launch_bounds__(THREADS)
    quantize_e4m3_kernel(const __nv_bfloat16 *x, int64_t stride, int64_t T, int64_t K, uint8_t *out, int64_t out_stride,
                         float *scale)
{
    const int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = (int)threadIdx.x % 32;
    if (t >= T) return;
    x += t * stride;
    out += t * out_stride;
    uint32_t most = 0;
#pragma unroll 4
    for (int64_t k = lane * VECTOR; k < K; k += 32 * VECTOR) {
        const uint4 v = load16(x + k);
        most = larger(larger(larger(larger(most, v.x), v.y), v.z), v.w);
    }
    const uint32_t bits = e4m3_scale_bits(__reduce_max_sync(0xffffffffu, most) << 16);
    const float inverse = e4m3_inverse(bits);
    if (lane == 0) scale[t] = __uint_as_float(bits);
#pragma unroll 4
    for (int64_t k = lane * VECTOR; k < K; k += 32 * VECTOR) {
        const uint4 v = load16(x + k);
        store8(out + k, make_uint2(convert_pair(v.x, inverse) | convert_pair(v.y, inverse) << 16,
                                   convert_pair(v.z, inverse) | convert_pair(v.w, inverse) << 16));
    }
}

} // namespace

nib_status nib_cuda_quantize_e4m3(nib_ops *ops, nib_matrix x, nib_cuda_e4m3 *out)
{
    if (x.dtype != NIB_DTYPE_BF16 || x.columns % 16 != 0 || !whole_vectors(x))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "quantize_e4m3: x [%lld, %lld] %s at a stride of %lld, expected BF16 in rows of a multiple of "
                        "16, each 16-byte aligned",
                        (long long)x.rows, (long long)x.columns, nib_dtype_name(x.dtype), (long long)x.stride);
    *out = {NULL, x.rows, x.columns, x.columns, NULL};
    NIB_TRY(nib_arena_take(ops->scratch, x.rows * x.columns, 1, &out->data));
    NIB_TRY(nib_arena_take(ops->scratch, x.rows, sizeof(float), &out->scale));
    if (x.rows == 0 || x.columns == 0) return NIB_OK;
    return nib_cuda_launch(quantize_e4m3_kernel, dim3((unsigned)divide_up(x.rows, WARPS)), dim3(THREADS), 0,
                           nib_cuda_stream(ops), bf16_of(x), x.stride, x.rows, x.columns, out->data, out->stride,
                           out->scale);
}
