/* Which rows of the embedding a run trains, and which it ought to: what "lora.trainable_token_indices" comes to, and
 * tokens of the data whose rows look untrained. */
#ifndef NIB_RUNTIME_TOKEN_CHOICE_H
#define NIB_RUNTIME_TOKEN_CHOICE_H

#include "open.h"

/* Fills config->lora.tokens.id. Each token of the training data whose row looks untrained and stays frozen goes into
 * *warnings, a line each, with what to set; nothing is looked at in a full fine-tune, which trains every row, or where
 * an initial adapter has settled it, or if there are no weights and none are needed. NIB_ERROR_CONFIG names a token
 * that is none. */
nib_status nib_token_choice_settle(nib_config *config, const nib_text *text, const nib_dataset *train,
                                   int64_t vocabulary, nib_buffer *warnings);

#endif
