/* The sum of gradient slots in the order of their tree (optim/slot_order.h). Contract: model/ops.h. */
#ifndef NIB_CPU_TREE_SUM_H
#define NIB_CPU_TREE_SUM_H

#include "model/ops.h"

nib_status nib_cpu_tree_sum(nib_ops *ops, float *x, int count, const float *const *left, int64_t n, float *to);

#endif
