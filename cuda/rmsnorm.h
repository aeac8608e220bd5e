/* RMSNorm (Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019) with the residual add before it. Contracts:
 * model/ops.h. Activations bf16, groups of any width up to 16384; fastest where rows are whole 16-byte
 * vectors.
 *
 * Sums are fp32, each over the columns of a thread, then over its warp and block, in an order that the width alone
 * fixes; dweight over slices of rows, then over the slices. NIB_ERROR_SHAPE for other types and for sizes that do not
 * match. */
#ifndef NIB_CUDA_RMSNORM_H
#define NIB_CUDA_RMSNORM_H

#include "cuda/c_headers.h"

nib_status nib_cuda_rmsnorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, int64_t groups,
                                    const float *weight, float epsilon, nib_matrix y);

/* With a dweight takes fp32 [groups, T] and [groups, T / 128, C / groups] of scratch. */
nib_status nib_cuda_rmsnorm_backward(nib_ops *ops, nib_matrix x, int64_t groups, const float *weight, float epsilon,
                                     nib_matrix dy, nib_matrix dx, float *dweight);

#endif
