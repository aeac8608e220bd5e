/* The masks of LoRA's dropout: those of model/ops.h, from a counter, so that they are computed again and never stored.
 */
#ifndef NIB_CUDA_DROPOUT_CUH
#define NIB_CUDA_DROPOUT_CUH

#include "cuda/intrinsics.cuh"

/* What elements column .. column + 3 of a token are multiplied with: 0 where dropped, `keep` = 1 / (1 - p) elsewhere.
 * column a multiple of 4. p = 0 drops nothing and computes no mask. */
__device__ inline void dropout_factors(uint64_t key, float p, float keep, int64_t token, int64_t column,
                                       float (&factor)[4])
{
    if (p <= 0.0f) {
        for (int i = 0; i < 4; i++) factor[i] = 1.0f;
        return;
    }
    const uint4 words = philox4x32(key, (uint64_t)token, (uint64_t)column / 4);
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 4; i++) /* nib_uniform(word) < p */
        factor[i] = (float)(word[i] >> 8) * (1.0f / 16777216.0f) < p ? 0.0f : keep;
}

#endif
