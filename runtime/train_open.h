/* Everything that a run opens before its first step, and the state that it starts from. */
#ifndef NIB_TRAIN_OPEN_H
#define NIB_TRAIN_OPEN_H

#include "train.h"

/* Opens data, model and optimizer; chooses slots, micro-batch size and recompute policy where the config leaves them
 * open; loads the latest checkpoint of a resumed run (refused, with what differs, if config, base, tokenizer or data
 * are others). Rank 0 takes the folder, chooses and reads; the others are told, and refused if they see another model
 * or other data. *training is closed by nib_train_close whatever the outcome. */
nib_status nib_train_open(nib_config *config, bool resume, nib_collectives *collectives, nib_training *training);
void nib_train_close(nib_training *training);

/* Switches off what the rest of the config rules out: sharing of prefixes under LoRA dropout. */
void nib_train_settle(nib_config *config);
/* The part of opening that a plan needs too: backend, tokenizer, data, mixture, schedule; no folder, no model. The
 * training has its config; it is closed in the same way. */
nib_status nib_train_open_data(nib_training *training);

/* The model of the run, divided among ranks if the config says so and the training has the ranks. */
/* What is trained of the model; NIB_ERROR_CONFIG if that is nothing, or if a name of lora.target_modules is no linear.
 */
nib_status nib_train_parameters(const nib_config *config, nib_model *model, nib_parameter **parameters, int *count);
nib_model_options nib_train_model_options(const nib_training *training);

#endif
