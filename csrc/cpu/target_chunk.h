/* The distinct rows that have a target, a hundred at a time: what the loss and the head's gradient go through. */
#ifndef NIB_CPU_TARGET_CHUNK_H
#define NIB_CPU_TARGET_CHUNK_H

#include "model/ops.h"

#define NIB_CHUNK_ROWS 128

typedef struct {
    int64_t rows;                             /* in this chunk */
    int64_t first_target[NIB_CHUNK_ROWS + 1]; /* targets of chunk row i: first_target[i] .. first_target[i + 1] */
    int32_t row[NIB_CHUNK_ROWS];              /* of x */
} nib_target_chunk;

/* The next distinct target rows, from target `at` on; returns the first target after them. */
int64_t nib_target_chunk_next(nib_targets targets, int64_t at, nib_target_chunk *chunk);

#endif
