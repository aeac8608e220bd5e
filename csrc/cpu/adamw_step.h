/* AdamW's step of one value, in PyTorch's order of operations: decay, moments, then rate / (1 - beta1^t) * m / (sqrt(v)
 * / sqrt(1 - beta2^t) + epsilon). Private to csrc/cpu/adamw*.c. */
#ifndef NIB_CPU_ADAMW_STEP_H
#define NIB_CPU_ADAMW_STEP_H

#include "model/ops.h"

#include <math.h>

typedef struct {
    float decay, beta1, beta2, rest1, rest2, step_size, root, epsilon;
} adamw_factors;

static inline adamw_factors adamw_factors_of(nib_adamw o)
{
    return (adamw_factors){.decay = (float)(1.0 - o.learning_rate * o.weight_decay),
                           .beta1 = (float)o.beta1,
                           .beta2 = (float)o.beta2,
                           .rest1 = (float)(1.0 - o.beta1),
                           .rest2 = (float)(1.0 - o.beta2),
                           .step_size = (float)(o.learning_rate / (1.0 - pow(o.beta1, (double)o.step))),
                           .root = (float)sqrt(1.0 - pow(o.beta2, (double)o.step)),
                           .epsilon = (float)o.epsilon};
}

static inline void adamw_step(adamw_factors f, float slope, float *first, float *second, float *parameter)
{
    const float m = *first * f.beta1 + slope * f.rest1;
    const float v = *second * f.beta2 + slope * slope * f.rest2;
    *first = m;
    *second = v;
    *parameter = *parameter * f.decay - f.step_size * m / (sqrtf(v) / f.root + f.epsilon);
}

#endif
