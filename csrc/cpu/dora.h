/* DoRA's own arithmetic, around the products of csrc/cpu/linear.c. Private to csrc/cpu; contracts: model/ops.h. */
#ifndef NIB_CPU_DORA_H
#define NIB_CPU_DORA_H

#include "model/ops.h"

nib_status nib_cpu_dora_norm(nib_ops *ops, const nib_linear_part *part, int64_t K);

/* y [T, N] = base + (gain - 1) through + bias; base, which is overwritten, and through fp32 [T, N] and possibly the
 * same; bias fp32 [N], or NULL. */
nib_status nib_cpu_dora_output(nib_ops *ops, const nib_linear *linear, nib_matrix base, nib_matrix through,
                               const float *bias, nib_matrix y);
/* out [T, N] = (gain - less) dy, in out's type. */
nib_status nib_cpu_dora_gradient(nib_ops *ops, const nib_linear *linear, nib_matrix dy, float less, nib_matrix out);
/* dmagnitude += sum over t of dy through / norm, in order of t. */
void nib_cpu_dora_magnitude(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix through);

#endif
