/* Linear layers of few rows (generation) over NF4 weights. Private to csrc/cpu. */
#ifndef NIB_CPU_LINEAR_FEW_H
#define NIB_CPU_LINEAR_FEW_H

#include "model/ops.h"

/* Whether nib_cpu_linear_few takes this linear and these rows. */
bool nib_cpu_linear_is_few(const nib_linear *linear, nib_matrix x);
/* linear_forward of ops.h without dropout, for such rows. Weights and adapters are read where they lie. */
nib_status nib_cpu_linear_few(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y);

#endif
