/* The long form of the collectives' check: every pair of ranks by itself, with known bytes and the time they take.
 *
 * Ranks meet in rounds, as in a tournament: in each of size - 1 (or size) rounds every rank has one partner, so all
 * pairs of a round are measured at once, and the time grows with the ranks and not with the pairs. Latency is half of
 * the quickest of some round trips of 8 bytes. For the bandwidth messages grow until one takes long enough to be timed,
 * which is repeated; the receiver answers with 8 bytes, whose latency is taken off, and the quickest counts.
 */
#ifndef NIB_LINK_CHECK_H
#define NIB_LINK_CHECK_H

#include "collectives.h"
#include "nccl/device_exchange.h"

/* Ranks a < b. */
typedef struct {
    float latency;     /* seconds */
    float there, back; /* bytes a second from a to b, and from b to a */
    uint8_t wrong;     /* 1: wrong bytes came from a to b, 2: from b to a, 3: both */
} nib_link;

/* Where pair a < b lies in an array of all pairs. */
static inline int64_t nib_link_index(int a, int b) { return (int64_t)b * (b - 1) / 2 + a; }

/* All ranks together. exchange NULL: the links of the collectives themselves, else those of the devices, with what a
 * run's host does for a move. link [size (size - 1) / 2] is filled at rank 0; not read at others. A rank that is lost
 * is NIB_ERROR_DEVICE; wrong bytes are noted only. */
nib_status nib_link_check(nib_collectives *c, nib_ops *ops, nib_device_exchange *exchange, nib_link *link);

#endif
