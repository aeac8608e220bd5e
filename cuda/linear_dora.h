/* Linears of which some part has DoRA. Contracts: linear_forward and linear_backward of model/ops.h; bf16, many rows.
 */
#ifndef NIB_CUDA_LINEAR_DORA_H
#define NIB_CUDA_LINEAR_DORA_H

#include "cuda/c_headers.h"

nib_status nib_cuda_linear_dora_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                        nib_matrix u, nib_matrix y);
nib_status nib_cuda_linear_dora_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                         nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx);

#endif
