/* AdamW's step of one value, rounded operation by operation (no fused multiply-add) as cpu/adamw_step.h. */
#ifndef NIB_CUDA_ADAMW_STEP_CUH
#define NIB_CUDA_ADAMW_STEP_CUH

#include "cuda/c_headers.h"
#include "cuda/intrinsics.cuh"

#include <cmath>

/* nib_adamw as the kernels use it. */
typedef struct {
    float decay, beta1, beta2, rest1, rest2, step_size, root, epsilon;
} adamw_factors;

inline adamw_factors adamw_factors_of(nib_adamw o)
{
    return {(float)(1.0 - o.learning_rate * o.weight_decay),
            (float)o.beta1,
            (float)o.beta2,
            (float)(1.0 - o.beta1),
            (float)(1.0 - o.beta2),
            (float)(o.learning_rate / (1.0 - pow(o.beta1, (double)o.step))),
            (float)sqrt(1.0 - pow(o.beta2, (double)o.step)),
            (float)o.epsilon};
}

/* m, v and p of a value whose gradient, after clipping, is slope. */
__device__ __forceinline__ void adamw_step(const adamw_factors &f, float slope, float &m, float &v, float &p)
{
    m = __fadd_rn(__fmul_rn(m, f.beta1), __fmul_rn(slope, f.rest1));
    v = __fadd_rn(__fmul_rn(v, f.beta2), __fmul_rn(__fmul_rn(slope, slope), f.rest2));
    const float size = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f.root), f.epsilon);
    p = __fsub_rn(__fmul_rn(p, f.decay), __fdiv_rn(__fmul_rn(f.step_size, m), size));
}

#endif
