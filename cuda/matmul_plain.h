/* The plain sibling of the library's matrix product: no tensor cores, no asynchronous copies. */
#ifndef NIB_CUDA_MATMUL_PLAIN_H
#define NIB_CUDA_MATMUL_PLAIN_H

#include "cuda/c_headers.h"

/* c [M, N] = op(a) op(b) + beta c, with op(a) [M, K] and op(b) [K, N], where op transposes if asked to. a and b bf16, c
 * bf16 or fp32, rows of any stride; sums in fp32, in order of k. c is not read if beta is 0. NIB_ERROR_SHAPE for other
 * types and for sizes that do not match. */
nib_status nib_cuda_matmul_plain(nib_ops *ops, nib_matrix a, bool a_transposed, nib_matrix b, bool b_transposed,
                                 float beta, nib_matrix c);

#endif
