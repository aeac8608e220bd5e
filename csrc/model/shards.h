/* The ranks among which a model's memory is divided: each keeps a part, and all bring the parts together when they are
 * needed. How bytes go from one to another is the caller's (runtime/node_shards.h); a plan needs rank and size alone.
 *
 * All ranks ask for the same, in the same order; one thing at a time. A failure is NIB_ERROR_DEVICE and names the rank
 * that was lost.
 */
#ifndef NIB_SHARDS_H
#define NIB_SHARDS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    int rank, size; /* 0 <= rank < size, size > 1 */
    void *context;
    /* host [size][bytes]: the piece of every rank, own in its place, to all. */
    nib_status (*share)(void *context, void *host, size_t bytes);
    /* Begins to bring bytes offset[r] .. offset[r + 1] - 1 of `whole`, [offset[size]], from every rank r to all: after
     * what was asked of the ops before, beside what is asked of them from now on. part: this rank's, which may lie in
     * its place already. what, for messages: "layer 5"; copied. Memory is the backend's, offset the caller's until end.
     */
    nib_status (*begin)(void *context, const char *what, const void *part, void *whole, const size_t *offset);
    /* What is asked of the ops from now on finds `whole` there. */
    nib_status (*end)(void *context);
} nib_shards;

/* *value: whether it was true on every rank. among NULL: one rank alone. */
nib_status nib_shards_agree(const nib_shards *among, bool *value);

#endif
