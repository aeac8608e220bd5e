/* The choice of the next token from its logits: argmax, temperature, top-k, top-p (Holtzman et al., "The Curious Case
 * of Neural Text Degeneration", 2020). Contract: model/ops.h. Chooses what the CPU backend chooses: weights are
 * computed by the same operations, and summed as whole numbers. */
#ifndef NIB_CUDA_SAMPLE_H
#define NIB_CUDA_SAMPLE_H

#include "cuda/c_headers.h"

/* Takes [rows] positions of scratch. NIB_ERROR_SHAPE for a vocabulary beyond NIB_SAMPLE_VOCABULARY. */
nib_status nib_cuda_sample(nib_ops *ops, nib_sampling sampling, const float *logits, int64_t rows, int64_t V,
                           const int64_t *position, int32_t *id);

#endif
