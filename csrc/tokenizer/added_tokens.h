/* Added tokens: texts that become their id wherever they stand, before the model sees anything. */
#ifndef NIB_ADDED_TOKENS_H
#define NIB_ADDED_TOKENS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *text; /* what is looked for: the content, normalized if `normalized` */
    size_t length;
    int32_t id;
    bool single_word; /* not beside a letter, digit or underscore */
    bool lstrip;      /* takes the white space before it */
    bool rstrip;      /* and behind it */
    bool normalized;  /* looked for in the normalized text */
    bool special;
} nib_added_token;

/* The tokens of one pass, ordered for the search: by first byte, then longest first. */
typedef struct {
    nib_added_token *tokens; /* owned, with their texts */
    size_t count, capacity;
    size_t first[257]; /* tokens that begin with byte b: first[b] to first[b + 1] */
} nib_added_tokens;

/* Takes over text (nib_calloc'ed). false: no memory, text still the caller's. */
bool nib_added_tokens_append(nib_added_tokens *added, nib_added_token token);
void nib_added_tokens_sort(nib_added_tokens *added); /* after the last append, before the first search */
void nib_added_tokens_free(nib_added_tokens *added);

typedef nib_status (*nib_text_function)(void *context, const char *text, size_t length);
typedef nib_status (*nib_token_function)(void *context, int32_t id);
/* Leftmost, longest: calls token for each one found and rest for what lies between, in order. Special ones are
 * plain text unless parse_special. */
nib_status nib_added_tokens_split(const nib_added_tokens *added, bool parse_special, const char *text, size_t length,
                                  nib_text_function rest, nib_token_function token, void *context);

#endif
