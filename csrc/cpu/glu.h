/* Gated activations on the CPU. Contracts: model/ops.h. */
#ifndef NIB_CPU_GLU_H
#define NIB_CPU_GLU_H

#include "model/ops.h"

nib_status nib_cpu_glu_forward(nib_ops *ops, nib_activation activation, nib_matrix gate_up, nib_matrix h);
nib_status nib_cpu_glu_backward(nib_ops *ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up);

#endif
