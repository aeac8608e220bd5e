/* Steps that are recorded once for a shape and replayed from then on (ops.h, record_begin), so that the device need not
 * wait for the host to ask for each of some hundred ops.
 *
 * A recording keeps pointers, sizes and numbers, so it is good for one number of tokens and targets, or for updates
 * that clip at one norm, and as long as activations and scratch stay where they are. A shape's first step is made as it
 * is, since it may grow the scratch and choose algorithms; its second is recorded. What changes from step to step comes
 * from buffers that are filled before. */
#ifndef NIB_RECORDING_H
#define NIB_RECORDING_H

#include "model/ops.h"

#define NIB_RECORDINGS 16 /* shapes remembered; the one that was used longest ago makes room */

/* Forward and backward of T tokens and N targets; or, both 0, an update of the parameters. */
typedef struct {
    int64_t T, N;
    double max_norm;
} nib_step_shape;

typedef struct {
    nib_step_shape of;
    bool hopeless;            /* it could not be recorded: not tried again */
    const void *scratch;      /* where the scratch was after the step before */
    nib_recording *recording; /* NULL: not recorded yet */
    uint64_t used;
} nib_recorded_shape;

/* Zero-initialise. */
typedef struct {
    nib_recorded_shape shape[NIB_RECORDINGS];
    uint64_t clock;
} nib_recordings;

/* Makes the step: calls it, or replays what it asked the ops for when it was called for this shape before. */
nib_status nib_recordings_run(nib_recordings *recordings, nib_ops *ops, nib_step_shape of,
                              nib_status (*step)(void *user), void *user);
/* Forgets all: what they point at moves. */
void nib_recordings_clear(nib_recordings *recordings, nib_ops *ops);

#endif
