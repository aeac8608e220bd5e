/* Log-likelihood of rows under a model, with the prefixes that they share computed once. */
#ifndef NIB_SCORE_H
#define NIB_SCORE_H

#include "data/dataset.h"
#include "model/model.h"

/* A model and what it has reserved so far; zero but for the model. Scoring replaces the model's reserved activations.
 */
typedef struct {
    nib_model *model;
    int64_t T, N;
} nib_scorer;

/* Rows scored together by whoever has many: enough to share prefixes, few enough for little memory. */
#define NIB_SCORE_GROUP 64

/* nll[start[i] + p] (fp32, natural log) of every supervised token p of row i; unsupervised ones are NaN.
 * start [count + 1]: running sums of the rows' lengths. */
nib_status nib_score_rows(nib_scorer *scorer, const nib_row *rows, int64_t count, const int64_t *start, float *nll);

/* Sum of a sample's nll, and its number of supervised tokens. */
typedef struct {
    double nll;
    int64_t tokens;
} nib_sample_score;

typedef struct {
    double loss, perplexity; /* weighted by the rows' weights: what training minimises */
    int64_t supervised_tokens;
} nib_loss_summary;

/* All samples of a data set; sample [nib_dataset_size], may be NULL. */
nib_status nib_evaluate_loss(nib_model *model, const nib_dataset *data, nib_sample_score *sample,
                             nib_loss_summary *summary);

#endif
