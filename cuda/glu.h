/* Gated linear units: SwiGLU and GeGLU, by erf or tanh (Shazeer, "GLU Variants Improve Transformer", 2020).
 * Contracts: model/ops.h. Activations bf16, rows of any width and stride. */
#ifndef NIB_CUDA_GLU_H
#define NIB_CUDA_GLU_H

#include "cuda/c_headers.h"

nib_status nib_cuda_glu_forward(nib_ops *ops, nib_activation activation, nib_matrix gate_up, nib_matrix h);
nib_status nib_cuda_glu_backward(nib_ops *ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up);

#endif
