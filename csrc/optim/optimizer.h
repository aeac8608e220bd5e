/* One optimizer step over all parameters of a model: global norm, clipping, AdamW, refresh of the copies. The device
 * needs nothing from the host in between, so the step is recorded and replayed as micro-batches are. */
#ifndef NIB_OPTIMIZER_H
#define NIB_OPTIMIZER_H

#include "model/model.h"

typedef struct {
    nib_adamw adamw;
    double max_norm; /* gradients are scaled by min(1, max_norm / (norm + 1e-6)); 0: no clipping */
    bool ahead; /* the norm of the step before is not known yet: adamw.step counts it, and if it turns out not to be
                 * finite, this step is one less */
} nib_optimizer_options;

/* Gradients of all parameters to zero. */
nib_status nib_optimizer_zero(nib_ops *ops, nib_model *model);
/* *norm: the global norm before clipping, there when ops->synchronize, or ops->await behind it, has returned. If it is
 * NaN or Inf nothing is changed. */
nib_status nib_optimizer_step(nib_ops *ops, nib_model *model, const nib_optimizer_options *options, double *norm);

#endif
