/* Products with few rows, as in generation: each weight is read once, where it lies. Private to csrc/cpu. */
#ifndef NIB_CPU_MATVEC_H
#define NIB_CPU_MATVEC_H

#include "model/ops.h"

#define NIB_CPU_MATVEC_ROWS 8 /* of x, at most */

/* y [M, outputs] = x [M, K] W^T of all parts of a linear, all NF4, K a multiple of 64. W's weights are the bf16-rounded
 * ones, as everywhere. x and y fp32, their rows one behind the other. */
nib_status nib_cpu_nf4_matvec(nib_ops *ops, const nib_linear *linear, int64_t M, const float *x, float *y);

/* c [M, N] = a b^T + bias; a, b, c in any types, sums in fp32; bias fp32 [N], or NULL. */
nib_status nib_cpu_dense_matvec(nib_ops *ops, nib_matrix a, nib_matrix b, const float *bias, nib_matrix c);

#endif
