/* Text from tokens as they come: a character is held back until all its bytes are there, since a token may end inside
 * one. */
#ifndef NIB_TOKEN_STREAM_H
#define NIB_TOKEN_STREAM_H

#include "tokenizer/tokenizer.h"

typedef struct {
    const nib_tokenizer *tokenizer;
    nib_token_list ids; /* all so far */
    size_t begin;       /* tokens from here on are decoded again, so that a decoder's leading-space rule sees context */
    size_t emitted;     /* tokens whose text is out */
    nib_buffer before, now;
} nib_token_stream; /* zero-initialise but for tokenizer; free with nib_token_stream_free */

/* Appends to text what has become certain with this token. Special tokens have no text. */
nib_status nib_token_stream_put(nib_token_stream *stream, int32_t id, nib_buffer *text);
/* Appends what is still held back; bytes that form no character become U+FFFD. */
nib_status nib_token_stream_end(nib_token_stream *stream, nib_buffer *text);
void nib_token_stream_free(nib_token_stream *stream);

#endif
