/* m = map1[c1] a1,  v = map2[c2] a2;  AdamW's step with them (adamw_step.cuh);  then for each of m and v
 * a = max |m| over the block of 256 values,  c = the nearest of the map to m / a, 1 at least for a v above 0.
 *
 * 16 bytes an element, against 28 with moments in fp32. A warp takes a block: each lane 8 neighbours, in registers from
 * the first load to the last store, so that the maximum is a warp's and no barrier is in the loop. The maps lie in
 * shared memory, where a code is found in 8 halvings; a grid strides over the blocks, so they are loaded a few thousand
 * times. threads    256: 8 blocks of values at a time shared     2 KiB: the maps registers  below 64 */
#include "cuda/adamw_8bit.h"
#include "cuda/adamw_step.cuh"
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

constexpr int THREADS = 256, EACH = NIB_MOMENT_BLOCK / 32;

/* `count` of a lane's values, the others 0. */
template <bool VECTORS> __device__ __forceinline__ void load_part(const float *from, int count, float (&x)[EACH])
{
    if (VECTORS && count == EACH) {
        load(from, x);
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++) x[i] = i < count ? from[i] : 0.0f;
    }
}
template <bool VECTORS> __device__ __forceinline__ void store_part(float *to, int count, const float (&x)[EACH])
{
    if (VECTORS && count == EACH) {
        store(to, x);
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (i < count) to[i] = x[i];
    }
}

/* Codes to values and back. The codes of a lane are one load where all are there. */
template <bool VECTORS>
__device__ __forceinline__ void widen(const uint8_t *code, int count, const float *map, float absmax, float (&x)[EACH])
{
    uint2 bytes = make_uint2(0, 0);
    if (VECTORS && count == EACH) bytes = load8(code);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const uint32_t word = i < 4 ? bytes.x : bytes.y;
        const int c = VECTORS && count == EACH ? (int)(word >> 8 * (i % 4) & 0xff) : i < count ? code[i] : 0;
        x[i] = i < count ? __fmul_rn(map[c], absmax) : 0.0f;
    }
}

/* The entry nearest to x, which is at most 1; of two as near the lower. */
__device__ __forceinline__ uint32_t nearest(float x, const float *map)
{
    int low = 0;
#pragma unroll
    for (int step = 128; step > 0; step /= 2)
        if (map[low + step] <= x) low += step;
    return low < 255 && __fsub_rn(map[low + 1], x) < __fsub_rn(x, map[low]) ? low + 1 : low;
}

/* least: the code of a value above 0 that is as small as can be. */
template <bool VECTORS>
__device__ __forceinline__ void quantise(const float (&x)[EACH], int count, const float *map, uint32_t least,
                                         uint8_t *code, float *absmax)
{
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) largest = fmaxf(largest, fabsf(x[i]));
    largest = warp_max(largest);
    uint32_t word[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const uint32_t c = max(nearest(largest > 0.0f ? __fdiv_rn(x[i], largest) : 0.0f, map), x[i] > 0.0f ? least : 0);
        word[i / 4] |= c << 8 * (i % 4);
        if (!(VECTORS && count == EACH) && i < count) code[i] = (uint8_t)c;
    }
    if (VECTORS && count == EACH) store8(code, make_uint2(word[0], word[1]));
    if (threadIdx.x % 32 == 0) *absmax = largest;
}

template <bool VECTORS>
__global__ void __launch_bounds__(THREADS)
    adamw_8bit_kernel(const nib_adamw_factors *factors, const nib_clip *clip, int64_t n, float *parameter,
                      const float *gradient, nib_moments_8bit moments)
{
    float *maps = dynamic_shared<float>();
    for (int i = threadIdx.x; i < 512; i += THREADS) maps[i] = moments.maps[i];
    __syncthreads();
    if (!isfinite(clip->norm)) return;
    const nib_adamw_factors f = factors[clip->missed];
    const float scale = clip->scale;
    const int64_t blocks = (n + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK, warps = (int64_t)gridDim.x * (THREADS / 32);
    for (int64_t b = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32; b < blocks; b += warps) {
        const int64_t at = b * NIB_MOMENT_BLOCK + threadIdx.x % 32 * EACH, left = n - at;
        const int count = left < 0 ? 0 : left < EACH ? (int)left : EACH;
        float p[EACH], g[EACH], m[EACH], v[EACH];
        load_part<VECTORS>(parameter + at, count, p);
        load_part<VECTORS>(gradient + at, count, g);
        widen<VECTORS>(moments.first + at, count, maps, moments.first_absmax[b], m);
        widen<VECTORS>(moments.second + at, count, maps + 256, moments.second_absmax[b], v);
#pragma unroll
        for (int i = 0; i < EACH; i++) adamw_step(f, __fmul_rn(g[i], scale), m[i], v[i], p[i]);
        store_part<VECTORS>(parameter + at, count, p);
        __syncwarp(); /* every lane has read the block's absmax */
        quantise<VECTORS>(m, count, maps, 0, moments.first + at, moments.first_absmax + b);
        quantise<VECTORS>(v, count, maps + 256, 1, moments.second + at, moments.second_absmax + b);
    }
}

nib_status nib_cuda_adamw_8bit(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                               float *parameter, const float *gradient, nib_moments_8bit moments)
{
    if (n == 0) return NIB_OK;
    const bool vectors = whole_vectors(parameter) && whole_vectors(gradient) && whole_vectors(moments.first) &&
                         whole_vectors(moments.second);
    return nib_cuda_launch(vectors ? adamw_8bit_kernel<true> : adamw_8bit_kernel<false>, vector_grid(n, EACH, THREADS),
                           dim3(THREADS), 512 * sizeof(float), nib_cuda_stream(ops), factors, clip, n, parameter,
                           gradient, moments);
}
