/* Scores to weights, tile by tile with a running maximum (Dao et al., "FlashAttention", 2022): what the forward kernels
 * share. Scores lie as the sums of a product do: lane = 4 g + t holds rows g, g + 8 and columns 2t, 2t + 1 of each 16 x
 * 8. */
#ifndef NIB_CUDA_ATTENTION_SOFTMAX_CUH
#define NIB_CUDA_ATTENTION_SOFTMAX_CUH

#include "cuda/attention_tiles.cuh"

/* Hides what the rule hides of scores of queries first_query + 16 m + g and + 8 and keys from first_key on. */
template <int M, int KEYS>
__device__ __forceinline__ void mask_scores(float (&score)[M][KEYS / 8][4], nib_tree tree, int window, int first_query,
                                            int first_key)
{
    int T = (int)tree.T, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, position[M][2] = {};
    if (window > 0)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                position[m][r] = __ldg(tree.position + min(first_query + 16 * m + g + 8 * r, T - 1));
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int key = first_key + 8 * n + 2 * t + i, end = key < T ? __ldg(tree.end + key) : 0;
            int nearest = window > 0 && key < T ? __ldg(tree.position + key) + window : INT32_MAX;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int query = first_query + 16 * m + g + 8 * r;
                    if (key > query || query >= end || position[m][r] >= nearest) score[m][n][2 * r + i] = -INFINITY;
                }
        }
}

/* What the exponential takes, powers of 2, is score * factor; a capped score is multiplied already. */
template <bool CAPPED> struct score_scale {
    float factor, inside, outside;

    __device__ explicit score_scale(nib_attention_shape shape)
        : factor(CAPPED ? 1.0f : shape.scale * NIB_LOG2_E), inside(CAPPED ? shape.scale / shape.softcap : 0.0f),
          outside(shape.softcap * NIB_LOG2_E)
    {
    }
    template <int N> __device__ __forceinline__ void cap(float (&score)[N][4]) const
    {
        if (CAPPED)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) score[n][i] = outside * tanh_approx(score[n][i] * inside);
    }
};

/* One row's step: scores become weights by the new maximum. largest and total are of this row, total of this lane's
 * columns only. Returns what the row's sums so far are to be multiplied by. */
template <int N>
__device__ __forceinline__ float softmax_weights(float (&score)[N][4], int r, float factor, float *largest,
                                                 float *total)
{
    float now = *largest;
#pragma unroll
    for (int n = 0; n < N; n++) now = fmaxf(now, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
    float base = now == -INFINITY ? 0.0f : now * factor; /* nothing seen so far: every weight is 0 */
    float rescale = exp2_approx(*largest * factor - base), added = 0.0f;
    *largest = now;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            score[n][2 * r + i] = exp2_approx(score[n][2 * r + i] * factor - base);
            added += score[n][2 * r + i];
        }
    *total = *total * rescale + added;
    return rescale;
}

template <int C> __device__ __forceinline__ void rescale_row(float (&sum)[C][4], int r, float rescale)
{
#pragma unroll
    for (int c = 0; c < C; c++) {
        sum[c][2 * r] *= rescale;
        sum[c][2 * r + 1] *= rescale;
    }
}

/* 1 / total over all lanes of the row, and the row's log-sum-exp. */
__device__ __forceinline__ float softmax_close(float largest, float total, float factor, float *lse)
{
    float all = total + __shfl_xor_sync(0xffffffffu, total, 1);
    all += __shfl_xor_sync(0xffffffffu, all, 2);
    *lse = largest * factor * NIB_LN_2 + logf(all);
    return 1.0f / all; /* of rows at and behind T, which nobody stores, not a number */
}

#endif
