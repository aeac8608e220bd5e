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
 * With an exchange bytes go from device to device and are added there; with NULL they travel and are added in the
 * host's memory, of which it takes some 40 MiB while it runs. */
nib_status nib_gradient_sum(nib_collectives *c, nib_gradient_tree *tree, float *gradient,
                            nib_device_exchange *exchange);

#endif
