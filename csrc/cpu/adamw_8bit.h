/* AdamW with moments of 8 bits, on the CPU. Contract: model/ops.h. */
#ifndef NIB_CPU_ADAMW_8BIT_H
#define NIB_CPU_ADAMW_8BIT_H

#include "model/ops.h"

nib_status nib_cpu_adamw_8bit(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                              float *parameter, const float *gradient, nib_moments_8bit moments);

#endif
