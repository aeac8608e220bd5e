/* Normalizers: a chain of rewritings before anything is cut. */
#ifndef NIB_NORMALIZER_H
#define NIB_NORMALIZER_H

#include "base/buffer.h"
#include "base/status.h"

typedef enum { NIB_NORMALIZE_NFC, NIB_NORMALIZE_PREPEND, NIB_NORMALIZE_REPLACE } nib_normalizer_kind;

typedef struct {
    nib_normalizer_kind kind;
    char *pattern; /* replace: a plain text */
    char *content; /* replace, prepend */
} nib_normalizer_step;

#define NIB_NORMALIZER_STEPS 8
typedef struct {
    nib_normalizer_step steps[NIB_NORMALIZER_STEPS];
    size_t count;
} nib_normalizer;
void nib_normalizer_free(nib_normalizer *normalizer);

/* *result is text itself where nothing changes, else in one of the two buffers. */
nib_status nib_normalize(const nib_normalizer *normalizer, nib_buffer buffers[2], const char *text, size_t length,
                         const char **result, size_t *result_length);

/* Appends text with every occurrence of pattern (not empty) replaced by content. */
void nib_replace(nib_buffer *out, const char *text, size_t length, const char *pattern, const char *content);

#endif
