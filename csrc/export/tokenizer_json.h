/* The vocabulary inside a GGUF as the files that Hugging Face's tokenizers and transformers read. */
#ifndef NIB_EXPORT_TOKENIZER_JSON_H
#define NIB_EXPORT_TOKENIZER_JSON_H

#include "base/status.h"

/* Writes FOLDER/tokenizer.json and tokenizer_config.json; folder NULL: only tells whether it could. Byte-level
 * vocabularies ("gpt2") only; NIB_ERROR_DATA for others. */
nib_status nib_export_tokenizer_json(const char *gguf, const char *folder);

#endif
