/* AdamW's step of one value, in PyTorch's order of operations: decay, moments, then rate / (1 - beta1^t) * m / (sqrt(v)
 * / sqrt(1 - beta2^t) + epsilon). Private to csrc/cpu/adamw*.c. */
#ifndef NIB_CPU_ADAMW_STEP_H
#define NIB_CPU_ADAMW_STEP_H

#include "model/ops.h"

#include <math.h>

static inline void adamw_step(nib_adamw_factors f, float slope, float *first, float *second, float *parameter)
{
    const float m = *first * f.beta1 + slope * f.rest1;
    const float v = *second * f.beta2 + slope * slope * f.rest2;
    *first = m;
    *second = v;
    *parameter = *parameter * f.decay - f.step_size * m / (sqrtf(v) / f.root + f.epsilon);
}

#endif
