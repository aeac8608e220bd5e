#include "eval/score.h"
#include "base/memory.h"

#include <math.h>

#define MICRO_BATCH_TOKENS 2048 /* a longer row has a micro-batch of its own */

static nib_status reserve(nib_scorer *scorer, const nib_micro_batch *batch)
{
    if (batch->T <= scorer->T && batch->N <= scorer->N) return NIB_OK;
    int64_t T = scorer->T > MICRO_BATCH_TOKENS ? scorer->T : MICRO_BATCH_TOKENS;
    scorer->T = batch->T > T ? batch->T : T;
    scorer->N = batch->N > scorer->N ? batch->N : scorer->N;
    return nib_model_reserve(scorer->model, scorer->T, scorer->N, NIB_RECOMPUTE_NONE, false);
}

nib_status nib_score_rows(nib_scorer *scorer, const nib_row *rows, int64_t count, const int64_t *start, float *nll)
{
    nib_pack pack = {0};
    float *of_targets = NULL;
    nib_pack_options options = {
        .slots = 1, .micro_batch_tokens = MICRO_BATCH_TOKENS, .share_prefixes = true, .pack = true};
    nib_status status;
    for (int64_t i = 0; i < start[count]; i++) nll[i] = NAN;
    NIB_TRY_GOTO(nib_pack_step(rows, count, options, &pack), done);
    of_targets = nib_calloc((size_t)pack.supervised_tokens, sizeof *of_targets);
    if (of_targets == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the scores of %lld rows", (long long)count);
        goto done;
    }
    for (int b = 0; b < pack.micro_batches; b++) {
        const nib_micro_batch *batch = &pack.micro_batch[b];
        NIB_TRY_GOTO(reserve(scorer, batch), done);
        NIB_TRY_GOTO(nib_model_score_batch(scorer->model, batch, of_targets), done);
        for (int64_t i = 0; i < batch->N; i++)
            nll[start[batch->target_sample[i]] + batch->target_position[i]] = of_targets[i];
    }
done:
    nib_free(of_targets);
    nib_pack_free(&pack);
    return status;
}

/* Scores samples first .. first + count; adds to the weighted sums. */
static nib_status score_group(nib_scorer *scorer, const nib_dataset *data, int64_t first, int64_t count,
                              nib_sample_score *sample, double *sum, double *weight)
{
    nib_row rows[NIB_SCORE_GROUP];
    int64_t start[NIB_SCORE_GROUP + 1] = {0};
    for (int64_t i = 0; i < count; i++) {
        rows[i] = nib_dataset_row(data, first + i);
        start[i + 1] = start[i] + rows[i].length;
    }
    float *nll = nib_calloc((size_t)start[count], sizeof *nll);
    if (nll == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the scores of %lld rows", (long long)count);
    nib_status status = nib_score_rows(scorer, rows, count, start, nll);
    for (int64_t i = 0; i < count && status == NIB_OK; i++) {
        sample[i] = (nib_sample_score){0};
        for (int64_t p = start[i]; p < start[i + 1]; p++)
            if (!isnan(nll[p])) {
                sample[i].nll += (double)nll[p];
                sample[i].tokens++;
            }
        *sum += (double)rows[i].weight * sample[i].nll;
        *weight += (double)rows[i].weight * (double)sample[i].tokens;
    }
    nib_free(nll);
    return status;
}

nib_status nib_evaluate_loss(nib_model *model, const nib_dataset *data, nib_sample_score *sample,
                             nib_loss_summary *summary)
{
    nib_scorer scorer = {.model = model};
    int64_t size = nib_dataset_size(data);
    double sum = 0, weight = 0;
    *summary = (nib_loss_summary){0};
    for (int64_t first = 0; first < size; first += NIB_SCORE_GROUP) {
        nib_sample_score group[NIB_SCORE_GROUP];
        int64_t count = size - first < NIB_SCORE_GROUP ? size - first : NIB_SCORE_GROUP;
        NIB_TRY(score_group(&scorer, data, first, count, group, &sum, &weight));
        for (int64_t i = 0; i < count; i++) {
            summary->supervised_tokens += group[i].tokens;
            if (sample != NULL) sample[first + i] = group[i];
        }
    }
    summary->loss = sum / weight;
    summary->perplexity = exp(summary->loss);
    return NIB_OK;
}
