/* The product of cuda/nf4_small_matmul.h for one to eight rows, as in generation of few answers at a time. */
#ifndef NIB_CUDA_NF4_MATVEC_H
#define NIB_CUDA_NF4_MATVEC_H

#include "cuda/c_headers.h"

#define NIB_CUDA_MATVEC_ROWS 8

/* Contract: nib_cuda_nf4_small_matmul, with at most NIB_CUDA_MATVEC_ROWS rows and parts of a multiple of 16 outputs. */
nib_status nib_cuda_nf4_matvec(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y);

#endif
