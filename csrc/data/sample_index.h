/* Where each sample of packed data stands: a file of entries of one size, so that any of them is found without reading
 * the others. The entry says what its row must give when it is encoded again: a file that was changed is noticed. */
#ifndef NIB_SAMPLE_INDEX_H
#define NIB_SAMPLE_INDEX_H

#include "base/buffer.h"
#include "base/status.h"
#include "data/fingerprints.h"

#include <stdint.h>

typedef struct {
    uint64_t offset;      /* of the row in its shard's content */
    uint64_t fingerprint; /* of the sample's ids (row_encoder.h) */
    uint32_t length;      /* bytes of the row, without its line end */
    uint32_t shard, line; /* line is 1-based within the shard */
    uint32_t draft;       /* which sample of the row, from 0 */
    uint32_t tokens;      /* of the sample */
    uint32_t supervised;  /* of them */
} nib_sample_place;

enum { NIB_SAMPLE_PLACE_BYTES = 40 };

/* Appends the entry as it stands in the file, little-endian, fields in order. */
void nib_sample_place_append(const nib_sample_place *place, nib_buffer *bytes);

/* Reads are by position, and safe from several threads at once. */
typedef struct {
    int fd; /* -1: closed */
    char *path;
    int64_t count;
} nib_sample_index;

/* count: entries that the manifest states; a file of another size is NIB_ERROR_DATA. */
nib_status nib_sample_index_open(const char *path, int64_t count, nib_sample_index *index);
void nib_sample_index_close(nib_sample_index *index);
/* Entries [first, first + n) into place. */
nib_status nib_sample_index_read(const nib_sample_index *index, int64_t first, int64_t n, nib_sample_place *place);

/* Calls visit for all entries in order, until one is not NIB_OK. Takes no memory for them. */
typedef nib_status (*nib_sample_visit)(void *context, int64_t first, const nib_sample_place *place, int64_t n);
nib_status nib_sample_index_each(const nib_sample_index *index, nib_sample_visit visit, void *context);

/* One pass over all fingerprints. */
nib_status nib_sample_index_repetitions(const nib_sample_index *index, nib_repetitions *of, int64_t *count);
/* Samples whose fingerprint an earlier one has. Bounded memory: goes through the file once for every few million. */
nib_status nib_sample_index_duplicates(const nib_sample_index *index, int64_t *duplicates);

#endif
