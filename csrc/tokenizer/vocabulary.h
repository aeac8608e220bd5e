/* A vocabulary: the text of each id, and the id of each text by an open-addressing hash table. */
#ifndef NIB_VOCABULARY_H
#define NIB_VOCABULARY_H

#include "base/buffer.h"
#include "base/status.h"

#include <stdint.h>

/* No model comes near; it bounds what one id of a hostile file can make us allocate. */
#define NIB_VOCABULARY_MAX_ID ((1 << 22) - 1)

typedef struct {
    nib_buffer bytes;  /* the texts one after another, each followed by a NUL */
    uint64_t *offsets; /* by id, into bytes; UINT64_MAX: the id has no text */
    uint32_t *lengths; /* by id, in bytes */
    size_t ids;        /* largest id + 1 */
    size_t texts;
    size_t offset_capacity, length_capacity;
    int32_t *slots; /* by hash: id, or -1; a power of two of them, at most half full */
    size_t slot_count;
} nib_vocabulary; /* zero-initialise; free with nib_vocabulary_free */

/* NIB_ERROR_DATA, naming `name`, when the id is out of range or taken, or the text is there already. */
nib_status nib_vocabulary_add(nib_vocabulary *vocabulary, const char *name, int64_t id, const char *text,
                              size_t length);
int32_t nib_vocabulary_find(const nib_vocabulary *vocabulary, const char *text, size_t length); /* -1: none */
/* NULL if the id has no text; *length may be NULL. */
const char *nib_vocabulary_text(const nib_vocabulary *vocabulary, int64_t id, size_t *length);
void nib_vocabulary_free(nib_vocabulary *vocabulary);

/* A fast hash of short strings, for tables that live in memory only. */
uint64_t nib_text_hash(const char *text, size_t length);

#endif
