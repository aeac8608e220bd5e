/* What `nibble inspect` says of packed data. */
#ifndef NIB_RUNTIME_INSPECT_SHARDS_H
#define NIB_RUNTIME_INSPECT_SHARDS_H

#include "base/buffer.h"
#include "base/status.h"

#include <stdbool.h>

/* Appends what the folder's manifest states. The files' sizes are compared with it; their content is not read. */
nib_status nib_inspect_packed(const char *folder, nib_buffer *out);
/* Is the file to be looked at as a shard? By its name, .zst. */
bool nib_inspect_is_shard(const char *path);
/* Appends the frames of one shard, from its table. */
nib_status nib_inspect_shard(const char *path, nib_buffer *out);

#endif
