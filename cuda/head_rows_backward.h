/* The gradient of a few rows of the head. Contract: model/ops.h. x and head bf16; fp32 between them and the result.
 *
 * The device cannot report a row or a label that the head does not have: the gradient becomes NaN. */
#ifndef NIB_CUDA_HEAD_ROWS_BACKWARD_H
#define NIB_CUDA_HEAD_ROWS_BACKWARD_H

#include "cuda/c_headers.h"

/* Takes n N floats of scratch, and n C for each of up to some hundred runs of targets. */
nib_status nib_cuda_head_rows_backward(nib_ops *ops, nib_matrix x, nib_matrix head, nib_targets targets,
                                       float gradient_scale, const float *nll, int64_t n, const int32_t *row,
                                       float *drows);

#endif
