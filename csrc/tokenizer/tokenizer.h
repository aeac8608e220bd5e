/* Text to token ids and back: byte-level BPE from a tokenizer.json or from the vocabulary inside a GGUF.
 *
 * The pipeline is that of Hugging Face's tokenizers: added tokens, normalizer, pre-tokenizer, model, post-processor,
 * decoder. A pipeline step that is not known is refused when the file is loaded, never skipped.
 */
#ifndef NIB_TOKENIZER_H
#define NIB_TOKENIZER_H

#include "base/buffer.h"
#include "base/status.h"

#include <stdint.h>

typedef struct nib_tokenizer nib_tokenizer;

typedef struct {
    int32_t *ids;
    size_t count, capacity;
} nib_token_list; /* zero-initialise; free with nib_token_list_free */
void nib_token_list_free(nib_token_list *list);

/* path: a tokenizer.json, a folder holding one (with tokenizer_config.json beside it), or a .gguf. */
nib_status nib_tokenizer_open(const char *path, nib_tokenizer **tokenizer);
void nib_tokenizer_free(nib_tokenizer *tokenizer);

typedef struct {
    bool add_special;   /* run the post-processor (BOS, ...) */
    bool parse_special; /* special added tokens in the text become their ids; false: they are plain text */
} nib_encode_options;
/* Appends the ids of text (UTF-8, may hold NUL) to the list. Thread-safe on one tokenizer. */
nib_status nib_tokenizer_encode(const nib_tokenizer *tokenizer, const char *text, size_t length,
                                nib_encode_options options, nib_token_list *list);
/* Appends the decoded text. Bytes that form no UTF-8 become U+FFFD, as in the reference. */
nib_status nib_tokenizer_decode(const nib_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                                nib_buffer *text);

int32_t nib_tokenizer_vocabulary(const nib_tokenizer *tokenizer); /* largest id + 1 */
/* Id of an added or vocabulary token by its exact text; -1 if there is none. */
int32_t nib_tokenizer_id(const nib_tokenizer *tokenizer, const char *token);
/* Text of an id as it stands in the vocabulary; NULL if there is none. */
const char *nib_tokenizer_text(const nib_tokenizer *tokenizer, int32_t id);
bool nib_tokenizer_is_special(const nib_tokenizer *tokenizer, int32_t id);
int32_t nib_tokenizer_bos(const nib_tokenizer *tokenizer); /* -1: none (tokenizer_config.json, or GGUF metadata) */
int32_t nib_tokenizer_eos(const nib_tokenizer *tokenizer);
const char *nib_tokenizer_chat_template(const nib_tokenizer *tokenizer); /* NULL: none */
/* SHA-256 of what determines the ids (file bytes), as hex. */
const char *nib_tokenizer_hash(const nib_tokenizer *tokenizer);

#endif
