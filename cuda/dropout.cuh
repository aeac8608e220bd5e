/* The masks of LoRA's dropout: those of model/ops.h, from a counter, so that they are computed again and never stored.
 */
#ifndef NIB_CUDA_DROPOUT_CUH
#define NIB_CUDA_DROPOUT_CUH

#include "cuda/intrinsics.cuh"

/* What one word of random bits makes of an element: 0 if dropped, `keep` = 1 / (1 - p) if not. */
__device__ inline float dropout_factor(uint32_t word, float p, float keep)
{
    return (float)(word >> 8) * (1.0f / 16777216.0f) < p ? 0.0f : keep; /* nib_uniform(word) < p */
}

/* The key of a mask; 0 where nothing is dropped, and there is none. */
__device__ inline uint64_t dropout_key(const uint64_t *key, float p) { return p > 0.0f ? *key : 0; }

/* Of elements column .. column + 3 of a token, column a multiple of 4. p = 0 drops nothing and computes no mask. */
__device__ inline void dropout_factors(uint64_t key, float p, float keep, int64_t token, int64_t column,
                                       float (&factor)[4])
{
    uint4 word = make_uint4(~0u, ~0u, ~0u, ~0u);
    if (p > 0.0f) word = philox4x32(key, (uint64_t)token, (uint64_t)column / 4);
    factor[0] = dropout_factor(word.x, p, keep);
    factor[1] = dropout_factor(word.y, p, keep);
    factor[2] = dropout_factor(word.z, p, keep);
    factor[3] = dropout_factor(word.w, p, keep);
}

/* Of one element. */
__device__ inline float dropout_factor_of(uint64_t key, float p, float keep, int64_t token, int64_t column)
{
    if (p == 0.0f) return keep;
    const uint4 word = philox4x32(key, (uint64_t)token, (uint64_t)column / 4);
    const uint32_t low = column % 2 == 0 ? word.x : word.y, high = column % 2 == 0 ? word.z : word.w;
    return dropout_factor(column % 4 < 2 ? low : high, p, keep);
}

#endif
