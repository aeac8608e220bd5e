/* Rows of JSONL files into a folder of packed data (manifest.h). */
#ifndef NIB_SHARD_PACKER_H
#define NIB_SHARD_PACKER_H

#include "data/manifest.h"

/* Content of a shard: it ends with the row that reaches this. */
#define NIB_SHARD_CONTENT ((uint64_t)256 << 20)

/* Writes FOLDER from the rows of `count` files (.jsonl or .jsonl.zst) in their order; empty lines are left out.
 * options: how rows become samples, and whose ids they are; NULL: rows are only checked, and the folder gets no index
 * of samples. The folder must not be there: it is written beside it, and renamed when it is complete and on disk.
 *
 * Uses all threads of OpenMP, and 200 MB at most besides a line's own; the bytes are the same at any number of threads.
 * NIB_ERROR_DATA names the file and line of the first row that is not one. */
nib_status nib_shards_pack(const char *const *files, int count, const char *folder, const nib_data_options *options);

#endif
