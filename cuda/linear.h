/* Linear layers over NF4 or dense weights with LoRA. Contracts: model/ops.h. Activations bf16, of any stride. */
#ifndef NIB_CUDA_LINEAR_H
#define NIB_CUDA_LINEAR_H

#include "cuda/c_headers.h"

nib_status nib_cuda_linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix y);
nib_status nib_cuda_linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                    nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx);

#endif
