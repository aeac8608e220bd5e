/* The base products of a linear whose weights are NF4, in 8-bit floating point. */
#ifndef NIB_CUDA_LINEAR_FP8_H
#define NIB_CUDA_LINEAR_FP8_H

#include "cuda/c_headers.h"

/* y [T, outputs] = x W^T without bias and adapters, x [T, K]; dx [T, K] = dy W (+ dx before, if accumulate), dy [T,
 * outputs]. bf16. NIB_ERROR_SHAPE for a part that is dense, or of other than a multiple of 16 rows, or such a K. */
nib_status nib_cuda_linear_fp8_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix y);
nib_status nib_cuda_linear_fp8_backward(nib_ops *ops, const nib_linear *linear, nib_matrix dy, bool accumulate,
                                        nib_matrix dx);

#endif
