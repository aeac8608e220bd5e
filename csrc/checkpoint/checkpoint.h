/* Checkpoints: FOLDER/step-N/ with state.json, tensors.safetensors and manifest.json, which has the length and SHA-256
 * of the other two. Only logical state is in them: nothing depends on ranks, threads or micro-batches in flight.
 *
 * A checkpoint is written into step-N.tmp-PID, every file is fsynced, the folder is renamed and its parent fsynced: it
 * is complete or it is not there. "Latest" is the highest step whose manifest verifies.
 */
#ifndef NIB_CHECKPOINT_H
#define NIB_CHECKPOINT_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a run is besides its tensors. Random numbers are counter-based and need no state. */
typedef struct {
    int64_t step;   /* optimizer steps taken or skipped */
    int64_t cursor; /* samples consumed, over all epochs */
    int64_t seed, slots, micro_batch_tokens;
    int64_t updates;                           /* applied optimizer steps: AdamW's bias correction counts these */
    int64_t nonfinite_steps;                   /* steps that were not applied */
    int64_t evaluations_since_best, best_step; /* best_step -1: none yet */
    double best_loss;
    bool finished;
    char config_hash[65], base_hash[65], tokenizer_hash[65], data_hash[65];
    char evaluation_hash[65]; /* "": no evaluation data */
} nib_checkpoint_state;

/* What there is of a trained tensor. Moments are fp32, or of 8 bits with the absmax of their blocks (ops.h). */
typedef enum {
    NIB_CHECKPOINT_MASTER,
    NIB_CHECKPOINT_FIRST,
    NIB_CHECKPOINT_SECOND,
    NIB_CHECKPOINT_FIRST_ABSMAX,
    NIB_CHECKPOINT_SECOND_ABSMAX,
    NIB_CHECKPOINT_KINDS
} nib_checkpoint_kind;

typedef struct {
    const char *name; /* of the parameter */
    int64_t rows, columns;
    bool moments_8bit;
    void *values[NIB_CHECKPOINT_KINDS]; /* of rows * columns values, each as many bytes as nib_checkpoint_bytes says */
} nib_checkpoint_tensor;

/* Bytes that the first n values of a tensor take in one kind, n a multiple of NIB_MOMENT_BLOCK or all; 0 where it has
 * no such kind. */
size_t nib_checkpoint_bytes(bool moments_8bit, nib_checkpoint_kind kind, int64_t n);

/* Carries one kind of tensor i, whole, between the host and wherever it is kept. */
typedef struct {
    void *context;
    nib_status (*fetch)(void *context, int i, nib_checkpoint_kind kind, void *host);
    nib_status (*store)(void *context, int i, nib_checkpoint_kind kind, const void *host);
} nib_checkpoint_carrier;

/* Writes FOLDER/step-N for N = state->step, durably, from tensors in host memory. On failure nothing that was there is
 * touched. */
nib_status nib_checkpoint_write(const char *folder, const nib_checkpoint_state *state,
                                const nib_checkpoint_tensor *tensors, int count);
/* Removes all but the `keep` highest steps, and leftovers of writers that died. */
nib_status nib_checkpoint_prune(const char *folder, int64_t keep);

/* The highest step whose manifest verifies; *step -1: there is none. Damaged ones are named by a warning. */
nib_status nib_checkpoint_latest(const char *folder, int64_t *step, nib_checkpoint_state *state);
/* Stores all tensors, in their order, kind after kind. Names, shapes and whether moments have 8 bits, all that is read
 * of `tensors`, must be the checkpoint's (NIB_ERROR_DATA, nothing is stored). */
nib_status nib_checkpoint_read(const char *folder, int64_t step, nib_checkpoint_carrier carrier,
                               const nib_checkpoint_tensor *tensors, int count);

/* Writes in a thread: submit copies everything and returns; an error surfaces at the next submit or wait. */
typedef struct nib_checkpointer nib_checkpointer;
nib_status nib_checkpointer_create(const char *folder, int64_t keep, nib_checkpointer **checkpointer);
/* Waits for the write before, if it is still under way, then fetches all, in the same order. Of `tensors` everything
 * but the values is read. */
nib_status nib_checkpointer_submit(nib_checkpointer *checkpointer, nib_checkpoint_carrier carrier,
                                   const nib_checkpoint_state *state, const nib_checkpoint_tensor *tensors, int count);
nib_status nib_checkpointer_wait(nib_checkpointer *checkpointer);
void nib_checkpointer_free(nib_checkpointer *checkpointer); /* waits */

#endif
