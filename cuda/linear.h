/* Linear layers over NF4 or dense weights with LoRA. Contracts: model/ops.h. Activations bf16, of any stride. */
#ifndef NIB_CUDA_LINEAR_H
#define NIB_CUDA_LINEAR_H

#include "cuda/c_headers.h"

nib_status nib_cuda_linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix y);
nib_status nib_cuda_linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                    nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx);

/* Base and adapters as products of their own, y and dx rounded after each: the oracle of those above. */
nib_status nib_cuda_linear_forward_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                         nib_matrix u, nib_matrix y);
nib_status nib_cuda_linear_backward_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                          nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx);

/* What both have in common: the shapes, and the gradients of a part that is trained itself. */
nib_status nib_cuda_linear_check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y);
nib_status nib_cuda_linear_weight_backward(nib_ops *ops, const nib_linear_part *part, nib_matrix x, nib_matrix dy);

#endif
