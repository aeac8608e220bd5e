/* Tokens of a data set whose row of the embedding looks as if the base was never trained on it: reserved tokens,
 * special tokens of another stage of training, padding of the vocabulary. An adapter on the linears cannot make up for
 * such a row, which is the same as many others or as none. */
#ifndef NIB_UNTRAINED_ROWS_H
#define NIB_UNTRAINED_ROWS_H

#include "data/dataset.h"
#include "model/weight_source.h"

/* A row is called untrained when its norm is below this part of the vocabulary's median (rows that decayed, or never
 * left zero), or when it is this parallel to the row before or behind it (rows of a tied head that only ever got the
 * softmax's common gradient). In SmolLM2 the least norm of all is 0.57 of the median, reserved tokens 7 to 16 have a
 * cosine of 1.0000 with their neighbours, and the most alike of the trained ones have 0.990. */
#define NIB_UNTRAINED_NORM   0.25f
#define NIB_UNTRAINED_COSINE 0.999

typedef struct {
    int32_t token;
    float norm;    /* Euclidean, of the row */
    bool parallel; /* to a neighbour */
    int64_t occurrences;
} nib_untrained_row;

typedef struct {
    float median; /* norm, of the vocabulary */
    nib_untrained_row *row;
    int64_t count;
} nib_untrained_rows; /* free row with nib_free */

/* rows: in order of their tokens. Looks at 2^17 samples at most, in groups spread evenly over larger data, which may be
 * read on demand. Reads the rows of the embedding that occur, their neighbours and some thousand
 * others, no more. */
nib_status nib_untrained_rows_find(const nib_weight_source *source, const nib_dataset *data, nib_untrained_rows *rows);

#endif
