/* The sum of a step's gradients over all ranks, in the order of slot_order.h: the same bits at any number of ranks.
 *
 * Each rank comes with the nodes of the tree that its slots left. The array is cut into as many chunks as there are
 * ranks; an all-to-all brings every rank all nodes of its chunk, it adds them in the tree's order, and an all-gather
 * hands the sums out. A rank sends and receives each about the size of the array, as in a ring all-reduce
 * (Rabenseifner, "Optimization of Collective Reduction Operations", 2004), if the slots divide evenly into powers of
 * two.
 */
#ifndef NIB_GRADIENT_SUM_H
#define NIB_GRADIENT_SUM_H

#include "nccl/device_exchange.h"
#include "optim/gradient_tree.h"

/* gradient [tree->n] and tree as nib_gradient_tree_add left them after the last slot of the range, which is
 * nib_slot_range_of_rank's; afterwards gradient is the sum over all slots on every rank. Both are the backend's memory.
 * Bytes travel and are added in the host's memory, of which it takes some 40 MiB while it runs. */
nib_status nib_gradient_sum(nib_collectives *c, nib_gradient_tree *tree, float *gradient);

/* The same from device to device, part by part while the rest is still computed: moves and additions are in a
 * side queue of the backend's. */
typedef struct nib_gradient_stream nib_gradient_stream;

/* *stream NULL: no exchange. gradient and tree have to outlive it. */
nib_status nib_gradient_stream_open(nib_collectives *c, nib_gradient_tree *tree, float *gradient,
                                    nib_device_exchange *exchange, nib_gradient_stream **stream);
void nib_gradient_stream_close(nib_gradient_stream *stream); /* NULL is allowed */
/* Bytes of the device that open takes. */
size_t nib_gradient_stream_bytes(int64_t n, int slots, int ranks);

/* In each step: nib_gradient_tree_last; then add, for values begin .. begin + n - 1 whose last slot is complete by what
 * was asked of the ops before, parts that follow each other downwards; then end, which adds those above and below.
 * What is asked of the ops after end finds the sums. All ranks add the same parts in the same order. */
nib_status nib_gradient_stream_add(void *stream, int64_t begin, int64_t n);
nib_status nib_gradient_stream_end(nib_gradient_stream *stream);

#endif
