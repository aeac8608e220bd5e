/* Pre-tokenizers: a chain of steps that cuts text into the words that BPE works on.
 *
 * Hugging Face's Punctuation, Digits and ByteLevel are lowered to splits by a pattern when the file is read.
 */
#ifndef NIB_PRETOKENIZER_H
#define NIB_PRETOKENIZER_H

#include "base/buffer.h"
#include "tokenizer/pattern.h"

#include <stdint.h>

typedef enum {
    NIB_STEP_SPLIT,        /* cut at the matches of a pattern */
    NIB_STEP_PREFIX_SPACE, /* a space before a piece that has none */
    NIB_STEP_TO_ALPHABET,  /* bytes into GPT-2's alphabet, where a later step must see it */
    NIB_STEP_METASPACE     /* spaces into a replacement, one before the first piece, cut before each */
} nib_step_kind;

/* What becomes of a match: a piece of its own, one with all matches next to it, none, or joined to a neighbour. */
typedef enum {
    NIB_SPLIT_ISOLATED,
    NIB_SPLIT_CONTIGUOUS,
    NIB_SPLIT_REMOVED,
    NIB_SPLIT_MERGED_WITH_PREVIOUS,
    NIB_SPLIT_MERGED_WITH_NEXT
} nib_split_behavior;

typedef enum { NIB_PREPEND_ALWAYS, NIB_PREPEND_FIRST, NIB_PREPEND_NEVER } nib_prepend_scheme;

typedef struct {
    nib_step_kind kind;
    nib_pattern *pattern; /* split; metaspace: the replacement, if it cuts */
    nib_split_behavior behavior;
    bool invert; /* what the pattern does not match is the match */
    char *replacement;
    nib_prepend_scheme prepend;
} nib_pretokenizer_step;

#define NIB_PRETOKENIZER_STEPS 16
typedef struct {
    nib_pretokenizer_step steps[NIB_PRETOKENIZER_STEPS];
    size_t count;
} nib_pretokenizer;
void nib_pretokenizer_free(nib_pretokenizer *pretokenizer);

/* One buffer for each step that rewrites its piece; zero-initialise. */
typedef struct {
    nib_matcher *matcher;
    nib_buffer rewritten[NIB_PRETOKENIZER_STEPS];
} nib_pretokenizer_worker;

typedef nib_status (*nib_word_function)(void *context, const char *word, size_t length);
/* Calls word for every piece, in order. at_start: the text begins the whole input (for NIB_PREPEND_FIRST). */
nib_status nib_pretokenize(const nib_pretokenizer *pretokenizer, nib_pretokenizer_worker *worker, const char *text,
                           size_t length, bool at_start, nib_word_function word, void *context);

#endif
