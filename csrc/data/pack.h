/* Packing: the rows of an optimizer step as a prefix tree, cut into slots and micro-batches (packing.md). */
#ifndef NIB_PACK_H
#define NIB_PACK_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

/* One tokenised row. supervised[i] says whether token i is a target (then predicted from token i-1; i > 0). */
typedef struct {
    const int32_t *ids;        /* [length] */
    const uint8_t *supervised; /* [length] 0 or 1 */
    int32_t length;
    float weight; /* of the row's targets, 1 by default */
} nib_row;

/* All arrays host memory, owned by the nib_pack they came from. */
typedef struct {
    int64_t T;
    int32_t *id, *position, *end; /* [T] */
    int64_t N;
    int32_t *target_row, *target_label; /* [N] target_row ascending */
    float *target_weight;               /* [N] */
    int32_t *target_sample;             /* [N] index into the rows given to nib_pack_step */
    int32_t *target_position;           /* [N] index of the label within its row */
    int64_t row_tokens;                 /* tokens that the rows hold: what tokens_per_second counts */
} nib_micro_batch;

typedef struct {
    int slots;                  /* >= 1 */
    int64_t micro_batch_tokens; /* most T of a micro-batch; >= 1 */
    bool share_prefixes;        /* false: every row a branch of its own */
    bool pack;                  /* false: one row to a micro-batch */
    int64_t token_keys; /* what a token costs besides attention, in keys that a query sees; 0: slots are as equal
                           in tokens as can be, and attention is not counted */
} nib_pack_options;

typedef struct {
    int slots;
    int *slot_begin; /* [slots + 1] indices into micro_batch */
    int micro_batches;
    nib_micro_batch *micro_batch;
    int64_t supervised_tokens; /* sum of N */
    double supervised_weight;  /* sum of target weights: what the step's loss is divided by */
    int64_t row_tokens, computed_tokens;
    void *memory; /* private */
} nib_pack;

/* A pure function of rows and options: never of rank or thread count. A row longer than micro_batch_tokens gets a
 * micro-batch to itself. Fails with NIB_ERROR_MEMORY. */
nib_status nib_pack_step(const nib_row *rows, int64_t count, nib_pack_options options, nib_pack *pack);
void nib_pack_free(nib_pack *pack);

#endif
