/* An NF4 base that is divided among ranks (shards.h).
 *
 * A layer's packed weights, codes and scales of its seven matrices, lie one behind the other in one record. A rank
 * keeps its part of every layer's record, size / ranks bytes. Whole records come into two windows in turn: while a
 * layer is computed from one, the next layer's is brought into the other, in the forward pass as in the backward pass.
 * The last layer of a pass and the one before it are there already when the next pass begins with them.
 *
 * Norms, biases, embedding and head are not divided. What is computed is what an undivided base gives, bit for bit.
 */
#ifndef NIB_BASE_SHARDS_H
#define NIB_BASE_SHARDS_H

#include "model/ops.h"
#include "model/shards.h"

typedef struct {
    const nib_shards *among; /* NULL: every rank has the whole base */
    nib_arena record;        /* of the layer that is being placed; its peak is the longest record */
    size_t *offset;          /* [size + 1] where each rank's part begins in a record */
    char *parts;             /* [layers][offset[1]] of this rank */
    char *window[2];         /* [offset[size]] records as they are computed from */
    int64_t held[2];         /* layer whose record is in the window, or on its way there; -1: none */
    bool coming;             /* one is on its way */
} nib_base_shards;

/* Of bytes of a record: where this rank keeps those that it keeps, `count` from the `first` on. Undivided: all. */
typedef struct {
    char *place; /* the backend's memory */
    size_t first, count;
} nib_base_piece;

#endif
