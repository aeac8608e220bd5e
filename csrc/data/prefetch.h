/* The data of optimizer steps, made ahead of them by a thread: rows read, tokenised where they are not yet, and packed.
 * What a step gets is a pure function of the plan and its cursor, so the thread changes no bit of a run. */
#ifndef NIB_PREFETCH_H
#define NIB_PREFETCH_H

#include "data/dataset.h"

/* Where a run's rows come from. Pointers must outlive what is made of it; the mixture is used by one thread at a time.
 */
typedef struct {
    const nib_dataset *data;
    const nib_mixture *mixture;
    nib_pack_options pack;
    int64_t samples;    /* of the whole run */
    int64_t batch_size; /* of a step; its last one may be smaller */
} nib_step_plan;

typedef struct {
    int64_t cursor, count; /* position of its first sample in the run, and their number */
    int64_t *samples;      /* [count] indices in the data set */
    nib_pack pack;
} nib_step_data;

/* The step whose first sample is at `cursor`, below plan->samples. */
nib_status nib_step_data_make(const nib_step_plan *plan, int64_t cursor, nib_step_data *step);
void nib_step_data_free(nib_step_data *step);

typedef struct nib_prefetch nib_prefetch;

/* Starts a thread that makes the steps from `cursor` on, two at most before they are taken. */
nib_status nib_prefetch_create(const nib_step_plan *plan, int64_t cursor, nib_prefetch **prefetch);
/* The next step, to be freed by the caller. cursor: where the run stands, which must be where that step begins. waited:
 * seconds until it was there. An error of the thread comes out here, once, and then again. */
nib_status nib_prefetch_take(nib_prefetch *prefetch, int64_t cursor, nib_step_data *step, double *waited);
void nib_prefetch_free(nib_prefetch *prefetch); /* ends the thread, at any time */

#endif
