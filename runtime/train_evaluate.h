/* Evaluation inside a run, and the adapter that it chooses. */
#ifndef NIB_TRAIN_EVALUATE_H
#define NIB_TRAIN_EVALUATE_H

#include "train.h"

/* Packs the *count rows of the evaluation data from `first` on that are scored together. *pack: nib_pack_free. */
nib_status nib_train_pack_evaluation(const nib_training *training, int64_t first, int64_t *count, nib_pack *pack);

/* The model before its first step, for comparison: a "before" line of the metrics, and answers-before.jsonl. */
nib_status nib_train_evaluate_before(nib_training *training);
/* Loss and perplexity of the evaluation data under the current adapter, as an "eval" line of the metrics. An adapter
 * better than every one before is saved; *stop: there was none for early_stopping_patience evaluations. */
nib_status nib_train_evaluate(nib_training *training, bool *stop);
/* The current adapter as PEFT's files, with the tokenizer, the template and the ids that end a turn beside it. */
nib_status nib_train_save_adapter(const nib_training *training);

#endif
