/* Sums and maxima over a warp and over a block, in a fixed order: the same bits every time. */
#ifndef NIB_CUDA_REDUCE_CUH
#define NIB_CUDA_REDUCE_CUH

#include "intrinsics.cuh"

/* Over the 32 lanes; every lane has the result, the same bits in all of them (the butterfly's sums commute). */
__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}
__device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

/* Over a block of one dimension, a multiple of 32 threads; every thread has the result. `shared` holds 32 floats and
 * may be used again at once: the first barrier keeps the last call's readers and this one's writers apart. */
__device__ __forceinline__ float block_sum(float x, float *shared)
{
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f);
}
__device__ __forceinline__ float block_max(float x, float *shared)
{
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : -INFINITY);
}

#endif
