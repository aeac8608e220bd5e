/* DoRA's own kernels (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024), around the products of
 * cuda/linear_dora.cu. Contract of nib_cuda_dora_norm: model/ops.h; gain of a part without DoRA is 1. All
 * deterministic. */
#ifndef NIB_CUDA_DORA_H
#define NIB_CUDA_DORA_H

#include "cuda/c_headers.h"

nib_status nib_cuda_dora_norm(nib_ops *ops, const nib_linear_part *part, int64_t K);

/* y [T, N] bf16 = base + (gain - 1) through + bias, rounded once; base and through fp32 [T, N], the same or not. Where
 * the gain is 1, through is not read. */
nib_status nib_cuda_dora_output(nib_ops *ops, const nib_linear *linear, nib_matrix base, nib_matrix through,
                                nib_matrix y);
/* out [T, N] = (gain - less) dy, both bf16. */
nib_status nib_cuda_dora_gradient(nib_ops *ops, const nib_linear *linear, nib_matrix dy, float less, nib_matrix out);
/* dmagnitude += sum over t of dy through / norm; dy bf16 [T, N], through fp32 [T, N]. */
nib_status nib_cuda_dora_magnitude(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix through);

#endif
