/* AdamW with fp32 moments (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019). Contract: model/ops.h.
 * Every operation is rounded as the CPU backend rounds it: the same bits. */
#ifndef NIB_CUDA_ADAMW_H
#define NIB_CUDA_ADAMW_H

#include "cuda/c_headers.h"

nib_status nib_cuda_adamw(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                          float *parameter, const float *gradient, float *first_moment, float *second_moment);

#endif
