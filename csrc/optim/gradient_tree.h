/* Sums the gradients of the slots that this rank computes, in the order of slot_order.h, so that the same bits result
 * however the slots are spread over ranks. The newest node lies in the gradient array itself, so a single slot takes no
 * memory, and n slots about log2(n) arrays.
 */
#ifndef NIB_GRADIENT_TREE_H
#define NIB_GRADIENT_TREE_H

#include "model/ops.h"
#include "optim/slot_order.h"

typedef struct {
    nib_ops *ops;
    int64_t n;
    nib_slot_range range;
    nib_slot_order order;           /* of the slots added in this step */
    int joined;                     /* nodes that are added to the slot given last */
    int held;                       /* arrays below */
    float *partial[NIB_SLOT_NODES]; /* [held][n], partial[i] is order.node[i]; the backend's memory */
} nib_gradient_tree;

/* Room for sums of the slots of `range`, of `slots` in all, of arrays of n values. NIB_ERROR_MEMORY. */
nib_status nib_gradient_tree_create(nib_ops *ops, int64_t n, int slots, nib_slot_range range, nib_gradient_tree *tree);
void nib_gradient_tree_free(nib_gradient_tree *tree);
/* Bytes that create takes, for the memory plan. */
size_t nib_gradient_tree_bytes(int64_t n, int slots, nib_slot_range range);

/* gradient [n] holds slot `slot`, the slots of the range being given in order. Before the last it is taken and left
 * zero for the next; after the last, node order.depth - 1 lies in it and those before in partial[0 ..]. With all slots
 * in the range that one node is the sum. */
nib_status nib_gradient_tree_add(nib_gradient_tree *tree, int slot, float *gradient);
/* The same for the last slot, part by part as its gradients come: last once, then finish for values begin ..
 * begin + n - 1 when they hold the slot. */
void nib_gradient_tree_last(nib_gradient_tree *tree);
nib_status nib_gradient_tree_finish(nib_gradient_tree *tree, float *gradient, int64_t begin, int64_t n);

#endif
