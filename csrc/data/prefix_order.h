/* The rows of a step in the order in which a depth-first walk of their prefix tree meets them. */
#ifndef NIB_PREFIX_ORDER_H
#define NIB_PREFIX_ORDER_H

#include "data/pack.h"

/* Rows of one subtree are neighbours, so the longest prefix that a row shares with any row before it is the one it
 * shares with its neighbour: the order and these lengths are the whole tree. Children of a node come in the order of
 * their first row, a row that ends at a node before the node's children, equal rows by index.
 *
 * order  [count] out: indices into rows
 * shared [count] out: tokens that row order[i] has in common with row order[i-1]; shared[0] = 0
 * Every branch takes at least one token of each of its rows, so the sorts at branches cost O(tokens * log count) at the
 * very worst, and count * log count where few rows part at one place. Fails with NIB_ERROR_MEMORY. */
nib_status nib_prefix_order(const nib_row *rows, int64_t count, int64_t *order, int32_t *shared);

#endif
