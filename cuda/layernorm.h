/* LayerNorm (Ba et al., "Layer Normalization", 2016) with the residual add before it. Contracts: model/ops.h.
 * Activations bf16, of any width up to 16384; fastest where rows are whole 16-byte vectors. Sums as in rmsnorm.h.
 * NIB_ERROR_SHAPE for other types and for sizes that do not match. */
#ifndef NIB_CUDA_LAYERNORM_H
#define NIB_CUDA_LAYERNORM_H

#include "cuda/c_headers.h"

nib_status nib_cuda_layernorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, const float *weight,
                                      const float *bias, float epsilon, nib_matrix y);

/* Takes, with a dweight or a dbias, fp32 [2, T] and [T / 128, 2 C] of scratch. */
nib_status nib_cuda_layernorm_backward(nib_ops *ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy,
                                       nib_matrix dx, float *dweight, float *dbias);

#endif
