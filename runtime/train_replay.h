/* What the trained model says to a few prompts, saved beside the adapter for `nibble export` (export/replay.h). */
#ifndef NIB_TRAIN_REPLAY_H
#define NIB_TRAIN_REPLAY_H

#include "train.h"

/* Prompts of the training data and, with a chat template, one of a message, answered by the model as it is. The file is
 * removed before an adapter is written and comes after it, so that it is never another's. */
nib_status nib_train_replay_remove(const nib_training *training);
nib_status nib_train_replay_save(const nib_training *training);
/* The same on a rank that writes nothing, where ranks hold parts of the base and generate together. */
nib_status nib_train_replay_follow(const nib_training *training);
/* What that takes beside the training, on the run's model in rehearsal; 0 in a full fine-tune, which saves none. */
nib_status nib_train_replay_memory(const nib_training *training, nib_model *rehearsed, size_t *bytes);

#endif
