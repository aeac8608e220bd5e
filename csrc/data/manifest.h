/* Packed data: a folder of shards (zstd_frames.h) whose content is the rows as JSONL, of manifest.json that says what
 * is in them, and, where a tokenizer was given, of the index of their samples (sample_index.h). A row never crosses
 * from one shard to the next. */
#ifndef NIB_MANIFEST_H
#define NIB_MANIFEST_H

#include "base/buffer.h"
#include "base/memory.h"
#include "base/status.h"
#include "data/row_encoder.h"

#include <stdint.h>

#define NIB_MANIFEST_FILE "manifest.json"

typedef struct {
    const char *file; /* name within the folder */
    uint64_t bytes, content_bytes;
    int64_t frames, rows;
    char hash[65]; /* SHA-256 of the file */
} nib_shard;

typedef struct {
    const char *path; /* as it was given to pack */
    int64_t rows;
} nib_packed_source;

/* What the tokenizer made of the rows. Every turn of a conversation that is a sample of its own counts. */
typedef struct {
    const char *file; /* the index */
    char hash[65];    /* SHA-256 of the index */
    int64_t count, tokens, supervised_tokens, longest, largest_id, duplicates;
    int32_t terminator[NIB_MAX_TERMINATORS];
    int terminators;
    char tokenizer_hash[65], template_hash[65]; /* template "": none */
    const char *bos_token, *eos_token;          /* as the template sees them */
} nib_packed_samples;

typedef struct {
    nib_shard *shard;
    int shards;
    nib_packed_source *source;
    int sources;
    int64_t rows;
    uint64_t content_bytes;
    bool has_samples;
    nib_packed_samples samples;
    char hash[65]; /* SHA-256 of manifest.json: of all the data, since every file's is in it */
    nib_pool pool; /* holds strings and arrays of a manifest that was read */
} nib_manifest;

/* Does the folder hold packed data? */
bool nib_manifest_exists(const char *folder);
/* FOLDER/manifest.json. NIB_ERROR_DATA names what is missing, of a wrong type, or does not add up. */
nib_status nib_manifest_read(const char *folder, nib_manifest *manifest);
void nib_manifest_free(nib_manifest *manifest);
/* The text of manifest.json: the same for equal manifests. */
void nib_manifest_write(const nib_manifest *manifest, nib_buffer *text);

#endif
