/* Activations in 8-bit floating point (e4m3: 3 bits of mantissa, largest 448; Micikevicius et al., "FP8 Formats for
 * Deep Learning", 2022), one scale a row: a row of activations has outliers of its own, and the scale of a row leaves
 * the sum of a product as a factor. */
#ifndef NIB_CUDA_E4M3_H
#define NIB_CUDA_E4M3_H

#include "cuda/c_headers.h"

/* x [T, K] bf16 to out [T, K] e4m3 bytes (rows `stride` bytes apart) and scale [T] fp32 (device), x = scale * out:
 * scale = largest magnitude of the row / 448, 1 for a row of zeros; rounded to nearest even. K a multiple of 8, x
 * 16-byte and out 8-byte aligned in every row. */
nib_status nib_cuda_e4m3_quantize_rows(nib_ops *ops, nib_matrix x, uint8_t *out, int64_t stride, float *scale);

#endif
