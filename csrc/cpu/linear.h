/* Linear layers over NF4 or dense weights with LoRA on the CPU. Contracts: model/ops.h. */
#ifndef NIB_CPU_LINEAR_H
#define NIB_CPU_LINEAR_H

#include "model/ops.h"

nib_status nib_cpu_linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                  nib_matrix u, nib_matrix y);
nib_status nib_cpu_linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx);

#endif
