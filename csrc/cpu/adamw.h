/* The optimizer's ops on the CPU. Contracts: model/ops.h. */
#ifndef NIB_CPU_ADAMW_H
#define NIB_CPU_ADAMW_H

#include "model/ops.h"

nib_status nib_cpu_global_norm(nib_ops *ops, int count, float *const *array, const int64_t *length, double max_norm,
                               nib_clip *clip);
nib_status nib_cpu_adamw(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                         float *parameter, const float *gradient, float *first_moment, float *second_moment);

#endif
