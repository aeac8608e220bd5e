/* LayerNorm with the residual add before it, on the CPU. Contracts: model/ops.h. */
#ifndef NIB_CPU_LAYERNORM_H
#define NIB_CPU_LAYERNORM_H

#include "model/ops.h"

nib_status nib_cpu_layernorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, const float *weight,
                                     const float *bias, float epsilon, nib_matrix y);
nib_status nib_cpu_layernorm_backward(nib_ops *ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy,
                                      nib_matrix dx, float *dweight, float *dbias);

#endif
