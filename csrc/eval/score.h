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

/* Rows scored together: enough to share prefixes, few enough for little memory. */
#define NIB_SCORE_GROUP 64

/* Consecutive samples of a data set, and the nll (fp32, natural log) of every supervised token: position p of row[i] is
 * nll[start[i] + p]. Unsupervised ones are NaN. */
typedef struct {
    int64_t count;
    nib_row row[NIB_SCORE_GROUP];
    int64_t start[NIB_SCORE_GROUP + 1]; /* running sums of the rows' lengths */
    float *nll;                         /* owned */
} nib_scored_group;

/* Up to NIB_SCORE_GROUP samples from `first` on; the group is freed by the caller, after an error too. */
nib_status nib_score_group(nib_scorer *scorer, const nib_dataset *data, int64_t first, nib_scored_group *group);
void nib_scored_group_free(nib_scored_group *group);

/* Sum of a sample's nll, and its number of supervised tokens. */
typedef struct {
    double nll;
    int64_t tokens;
} nib_sample_score;

nib_sample_score nib_score_of_sample(const nib_scored_group *group, int64_t i);

typedef struct {
    double loss, perplexity; /* weighted by the rows' weights: what training minimises */
    int64_t supervised_tokens;
} nib_loss_summary;

/* All samples of a data set; sample [nib_dataset_size], may be NULL. */
nib_status nib_evaluate_loss(nib_model *model, const nib_dataset *data, nib_sample_score *sample,
                             nib_loss_summary *summary);

#endif
