/* Everything that a run opens before its first step, and the state that it starts from. */
#ifndef NIB_TRAIN_OPEN_H
#define NIB_TRAIN_OPEN_H

#include "train.h"

/* Opens data, model and optimizer; chooses slots, micro-batch size and recompute policy where the config leaves them
 * open; loads the latest checkpoint of a resumed run (refused, with what differs, if config, base, tokenizer or data
 * are others). *training is closed by nib_train_close whatever the outcome. */
nib_status nib_train_open(nib_config *config, bool resume, nib_training *training);
void nib_train_close(nib_training *training);

/* Tokens of a micro-batch and the recompute policy: the largest of 2048 (or the longest row) and its halves, then the
 * cheapest policy, whose planned memory fits into `available` bytes (0: not known, everything fits). The config's
 * own micro_batch_tokens is kept. */
nib_status nib_train_choose(const nib_config *config, int64_t longest, size_t available, int64_t *tokens,
                            nib_recompute *recompute, size_t *planned);

#endif
