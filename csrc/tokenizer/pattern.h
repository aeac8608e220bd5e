/* The regular expressions of tokenizers, run by PCRE2 with its JIT so that they match as Oniguruma does in Hugging
 * Face's tokenizers: Unicode properties, and \s as the White_Space property (PCRE2's also holds U+180E). */
#ifndef NIB_PATTERN_H
#define NIB_PATTERN_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct nib_pattern nib_pattern;

/* literal: match the text itself. name goes into messages. NIB_ERROR_DATA for what does not compile, and for the
 * constructs that mean something else in Oniguruma (\h, \H, &&, \S inside a class). */
nib_status nib_pattern_compile(const char *name, const char *source, size_t length, bool literal,
                               nib_pattern **pattern);
void nib_pattern_free(nib_pattern *pattern);

/* Working memory for matching; one per thread. */
typedef struct nib_matcher nib_matcher;
nib_matcher *nib_matcher_new(void); /* NULL: no memory */
void nib_matcher_free(nib_matcher *matcher);
/* Leftmost match in text[from..length), which must be valid UTF-8. NIB_ERROR_DATA when PCRE2's limits are met. */
nib_status nib_pattern_find(const nib_pattern *pattern, nib_matcher *matcher, const char *text, size_t length,
                            size_t from, bool *found, size_t *start, size_t *end);

#endif
