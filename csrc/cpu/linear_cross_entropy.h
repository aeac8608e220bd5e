/* The head and the loss in one op, on the CPU. Contract: model/ops.h. */
#ifndef NIB_CPU_LINEAR_CROSS_ENTROPY_H
#define NIB_CPU_LINEAR_CROSS_ENTROPY_H

#include "model/ops.h"

nib_status nib_cpu_linear_cross_entropy(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, nib_targets targets,
                                        float gradient_scale, float *nll, nib_matrix dx, float *dhead);

#endif
