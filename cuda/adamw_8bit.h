/* AdamW with moments of 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022). Contract:
 * model/ops.h. Every operation is rounded as the CPU backend rounds it: the same bits, the codes among them. */
#ifndef NIB_CUDA_ADAMW_8BIT_H
#define NIB_CUDA_ADAMW_8BIT_H

#include "cuda/c_headers.h"

nib_status nib_cuda_adamw_8bit(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                               float *parameter, const float *gradient, nib_moments_8bit moments);

#endif
