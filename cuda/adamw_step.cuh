/* AdamW's step of one value, rounded operation by operation (no fused multiply-add) as cpu/adamw_step.h. */
#ifndef NIB_CUDA_ADAMW_STEP_CUH
#define NIB_CUDA_ADAMW_STEP_CUH

#include "cuda/c_headers.h"
#include "cuda/intrinsics.cuh"

/* m, v and p of a value whose gradient, after clipping, is slope. */
__device__ __forceinline__ void adamw_step(const nib_adamw_factors &f, float slope, float &m, float &v, float &p)
{
    m = __fadd_rn(__fmul_rn(m, f.beta1), __fmul_rn(slope, f.rest1));
    v = __fadd_rn(__fmul_rn(v, f.beta2), __fmul_rn(__fmul_rn(slope, slope), f.rest2));
    const float size = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f.root), f.epsilon);
    p = __fsub_rn(__fmul_rn(p, f.decay), __fdiv_rn(__fmul_rn(f.step_size, m), size));
}

#endif
