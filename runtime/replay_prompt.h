/* The prompt of a replay that is rendered from a message, so that template and tokenizer are held to what they were. */
#ifndef NIB_RUNTIME_REPLAY_PROMPT_H
#define NIB_RUNTIME_REPLAY_PROMPT_H

#include "open.h"

/* A user's message and the opening of the answer, as ids; now: seconds, for templates that write a date. */
nib_status nib_replay_prompt(const nib_text *text, const char *content, int64_t now, nib_token_list *ids);

#endif
