/* Rotary position embedding (Su et al., "RoFormer", 2021) on the CPU. Contracts: model/ops.h. */
#ifndef NIB_CPU_ROTARY_H
#define NIB_CPU_ROTARY_H

#include "model/ops.h"

nib_status nib_cpu_rotary_table(nib_ops *ops, const int32_t *position, int64_t T, const float *frequency, int64_t pairs,
                                float scale, float *table);
nib_status nib_cpu_rotary(nib_ops *ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table,
                          int64_t pairs, nib_rotary_layout layout, bool inverse);

#endif
