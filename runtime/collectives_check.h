/* The check that collectives make of themselves before a run relies on them. */
#ifndef NIB_COLLECTIVES_CHECK_H
#define NIB_COLLECTIVES_CHECK_H

#include "collectives.h"

/* Known values through every collective, between all pairs in both directions; milliseconds. What arrives wrong is
 * NIB_ERROR_DEVICE at every rank, with the pair, the collective and the transport. */
nib_status nib_collectives_check(nib_collectives *c);

#endif
