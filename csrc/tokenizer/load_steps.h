/* The steps of a tokenizer.json: each reads one part of the file into the tokenizer. NULL or null: no step. A type or
 * an option that is not known is NIB_ERROR_DATA. */
#ifndef NIB_LOAD_STEPS_H
#define NIB_LOAD_STEPS_H

#include "base/json.h"
#include "tokenizer/pipeline.h"

nib_status nib_load_normalizer(nib_tokenizer *tokenizer, const nib_json *value);
nib_status nib_load_pretokenizer(nib_tokenizer *tokenizer, const nib_json *value);
/* Needs the complete vocabulary. */
nib_status nib_load_post_processor(nib_tokenizer *tokenizer, const nib_json *value);
nib_status nib_load_decoder(nib_tokenizer *tokenizer, const nib_json *value);

/* A member that has to be there and to be true or false, as it is in every file that Hugging Face's library reads. */
nib_status nib_load_flag(const nib_tokenizer *tokenizer, const nib_json *object, const char *key, bool *flag);

#endif
