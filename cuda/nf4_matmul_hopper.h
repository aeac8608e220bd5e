/* Products of NF4 weights with many rows on Hopper, decoded in registers: no dequantised copy in memory. */
#ifndef NIB_CUDA_NF4_MATMUL_HOPPER_H
#define NIB_CUDA_NF4_MATMUL_HOPPER_H

#include "cuda/c_headers.h"

/* Can those below take this product, from x to y or from dy to dx? On sm_90: every part in NF4 and of a multiple of 8
 * rows, K a multiple of 64, rows of both activations 16-byte aligned. */
bool nib_cuda_nf4_matmul_hopper_takes(nib_ops *ops, const nib_linear *linear, nib_matrix from, nib_matrix to);

/* y [T, outputs] = x [W | beside]^T: x [T, K + room] and y bf16, in rows that start at multiples of 16 bytes; W
 * [outputs, K] the weights of all parts below each other, each rounded to bf16 (cuda/nf4_decode.cuh); beside [outputs,
 * room] bf16, what stands beside them (cuda/linear_joined.h), room even and perhaps 0. Sums are fp32 in an order that
 * the shape decides, y is rounded once. Fails with NIB_ERROR_SHAPE where _takes is false, and for types, sizes and
 * alignments that do not match. */
nib_status nib_cuda_nf4_matmul_hopper(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix beside,
                                      nib_matrix y);

/* dx [T, K] = dy [W; below]: dy [T, outputs + ranks], below [ranks, K] the adapters' A, ranks even and perhaps 0.
 * Written, not added to. Otherwise as above. */
nib_status nib_cuda_nf4_matmul_hopper_backward(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix below,
                                               nib_matrix dx);

#endif
