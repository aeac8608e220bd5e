/* What the ranks of a run do together: a table of collectives that move bytes. No collective computes: sums are taken
 * in a fixed order by gradient_sum.h, so that the bits of a result depend on neither transport nor number of ranks.
 *
 * Every rank calls the same collectives in the same order, from one thread. Memory is host memory. A collective that
 * cannot be finished (a peer died, or is in another collective) is NIB_ERROR_DEVICE and names the peer; after that only
 * close is allowed.
 */
#ifndef NIB_COLLECTIVES_H
#define NIB_COLLECTIVES_H

#include "base/status.h"
#include "ranks.h"

#include <stddef.h>

/* One peer's share of a collective; bytes may be 0, and is the same at the sender and at the receiver. */
typedef struct {
    void *data;
    size_t bytes;
} nib_part;

/* What waits for the other ranks by means of its own, and has to be told that one of them is lost. Both are called by
 * the thread that watches the ranks. */
typedef struct {
    void *context;
    nib_status (*poll)(void *context); /* NIB_OK, or what it has found wrong itself */
    void (*abort)(void *context);      /* nobody has to wait any more */
    bool noted; /* the ranks note all that they begin, so that a long time without a note on any is a standstill */
} nib_guard;

typedef struct nib_collectives nib_collectives;
struct nib_collectives {
    const char *name; /* "alone", "tcp", "mpi" */
    int rank, size;
    int local_rank, local_size; /* on this machine */
    double check_seconds;       /* that their check took at the start */
    void *context;              /* the implementation's own */

    /* data of `root` into data of all. */
    nib_status (*broadcast)(nib_collectives *c, void *data, size_t bytes, int root);
    /* No rank returns before all have come. */
    nib_status (*barrier)(nib_collectives *c);
    /* part[rank] of every rank into part[rank] of all; part [size], own included. */
    nib_status (*all_gather)(nib_collectives *c, const nib_part *part);
    /* send[to] of rank `from` into receive[from] of rank `to`; both [size], own included. */
    nib_status (*all_to_all)(nib_collectives *c, const nib_part *send, const nib_part *receive);
    nib_status (*send)(nib_collectives *c, int to, const void *data, size_t bytes);
    nib_status (*receive)(nib_collectives *c, int from, void *data, size_t bytes);

    /* Says what this rank is at, for messages about a rank that died or hangs: "step 12, evaluation". */
    void (*note)(nib_collectives *c, const char *text);
    /* guard (NULL: none) is copied. A process on its own has nobody to wait for, and does not call it. */
    void (*guard)(nib_collectives *c, const nib_guard *guard);
    /* Fails with what became of a rank that was lost, if that is found out within seconds, else with `otherwise` and
     * this thread's message. */
    nib_status (*verdict)(nib_collectives *c, nib_status otherwise);
    /* Ends and frees. With NIB_OK or NIB_STOPPED every rank has to be at its end, and waits for the others; any other
     * status, with this thread's message, is told to the others, who end with it. */
    nib_status (*close)(nib_collectives *c, nib_status status);
};

/* Joins the ranks that the environment names; one process gets a table that does nothing. Then checks itself:
 * known values through every collective, between all pairs. The pair that fails is named (NIB_ERROR_DEVICE). */
nib_status nib_collectives_open(const nib_ranks *ranks, nib_collectives **collectives);

nib_status nib_collectives_alone(nib_collectives **collectives);
nib_status nib_collectives_tcp(const nib_ranks *ranks, nib_collectives **collectives);

/* value of every rank, into all [size]. */
nib_status nib_gather_values(nib_collectives *c, int64_t value, int64_t *all);
/* The largest value of all ranks. */
nib_status nib_agree_largest(nib_collectives *c, int64_t *value);

#endif
