/* Moves between the devices of a job's ranks, by NCCL: bytes only, since NCCL's own sums are in no fixed order.
 *
 * The ranks have come together over the host's collectives already, which carry NCCL's id and notice a rank that dies.
 * The communicator is nonblocking: what NCCL finds wrong is polled, while this rank waits and by the thread that
 * watches the other ranks; that thread also aborts the communicator once a rank is lost, so that no rank waits on its
 * device for one that is gone.
 */
#ifndef NIB_DEVICE_EXCHANGE_H
#define NIB_DEVICE_EXCHANGE_H

#include "collectives.h"
#include "model/ops.h"

typedef struct nib_device_exchange nib_device_exchange;

typedef struct {
    bool send; /* to `rank`; else received from it */
    int rank;  /* may be this one */
    void *data;
    size_t bytes; /* 0: no move */
} nib_move;

/* All of them at once, in the order of this queue of the backend's; returns when they have been queued. Between two
 * ranks the n-th send belongs to the n-th receive, and is of the same size. One thread calls, all ranks in the same
 * order, and calls in two queues have an order by fork and join (ops.h): there is one communicator, so that moves of
 * different ranks never wait for each other in a circle. Memory is the backend's. NIB_ERROR_DEVICE names the rank that
 * was lost, or says what NCCL found. */
nib_status nib_device_exchange_run(nib_device_exchange *exchange, void *queue, const nib_move *move, int count);

/* All ranks together. *exchange NULL: one rank, a backend in the host's memory, or a rank without a usable NCCL, which
 * a warning tells; bytes then go through the host. Checks itself: known values between all pairs; what arrives wrong is
 * NIB_ERROR_DEVICE at every rank and names the pair. */
nib_status nib_device_exchange_open(nib_collectives *c, nib_ops *ops, nib_device_exchange **exchange);
/* From now on the ranks note whatever they begin (collectives.h): where none does for long, they wait for each other's
 * moves, and are ended. NULL is allowed. */
void nib_device_exchange_watch(nib_device_exchange *exchange);
/* status: as in nib_collectives.close. NULL is allowed. */
void nib_device_exchange_close(nib_device_exchange *exchange, nib_status status);

#endif
