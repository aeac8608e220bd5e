/* The model's own answers to the first evaluation rows, before training and at every evaluation. */
#ifndef NIB_TRAIN_ANSWERS_H
#define NIB_TRAIN_ANSWERS_H

#include "train.h"

/* Answers evaluate.generate rows and replaces the run folder's answers-before.jsonl (at step 0) or answers.jsonl: one
 * {"prompt","output","reference","exact_match"} a line. *exact_match: their mean; NAN if no row has a prompt, or none
 * is asked for. */
nib_status nib_train_answers(nib_training *training, double *exact_match);

#endif
