/* One optimizer step: its rows packed, forward and backward over all slots, the update. */
#ifndef NIB_TRAIN_STEP_H
#define NIB_TRAIN_STEP_H

#include "train.h"

typedef struct {
    double loss, gradient_norm, learning_rate, seconds;
    int64_t supervised_tokens, tokens, computed_tokens;
    bool applied; /* false: loss or gradient was not finite, and nothing changed */
} nib_step_result;

/* Rows that step state.step takes from state.cursor on. */
int64_t nib_train_step_rows(const nib_training *training);
/* The slots of a step that this rank computes. */
nib_slot_range nib_train_slots(const nib_training *training);
/* Packs `count` rows from `cursor`; *samples (host, nib_free) are their indices in the data set. */
nib_status nib_train_pack(const nib_training *training, int64_t cursor, int64_t count, int64_t **samples,
                          nib_pack *pack);
/* Makes the model's activations, and nll, large enough for the micro-batch. */
nib_status nib_train_reserve(nib_training *training, const nib_micro_batch *batch);
/* Runs step state.step and advances the state. All ranks find the same loss and the same
 * gradient, and so decide alike whether it is applied. Rows of a step that was not are saved to nonfinite-step-N.jsonl
 * in the run folder and named. */
nib_status nib_train_step(nib_training *training, nib_step_result *result);

#endif
