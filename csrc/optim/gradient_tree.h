/* Sums the gradients of a step's slots by a fixed binary tree, so that the same bits result however the slots are
 * spread over ranks: ((s0 + s1) + (s2 + s3)) + ... Slots arrive in order; like a binary counter, a pair is merged as
 * soon as both halves are there, so log2(slots) partial sums are held and none at all for one slot. A rank that owns an
 * aligned power-of-two block of slots computes exactly one node of the same tree.
 */
#ifndef NIB_GRADIENT_TREE_H
#define NIB_GRADIENT_TREE_H

#include "model/ops.h"

typedef struct {
    nib_ops *ops;
    int64_t n;
    int levels;
    float *partial[32]; /* [levels][n], sum of 2^level slots; the backend's memory */
} nib_gradient_tree;

/* Room for sums of `slots` >= 1 arrays of n values. NIB_ERROR_MEMORY. */
nib_status nib_gradient_tree_create(nib_ops *ops, int64_t n, int slots, nib_gradient_tree *tree);
void nib_gradient_tree_free(nib_gradient_tree *tree);
/* Bytes that create takes, for the memory plan. */
size_t nib_gradient_tree_bytes(int64_t n, int slots);

/* gradient [n] holds slot `slot` of `slots`, slots being given in order 0, 1, ... After the last it holds the sum;
 * before that it is taken and left zero for the next slot. */
nib_status nib_gradient_tree_add(nib_gradient_tree *tree, int slot, int slots, float *gradient);

#endif
