/* What a run will take: memory by class and work by kind, before anything is allocated.
 *
 * The run's own micro-batches go through the model's own code on a backend in rehearsal (model/rehearsal.h), so the
 * arena classes are exactly what the run takes. The rest of the process is an estimate.
 */
#ifndef NIB_PLAN_H
#define NIB_PLAN_H

#include "model/rehearsal.h"
#include "train.h"

#define NIB_PLAN_CLASSES 16

typedef struct {
    nib_recompute recompute;
    int64_t T, N; /* most tokens and targets of any micro-batch, the evaluation's too: what the model reserves */
    nib_memory_class memory[NIB_PLAN_CLASSES];
    int arenas, classes; /* the first `arenas` of `classes` are exact */
    size_t arena_bytes;  /* their sum */
    size_t scratch;      /* of which scratch */
    size_t peak;         /* of the process, resident */
    nib_work work;       /* of the steps below */
    int64_t steps;       /* rehearsed, from the run's first on */
    int64_t tokens, computed_tokens, supervised_tokens;
} nib_plan;

/* The plan of a run whose data is open and whose micro_batch_tokens and slots are set. */
nib_status nib_plan_make(nib_training *training, nib_recompute recompute, nib_plan *plan);

/* Chooses what the config leaves null, in this order: the most tokens of a micro-batch (of 2048, or the longest row if
 * that is longer, and its halves down to the longest row), the cheapest recompute policy, with which the peak is at
 * most `memory` bytes (0: not known, everything fits); then as many slots as the first step needs, or there are ranks.
 * They are written into the config. NIB_ERROR_MEMORY says what to change if nothing fits; *plan is then the smallest.
 */
nib_status nib_plan_choose(nib_training *training, size_t memory, nib_plan *plan);

/* What each of so many processes of a run on this machine may take now: of a GPU of its own nine tenths of what is
 * left; of the machine its share of that, and what this process holds already. *bytes 0: not known. */
nib_status nib_plan_memory(nib_ops *ops, int processes, size_t *bytes);

/* One line: "base weights 1234.5 MiB, activations ...". */
void nib_plan_text(const nib_plan *plan, char *text, size_t bytes);

const char *nib_recompute_name(nib_recompute recompute);

#endif
