/* What a tokenizer is made of, between the files that load one and the one that runs it. */
#ifndef NIB_PIPELINE_H
#define NIB_PIPELINE_H

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer.h"

#include <pthread.h>

/* Everything that one encode call writes to; kept between calls for its memory and its cache of words. */
typedef struct nib_tokenizer_worker nib_tokenizer_worker;

typedef enum { NIB_ADDED_SPECIAL = 1, NIB_ADDED_NORMALIZED = 2 } nib_added_flag;

struct nib_tokenizer {
    char *path;
    nib_added_tokens added, added_normalized; /* by the flag normalized: two passes, before and after normalizing */
    nib_normalizer normalizer;
    nib_pretokenizer pretokenizer;
    bool words_in_alphabet;       /* the last step leaves words in GPT-2's alphabet */
    nib_bpe bpe;                  /* its vocabulary holds the added tokens too */
    nib_token_list before, after; /* the post-processor's ids around the text */
    nib_decoder decoder;
    uint8_t *added_flags; /* by id: of nib_added_flag */
    int32_t bos, eos;
    char *chat_template;
    char hash[65];
    pthread_mutex_t lock;
    nib_tokenizer_worker *idle; /* a list, guarded by lock */
};

nib_status nib_tokenizer_load_json(nib_tokenizer *tokenizer);
nib_status nib_tokenizer_load_gguf(nib_tokenizer *tokenizer);

/* The flags of a token whose id is in the vocabulary already; called when the vocabulary is complete. */
nib_status nib_tokenizer_add_token(nib_tokenizer *tokenizer, nib_added_token flags);

/* Appends steps to the pre-tokenizer; label names the part of the file in messages. */
nib_status nib_pretokenizer_add_split(nib_tokenizer *tokenizer, const char *source, size_t length, bool literal,
                                      nib_split_behavior behavior, bool invert);
nib_status nib_pretokenizer_add(nib_tokenizer *tokenizer, nib_pretokenizer_step step);
/* The ByteLevel pre-tokenizer of Hugging Face's tokenizers. */
nib_status nib_pretokenizer_add_byte_level(nib_tokenizer *tokenizer, bool prefix_space, bool use_regex);
/* To be called after the last step: bytes are written in the alphabet only where a later step reads them. */
void nib_pretokenizer_finish(nib_tokenizer *tokenizer);

/* The step of OpenAI's GPT-2 (encoder.py). */
extern const char nib_gpt2_pattern[];

#endif
