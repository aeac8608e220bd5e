/* What tells a base from every other: a SHA-256 over each of its bytes. */
#ifndef NIB_WEIGHT_HASH_H
#define NIB_WEIGHT_HASH_H

#include "model/shards.h"
#include "model/weight_source.h"

/* hex: SHA-256 of the configuration, of every tensor's name, type and shape, and of the SHA-256 of every 4 MiB of every
 * tensor. The pieces are hashed by all threads, and their pages given back, so that a large base is never resident as a
 * whole. The same on every machine, at any thread count, wherever the files lie.
 * Of an NF4 cache it is a hash of this and of the same of the checkpoint that was quantised, since one with another
 * byte may well have the same codes.
 * among: each of these ranks hashes its share of the pieces, and all find the same; NULL: all of them here. */
nib_status nib_weight_hash(const nib_weight_source *source, const nib_shards *among, char hex[65]);

#endif
