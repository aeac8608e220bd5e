/* Between fp32 and bf16. */
#ifndef NIB_CPU_CONVERT_H
#define NIB_CPU_CONVERT_H

#include "model/ops.h"

/* to[r][c] = from[r][c] in to's type; same sizes, F32 or BF16. */
nib_status nib_cpu_convert(nib_ops *ops, nib_matrix from, nib_matrix to);
/* n contiguous values. */
void nib_cpu_widen(const nib_bf16 *from, float *to, int64_t n);
void nib_cpu_narrow(const float *from, nib_bf16 *to, int64_t n);

#endif
