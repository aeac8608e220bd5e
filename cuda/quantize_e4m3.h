/* Activations to 8-bit floating point, a scale for each row, for products with an NF4 base in e4m3. */
#ifndef NIB_CUDA_QUANTIZE_E4M3_H
#define NIB_CUDA_QUANTIZE_E4M3_H

#include "cuda/c_headers.h"
#include "cuda/matmul.h"

/* x [T, K] bf16 -> out: data [T, K] e4m3, scale [T] powers of two, x = scale * data but for rounding (to nearest even).
 * Nothing overflows. A row that holds NaN or an infinity becomes one of NaN, scale too. Rows of x and out are 16-byte
 * aligned, K a multiple of 16; else NIB_ERROR_SHAPE. out->data and out->scale are in ops->scratch. */
nib_status nib_cuda_quantize_e4m3(nib_ops *ops, nib_matrix x, nib_cuda_e4m3 *out);

#endif
