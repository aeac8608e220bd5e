/* RMSNorm with the residual add before it, on the CPU. Contracts: model/ops.h. */
#ifndef NIB_CPU_RMSNORM_H
#define NIB_CPU_RMSNORM_H

#include "model/ops.h"

nib_status nib_cpu_rmsnorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, int64_t groups,
                                   const float *weight, float epsilon, nib_matrix y);
nib_status nib_cpu_rmsnorm_backward(nib_ops *ops, nib_matrix x, int64_t groups, const float *weight, float epsilon,
                                    nib_matrix dy, nib_matrix dx, float *dweight);

#endif
