/* Rotary position embedding (Su et al., "RoFormer", 2021), half-split or interleaved.
 * Contracts: model/ops.h. x is bf16 with rows of any stride; any number of heads, head_dim >= 2 * pairs.
 * The table is in fp32 as the CPU backend's; its cosines and sines are within 2e-7. */
#ifndef NIB_CUDA_ROTARY_H
#define NIB_CUDA_ROTARY_H

#include "cuda/c_headers.h"

nib_status nib_cuda_rotary_table(nib_ops *ops, const int32_t *position, int64_t T, const float *frequency,
                                 int64_t pairs, float scale, float *table);
nib_status nib_cuda_rotary(nib_ops *ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table,
                           int64_t pairs, nib_rotary_layout layout, bool inverse);

#endif
