/* A model's NF4 form on disk: a folder with config.json and model.safetensors in bitsandbytes' naming, double
 * quantised, which transformers loads as it is. `nibble quantize` writes one; training keeps one per model in a cache.
 */
#ifndef NIB_NF4_CACHE_H
#define NIB_NF4_CACHE_H

#include "model/shards.h"
#include "model/weight_source.h"

/* Quantises every linear but the head, tensor by tensor: no more than the packed codes of one tensor and a piece of its
 * values is in memory. A file that was there is replaced only by a complete one. hex (may be NULL): SHA-256 of
 * model.safetensors. */
nib_status nib_nf4_write(nib_ops *ops, const nib_weight_source *source, const char *folder, char hex[65]);

/* Replaces *source (16-bit) by its NF4 form in FOLDER/nf4-KEY, which is written first if it is not there or if its
 * content does not have the recorded hash. KEY is a hash of the source's configuration and files (path, size, time of
 * change, tensor table), so a changed model gets a new one. folder NULL: $XDG_CACHE_HOME/nibble or ~/.cache/nibble.
 * among: ranks that open it together; one of them writes, each verifies its share. NULL: alone. */
nib_status nib_nf4_cache_open(nib_ops *ops, const char *folder, const nib_shards *among, nib_weight_source *source);

#endif
