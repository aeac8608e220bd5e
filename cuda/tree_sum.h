/* The sum of gradient slots in the order of their tree (csrc/optim/slot_order.h). Contract: model/ops.h. Every addition
 * is rounded as the CPU backend rounds it: the same bits. */
#ifndef NIB_CUDA_TREE_SUM_H
#define NIB_CUDA_TREE_SUM_H

#include "cuda/c_headers.h"

nib_status nib_cuda_tree_sum(nib_ops *ops, float *x, int count, const float *const *left, int64_t n, float *to);

#endif
