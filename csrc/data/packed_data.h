/* Packed data (manifest.h) opened for reading: any sample by its number, at a cost that does not grow with their
 * number, in memory or time. */
#ifndef NIB_PACKED_DATA_H
#define NIB_PACKED_DATA_H

#include "data/manifest.h"
#include "data/sample_index.h"
#include "formats/zstd_frames.h"

typedef struct {
    char *folder;
    char **shard_path; /* [manifest.shards] */
    nib_manifest manifest;
    nib_sample_index index; /* closed where the manifest has no samples */
} nib_packed_data;

/* Reads the manifest and compares it with what is there: every file's size, and who tokenised the samples. Another
 * tokenizer, template, or BOS or EOS text than the options' is NIB_ERROR_DATA, and the difference is named. */
nib_status nib_packed_data_open(const char *folder, const nib_data_options *options, nib_packed_data *data);
void nib_packed_data_close(nib_packed_data *data);

/* Reads every file and compares its SHA-256 with the manifest's. */
nib_status nib_packed_data_verify(const nib_packed_data *data);

/* Why samples cannot be read one by one under these options, to go behind "since": there is no index, or the options
 * make others of the rows, as where everything is supervised or rows are too long. NULL: they can. */
const char *nib_packed_data_obstacle(const nib_packed_data *data, const nib_data_options *options);

/* A reading of samples by one thread: the shard at hand, and what the encoder keeps. Zero-initialise, then set data,
 * options (both must outlive it) and vocabulary. */
typedef struct {
    const nib_packed_data *data;
    const nib_data_options *options;
    int64_t vocabulary; /* ids must be below it */
    nib_zstd_reader *shard;
    uint32_t shard_number;
    nib_row_encoder encoder;
    nib_buffer line;
} nib_packed_cursor;

/* Sample `index` into the row, whose arrays are the pool's. A row that does not give the sample of the index, as when a
 * file was changed, is NIB_ERROR_DATA with file and line. */
nib_status nib_packed_cursor_read(nib_packed_cursor *cursor, int64_t index, nib_pool *pool, nib_row *row);
void nib_packed_cursor_free(nib_packed_cursor *cursor);

#endif
