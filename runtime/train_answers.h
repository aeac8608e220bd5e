/* The model's own answers to evaluation rows, before training and at every evaluation. */
#ifndef NIB_TRAIN_ANSWERS_H
#define NIB_TRAIN_ANSWERS_H

#include "train.h"

/* Answers evaluate.generate rows, spread evenly over the evaluation data, and replaces the run folder's file `name`
 * (NULL: none), one {"sample","prompt","output","reference","exact_match"} a line. *exact_match: their mean; NAN if no
 * row has a prompt, or none is asked for. */
nib_status nib_train_answers(nib_training *training, const char *name, double *exact_match);
/* What that takes beside the training, by nib_answers_memory on the run's model in rehearsal; 0 if none is asked for.
 */
nib_status nib_train_answers_memory(const nib_training *training, nib_model *rehearsed, size_t *bytes);

#endif
