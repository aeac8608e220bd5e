/* The choice of the next token from its logits. Contract: model/ops.h. */
#ifndef NIB_CPU_SAMPLE_H
#define NIB_CPU_SAMPLE_H

#include "model/ops.h"

/* Takes [V] candidates of 8 bytes of scratch. */
nib_status nib_cpu_sample(nib_ops *ops, nib_sampling sampling, const float *logits, int64_t rows, int64_t V,
                          const int64_t *position, int32_t *id);

#endif
