/* From products to gradients: what the backward kernels share. */
#ifndef NIB_CUDA_ATTENTION_GRADIENT_CUH
#define NIB_CUDA_ATTENTION_GRADIENT_CUH

#include "cuda/attention_tiles.cuh"

/* What the products need of a query besides its rows; 16 bytes. */
struct query_sums {
    float lse; /* of powers of 2; infinite at and behind T, which makes every weight 0 */
    float delta;
    float unused[2];
};

/* Takes the sums of all queries, [NH, padded_T], from scratch, and fills them. */
nib_status nib_attention_sum_queries(nib_ops *ops, nib_attention_shape shape, int64_t T, nib_matrix out,
                                     nib_matrix dout, const float *lse, int padded_T, query_sums **sums);

/* From products to weights and slopes. */
template <bool CAPPED> struct gradient_rule {
    float inside, outside;

    __device__ explicit gradient_rule(nib_attention_shape shape)
        : inside(CAPPED ? shape.scale / shape.softcap : 1.0f),
          outside((CAPPED ? shape.softcap : shape.scale) * NIB_LOG2_E)
    {
    }
    /* *weight is q.k and becomes p, *slope is dout.v and becomes ds, for a query of this lse and delta. */
    __device__ __forceinline__ void apply(float *weight, float *slope, float lse, float delta, bool hidden) const
    {
        float score = CAPPED ? tanh_approx(*weight * inside) : *weight;
        *weight = hidden ? 0.0f : exp2_approx(score * outside - lse);
        *slope = *weight * (*slope - delta) * (CAPPED ? 1.0f - score * score : 1.0f);
    }
};

#endif
