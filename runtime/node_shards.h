/* What model/shards.h asks for, between the ranks of this node: memory is divided among those that share a fast link,
 * and every node has the whole. Bytes go from device to device where there is an exchange, in the backend's second
 * queue: it waits for what is computed from the memory that is overwritten, the ops wait for what was moved, the host
 * for neither. Else they go over the collectives, by a thread of their own while this one computes.
 */
#ifndef NIB_NODE_SHARDS_H
#define NIB_NODE_SHARDS_H

#include "model/shards.h"
#include "nccl/device_exchange.h"

typedef struct nib_node_shards nib_node_shards;

/* All ranks together. *shards NULL: one rank on each node, and nothing to divide. NIB_ERROR_CONFIG if nodes have other
 * numbers of ranks, or a node's are not numbered one after another. A backend in a device's memory needs an exchange
 * (NIB_ERROR_DEVICE). */
nib_status nib_node_shards_open(nib_collectives *c, nib_ops *ops, nib_device_exchange *exchange,
                                nib_node_shards **shards);
void nib_node_shards_close(nib_node_shards *shards);                    /* NULL is allowed */
const nib_shards *nib_node_shards_table(const nib_node_shards *shards); /* NULL of NULL */
/* What this rank is at, as in the collectives' note, to which is added what is being gathered. NULL is allowed. */
void nib_node_shards_at(nib_node_shards *shards, const char *text);

#endif
