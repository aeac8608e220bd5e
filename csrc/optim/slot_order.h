/* The order in which the gradients of a step's slots are added: a fixed binary tree over the slots, whatever ranks hold
 * them. Node (level, index) is the sum of slots index * 2^level up to (index + 1) * 2^level, those below `slots`; it is
 * its left half plus its right half, or the left half alone where no slot is in the right one.
 *
 * Nodes are pushed from left to right; like a binary counter, a node is joined with its left neighbour as soon as the
 * two are halves of one. A rank that pushes its own range of slots is left with the few nodes that lie wholly in it;
 * pushing the nodes of all ranks in order gives the root, by exactly the additions that one rank alone would have done.
 */
#ifndef NIB_SLOT_ORDER_H
#define NIB_SLOT_ORDER_H

#define NIB_SLOT_NODES 64 /* more than any range leaves: two for each bit of a slot's index */

typedef struct {
    int level, index;
} nib_slot_node;

typedef struct {
    int slots, depth;
    nib_slot_node node[NIB_SLOT_NODES]; /* [depth] what has been pushed, joined as far as it goes; left to right */
} nib_slot_order;

typedef struct {
    int first, end; /* slots first .. end - 1 */
} nib_slot_range;

/* The slots that a rank computes: as equal a share as can be, in order. 1 <= ranks <= slots. */
nib_slot_range nib_slot_range_of_rank(int slots, int ranks, int rank);

/* An order over `slots` slots (1 .. 2^30), nothing pushed. */
nib_slot_order nib_slot_order_begin(int slots);
/* Pushes the node right of all before. Returns how many of the uppermost nodes before it have to be added to it, from
 * the last backwards; the sum takes their place, as node[depth - 1]. */
int nib_slot_order_push(nib_slot_order *order, nib_slot_node node);
/* The order after a range has been pushed; *most: the most nodes that lay beneath a slot while it was pushed. */
nib_slot_order nib_slot_order_of_range(int slots, nib_slot_range range, int *most);

#endif
