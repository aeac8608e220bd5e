/* The gradient of a few rows of the head, on the CPU. Contract: model/ops.h. */
#ifndef NIB_CPU_HEAD_ROWS_BACKWARD_H
#define NIB_CPU_HEAD_ROWS_BACKWARD_H

#include "model/ops.h"

nib_status nib_cpu_head_rows_backward(nib_ops *ops, nib_matrix x, nib_matrix head, nib_targets targets,
                                      float gradient_scale, const float *nll, int64_t n, const int32_t *row,
                                      float *drows);

#endif
