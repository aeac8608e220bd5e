/* A backend that tells where the time goes: the ops of another one, each followed by a wait and timed. */
#ifndef NIB_OPS_TIMER_H
#define NIB_OPS_TIMER_H

#include "model/ops.h"

typedef struct {
    const char *op;
    int64_t calls;
    double seconds;
} nib_op_time;

/* The ops of `inner`, which is not freed with *timer: first nib_ops_timer_free, then it. Since every op is waited for,
 * a step takes longer than without: what a device does not work in that step is what is missing from the sum. */
nib_status nib_ops_timer_create(nib_ops *inner, nib_ops **timer);
void nib_ops_timer_free(nib_ops *timer);

/* What was timed since the last reset, one entry an op, those never called included. The array is the timer's own. */
int nib_ops_timer_times(nib_ops *timer, const nib_op_time **times);
void nib_ops_timer_reset(nib_ops *timer);

#endif
