/* A training run, from its configuration to adapter (or model) and report. */
#ifndef NIB_RUNTIME_TRAIN_H
#define NIB_RUNTIME_TRAIN_H

#include "checkpoint/checkpoint.h"
#include "collectives.h"
#include "config.h"
#include "data/prefetch.h"
#include "gradient_sum.h"
#include "metrics.h"
#include "nccl/device_exchange.h"
#include "node_shards.h"
#include "open.h"
#include "optim/gradient_tree.h"
#include "run_folder.h"

/* An optimizer step that has been asked of the device, and what is read of it at its end. */
typedef struct {
    nib_step_data data;
    double learning_rate, data_wait, begun; /* begun: seconds of nib_train_clock */
    double norm;                            /* of the gradient; fetched */
    float *nll;                             /* host [nll_capacity], of all targets; fetched */
    int64_t nll_capacity;
    uint64_t mark; /* behind what is fetched */
} nib_train_step_asked;

typedef struct {
    nib_config *config;
    nib_collectives *collectives;  /* not owned; NULL where there is no run, but a plan of one */
    nib_device_exchange *exchange; /* NULL: bytes of the backend's memory go through the host */
    nib_node_shards *shards;       /* NULL: nothing is divided among ranks */
    nib_run_folder folder;
    nib_metrics metrics;
    nib_ops *ops;
    nib_text text;
    nib_dataset *train, *eval; /* eval NULL: none */
    nib_mixture mixture;
    nib_prefetch *prefetch; /* while steps are taken; it is the mixture's one user then */
    nib_model *model;
    nib_parameter *parameters;
    int parameter_count;
    nib_gradient_tree tree;
    nib_gradient_stream *stream; /* NULL: gradients are summed in the host's memory, after the last slot */
    nib_schedule schedule;
    int64_t samples;    /* of the whole run */
    int64_t token_keys; /* of the model: pack.h */
    nib_recompute recompute;
    char planned[1024];                        /* memory by class, as one line; rank 0's */
    int64_t reserved_tokens, reserved_targets; /* what the model's activations hold */
    float *nll;                                /* host [nll_capacity], of an evaluation's micro-batch */
    int64_t nll_capacity;
    nib_train_step_asked asked[2]; /* step s is asked[s % 2]: state.step and the next, `under_way` of them */
    int under_way;
    double ended; /* when the last step did */
    nib_checkpointer *checkpointer;
    nib_checkpoint_tensor *tensors; /* [parameter_count] views of the model's own */
    nib_checkpoint_state state;
    double started;      /* seconds, for rates */
    int64_t first_step;  /* of this process */
    double last_printed; /* when no terminal shows the live line */
} nib_training;

/* Trains until the end, an early stop, a signal (NIB_STOPPED) or an error; all ranks together. resume: continues what
 * the output folder holds; a finished run is left as it is. Slots and micro-batch size are written into config where it
 * left them null.
 */
nib_status nib_train(nib_config *config, bool resume, nib_collectives *collectives);

/* Whether this is the rank that writes the run folder, reports and speaks. */
bool nib_train_leads(const nib_training *training);

/* Seconds of a clock that never goes back. */
double nib_train_clock(void);

#endif
