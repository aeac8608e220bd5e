/* Products of NF4 weights with few rows (generation): the codes are read once and decoded in registers, nothing
 * dequantised is written to memory.
 */
#ifndef NIB_CUDA_NF4_SMALL_MATMUL_H
#define NIB_CUDA_NF4_SMALL_MATMUL_H

#include "cuda/c_headers.h"

#define NIB_CUDA_SMALL_MATMUL_ROWS 64

/* Can nib_cuda_nf4_small_matmul take this product? At most NIB_CUDA_SMALL_MATMUL_ROWS rows, K a multiple of 64, every
 * part in NF4. */
bool nib_cuda_nf4_small_matmul_takes(const nib_linear *linear, int64_t rows);
/* NIB_ERROR_SHAPE, with a message, for what it cannot: also types, sizes that do not match, rows of x that are not
 * 16-byte aligned. */
nib_status nib_cuda_nf4_small_matmul_check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y);

/* y [T, outputs] = x W^T + bias + scale * u B^T, all parts of the linear in one launch; x [T, K] and y bf16, u [T,
 * ranks] bf16 = A dropout(x) as nib_cuda_lora_down writes it (u.data NULL: without the adapter). Weights are the
 * bf16-rounded ones, sums are fp32 in a fixed order, y is rounded once. Fails with NIB_ERROR_SHAPE where _takes is
 * false. */
nib_status nib_cuda_nf4_small_matmul(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y);
/* The same without tensor cores and asynchronous copies. */
nib_status nib_cuda_nf4_small_matmul_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u,
                                           nib_matrix y);

#endif
