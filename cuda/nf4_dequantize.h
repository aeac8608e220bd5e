/* NF4 weights back to a matrix, in the form that a matrix product wants to read.
 *
 * Every weight is bf16(nf4_value * absmax), rounded once; absmax is restored as bitsandbytes does
 * (cuda/nf4_decode.cuh). out may be a view with a wider stride: several weights below each other, with LoRA's columns
 * or rows beside them. Any shape is supported; rows of a multiple of 8 weights, 16-byte aligned in out, take the
 * vectorised kernels.
 */
#ifndef NIB_CUDA_NF4_DEQUANTIZE_H
#define NIB_CUDA_NF4_DEQUANTIZE_H

#include "cuda/c_headers.h"

/* out [n, K], bf16, or fp32 that holds the bf16-rounded values. */
nib_status nib_cuda_nf4_dequantize(nib_ops *ops, const nib_nf4 *weight, nib_matrix out);
/* out [K, n] bf16 = the transpose of the weight [n, K]. */
nib_status nib_cuda_nf4_dequantize_transposed(nib_ops *ops, const nib_nf4 *weight, nib_matrix out);

/* For products in 8-bit floating point (e4m3): weight = *scale * out, scale on the device, at least largest absmax /
 * 448. */

/* out [n, K] e4m3 bytes, rows `stride` bytes apart = e4m3(nf4_value * (absmax / *scale)), rounded to nearest even from
 * fp32. K must be a multiple of 8; out and stride 8-byte aligned. */
nib_status nib_cuda_nf4_dequantize_e4m3(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K, const float *scale,
                                        uint8_t *out, int64_t stride);
/* out [K, n] = the transpose; n a multiple of 16, K of 8, out and stride 16-byte aligned. (Hopper multiplies e4m3 only
 * with both operands contiguous along the sum, so the backward pass needs it.) */
nib_status nib_cuda_nf4_dequantize_e4m3_transposed(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K,
                                                   const float *scale, uint8_t *out, int64_t stride);

#endif
