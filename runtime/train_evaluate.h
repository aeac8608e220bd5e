/* Evaluation inside a run, and the weights that it chooses. */
#ifndef NIB_TRAIN_EVALUATE_H
#define NIB_TRAIN_EVALUATE_H

#include "train.h"

/* Packs the *count rows of the evaluation data from `first` on that are scored together. *pack: nib_pack_free. */
nib_status nib_train_pack_evaluation(const nib_training *training, int64_t first, int64_t *count, nib_pack *pack);

/* The model before its first step, for comparison: a "before" line of the metrics, and answers-before.jsonl. */
nib_status nib_train_evaluate_before(nib_training *training);
/* Loss and perplexity of the evaluation data under the current weights, as an "eval" line of the metrics. Weights
 * better than all before are saved; *stop: there was none for early_stopping_patience evaluations. */
nib_status nib_train_evaluate(nib_training *training, bool *stop);
/* What is trained, as it is now: the adapter as PEFT's files, or after a full fine-tune the model as a Hugging Face
 * folder in bf16; with the tokenizer, the template and the ids that end a turn beside it. Files are replaced one by
 * one, each whole; a run that dies between two of them writes all again when it is resumed. */
nib_status nib_train_save(const nib_training *training);
/* What the other ranks do meanwhile. */
nib_status nib_train_save_follow(const nib_training *training);

#endif
