/* The check that collectives make of themselves before a run relies on them. */
#ifndef NIB_COLLECTIVES_CHECK_H
#define NIB_COLLECTIVES_CHECK_H

#include "collectives.h"

/* Known values through every collective, between all pairs in both directions; milliseconds, which c->check_seconds
 * says: from when all ranks have come. What arrives wrong is NIB_ERROR_DEVICE at every rank, with the pair, the
 * collective and the transport. */
nib_status nib_collectives_check(nib_collectives *c);

/* The same for what moves bytes beside the collectives. */
#define NIB_CHECK_WORDS 256 /* to each peer */
typedef enum {
    NIB_CHECK_ALL_TO_ALL,
    NIB_CHECK_ALL_GATHER,
    NIB_CHECK_BROADCAST,
    NIB_CHECK_SEND,
    NIB_CHECK_MOVES,
    NIB_CHECK_KINDS
} nib_check_kind;

/* What rank `from` gives rank `to`: other bits for every pair and kind. */
void nib_check_fill(uint64_t *words, nib_check_kind kind, int from, int to);
/* What came; *wrong, at first 0, keeps the first difference. */
void nib_check_compare(const uint64_t *words, nib_check_kind kind, int from, int to, int64_t *wrong);
/* All ranks together: fails at each if something was wrong at any. */
nib_status nib_check_report(nib_collectives *c, int64_t wrong, const char *transport);

#endif
