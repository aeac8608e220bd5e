/* The pre-tokenizers that tokenizer.ggml.pre names. */
#ifndef NIB_GGUF_PRETOKENIZER_H
#define NIB_GGUF_PRETOKENIZER_H

#include <stdbool.h>

typedef struct {
    const char *name;
    const char *patterns[4]; /* one after another, each match isolated; NULL ends */
    bool ignore_merges, add_bos, nfc;
} nib_gguf_pretokenizer;

/* NULL: not known. name NULL: "default". */
const nib_gguf_pretokenizer *nib_gguf_pretokenizer_find(const char *name);

#endif
