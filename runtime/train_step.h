/* One optimizer step: its rows packed, forward and backward over all slots, the update. */
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
/* Makes the model's activations, and nll, large enough for the micro-batch. */
nib_status nib_train_reserve(nib_training *training, const nib_micro_batch *batch);
/* Runs step state.step, whose data training->prefetch has, and advances the state. All ranks find the same loss and the
 * same gradient, and so decide alike whether it is applied. Rows of a step that was not are saved to
 * nonfinite-step-N.jsonl in the run folder and named. */
nib_status nib_train_step(nib_training *training, nib_step_result *result);

#endif
