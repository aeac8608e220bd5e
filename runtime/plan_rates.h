/* How fast this machine does each kind of work, measured in a moment at the shapes of a model. */
#ifndef NIB_PLAN_RATES_H
#define NIB_PLAN_RATES_H

#include "model/model.h"
#include "model/rehearsal.h"

/* Operations a second, the last two bytes a second: the units of nib_work. */
typedef struct {
    double base, fp8, lora, attention, loss, elementwise, optimizer;
} nib_rates;

/* T: tokens of a usual micro-batch; ranks: of all parts of a linear together, 0 for none. Takes some tens of
 * milliseconds for a small model, a second or two for a large one. */
nib_status nib_rates_measure(nib_ops *ops, const nib_model_options *options, const nib_model_config *config, int64_t T,
                             nib_rates *rates);

/* Seconds of each kind, and their sum. */
typedef struct {
    double base, fp8, lora, attention, loss, elementwise, optimizer, sum;
} nib_work_seconds;
nib_work_seconds nib_work_time(const nib_work *work, const nib_rates *rates);

#endif
