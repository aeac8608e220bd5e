/* One optimizer step: its rows packed, forward and backward over all slots, the update.
 *
 * A step begins when it is asked of the device and ends when its figures are read. In between the next may begin, so
 * that the device goes from one to the other while the host is still at the figures of the first: it needs nothing of
 * them, not even whether the step was applied (ops.h, nib_clip). */
#ifndef NIB_TRAIN_STEP_H
#define NIB_TRAIN_STEP_H

#include "train.h"

typedef struct {
    double loss, gradient_norm, learning_rate, seconds;
    double data_wait; /* seconds of them until the step's data was there */
    int64_t supervised_tokens, tokens, computed_tokens;
    bool applied; /* false: loss or gradient was not finite, and nothing changed */
} nib_step_result;

/* The slots of a step that this rank computes. */
nib_slot_range nib_train_slots(const nib_training *training);
/* What summing gradients of n values takes, beside the one array of them. */
size_t nib_train_slot_bytes(const nib_training *training, int64_t n);
/* Where the run's steps come from; valid while the training is open and its config is not changed. */
nib_step_plan nib_train_step_plan(const nib_training *training);
/* Makes the model's activations, and nll, large enough for an evaluation's or a step's micro-batch. */
nib_status nib_train_reserve(nib_training *training, const nib_micro_batch *batch);
/* How many steps may be under way when the next one begins: 0 or 1. */
int nib_train_steps_ahead(const nib_training *training);
/* Begins step state.step + under_way, whose data training->prefetch has; at most one is under way. */
nib_status nib_train_step_begin(nib_training *training);
/* Ends step state.step, waiting for the device, and advances the state. All ranks find the same loss and the same
 * gradient, and so decide alike whether it is applied. Rows of a step that was not are saved to nonfinite-step-N.jsonl
 * in the run folder and named. */
nib_status nib_train_step_end(nib_training *training, nib_step_result *result);
void nib_train_steps_free(nib_training *training);

#endif
