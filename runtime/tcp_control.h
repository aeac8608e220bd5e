/* The control channel: a connection from every rank to rank 0, served by a thread of its own.
 *
 * Each second every rank tells rank 0, and rank 0 all others, that it lives, and which collective it is in. A
 * connection that closes without a farewell is a rank that died; one that is silent is a rank that hangs; a rank that
 * fails says why. Rank 0 passes the first such verdict on, so that all ranks name the same cause and end with the same
 * exit code.
 */
#ifndef NIB_TCP_CONTROL_H
#define NIB_TCP_CONTROL_H

#include "collectives.h"

#include <stdbool.h>

typedef struct nib_control nib_control;

typedef struct {
    double silent; /* seconds without a sign of life: the rank hangs */
    double absent; /* seconds in which others wait in a collective, or all by a guard's means, and a rank does nothing
                      that can be seen */
    double grace;  /* seconds that the rank's own thread has to end by itself after a verdict */
    void (*end)(nib_status status, const char *message); /* called after that; does not have to return */
} nib_control_limits;

extern const nib_control_limits nib_control_job_limits; /* end: prints the message and ends the process */

/* peer: rank 0's [size] connections to the others, own -1; another rank's only connection, to rank 0, is peer[0]. They
 * are taken over whatever the outcome. */
nib_status nib_control_start(const nib_ranks *self, const int *peer, const nib_control_limits *limits,
                             nib_control **control);
/* What this rank does: the number and name of a collective, whether it is inside, and any text beside. NULL: as before.
 */
void nib_control_at(nib_control *control, uint32_t number, const char *collective, bool inside);
void nib_control_note(nib_control *control, const char *text);

/* collectives.h's guard; NULL: none any more, and none of its functions runs when this returns. */
void nib_control_guard(nib_control *control, const nib_guard *guard);

/* Whether there is a verdict; NULL has none. */
bool nib_control_failed(nib_control *control);
/* Waits for a verdict and fails with it. Where none comes within the seconds, fails with this thread's own message. */
nib_status nib_control_verdict(nib_control *control, double seconds, nib_status otherwise);
/* Readable once there is a verdict: to be polled together with the sockets of a collective. */
int nib_control_wake(const nib_control *control);

/* Tells the others that this rank ends: with NIB_OK as planned, else for this reason, unless it was they who told. */
void nib_control_stop(nib_control *control, nib_status status, const char *message);

#endif
