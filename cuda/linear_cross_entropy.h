/* Output head and cross-entropy in one op, and the head alone. Contracts: model/ops.h. x and dx bf16; head bf16 or fp32
 * (rounded to bf16 for the product); logits, log-sum-exp and losses fp32.
 *
 * Nothing waits for the device: distinct target rows are found there, and the host knows only that there are at most
 * min(N, T). A target outside of x or of the vocabulary cannot be reported from there: its loss becomes NaN,
 * and so do all where the rows are not ascending, or more than x has.
 * Scratch: one chunk of at most 2048 rows of logits, C and C once more in bf16, and the head if it is fp32. */
#ifndef NIB_CUDA_LINEAR_CROSS_ENTROPY_H
#define NIB_CUDA_LINEAR_CROSS_ENTROPY_H

#include "cuda/c_headers.h"

nib_status nib_cuda_linear_cross_entropy(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap,
                                         nib_targets targets, float gradient_scale, float *nll, nib_matrix dx,
                                         float *dhead);
nib_status nib_cuda_logits(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, float *logits);

#endif
