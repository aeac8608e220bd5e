/* A conversation as a list of messages, and as the tokens that the model sees of it. */
#ifndef NIB_CONVERSATION_H
#define NIB_CONVERSATION_H

#include "open.h"

#define NIB_MAX_STOPS 16

typedef struct {
    const nib_text *text;
    char *system;        /* content of the system message, or NULL */
    nib_buffer messages; /* JSON objects with a comma between */
    size_t last;         /* where the last message (and its comma) begins */
    int32_t stop[NIB_MAX_STOPS];
    int stop_count;
} nib_conversation;

/* Finds what ends a turn: the terminator that the template writes, and the model's ends of text. Without a chat
 * template the messages are one plain text that the model goes on with. */
nib_status nib_conversation_open(const nib_text *text, const nib_model_config *config, nib_conversation *conversation);
void nib_conversation_close(nib_conversation *conversation);

void nib_conversation_reset(nib_conversation *conversation); /* forgets the messages, not the system message */
/* content is copied; "" or NULL: none. */
nib_status nib_conversation_set_system(nib_conversation *conversation, const char *content);
/* content: UTF-8; NIB_ERROR_DATA if it is not. */
nib_status nib_conversation_add(nib_conversation *conversation, const char *role, const char *content, size_t length);
/* Takes the last message back; once after an add. */
void nib_conversation_undo(nib_conversation *conversation);
/* ids: replaced by the conversation's, up to where the assistant's answer begins. */
nib_status nib_conversation_prompt(const nib_conversation *conversation, nib_token_list *ids);

#endif
