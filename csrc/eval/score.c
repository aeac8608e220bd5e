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

/* group->nll of every supervised token of its rows. */
static nib_status score_rows(nib_scorer *scorer, const nib_scored_group *group)
{
    nib_pack pack = {0};
    float *of_targets = NULL;
    nib_pack_options options = {
        .slots = 1, .micro_batch_tokens = MICRO_BATCH_TOKENS, .share_prefixes = true, .pack = true};
    nib_status status;
    NIB_TRY_GOTO(nib_pack_step(group->row, group->count, options, &pack), done);
    of_targets = nib_calloc((size_t)pack.supervised_tokens, sizeof *of_targets);
    if (of_targets == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the scores of %lld rows", (long long)group->count);
        goto done;
    }
    for (int b = 0; b < pack.micro_batches; b++) {
        const nib_micro_batch *batch = &pack.micro_batch[b];
        NIB_TRY_GOTO(reserve(scorer, batch), done);
        NIB_TRY_GOTO(nib_model_score_batch(scorer->model, batch, of_targets), done);
        for (int64_t i = 0; i < batch->N; i++)
            group->nll[group->start[batch->target_sample[i]] + batch->target_position[i]] = of_targets[i];
    }
done:
    nib_free(of_targets);
    nib_pack_free(&pack);
    return status;
}

nib_status nib_score_group(nib_scorer *scorer, const nib_dataset *data, int64_t first, nib_scored_group *group)
{
    int64_t left = nib_dataset_size(data) - first;
    *group = (nib_scored_group){.count = left < NIB_SCORE_GROUP ? left : NIB_SCORE_GROUP};
    for (int64_t i = 0; i < group->count; i++) {
        group->row[i] = nib_dataset_row(data, first + i);
        group->start[i + 1] = group->start[i] + group->row[i].length;
    }
    int64_t length = group->start[group->count];
    group->nll = nib_calloc((size_t)length, sizeof *group->nll);
    if (group->nll == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the scores of %lld rows", (long long)group->count);
    for (int64_t i = 0; i < length; i++) group->nll[i] = NAN;
    return score_rows(scorer, group);
}

void nib_scored_group_free(nib_scored_group *group)
{
    nib_free(group->nll);
    group->nll = NULL;
}

nib_sample_score nib_score_of_sample(const nib_scored_group *group, int64_t i)
{
    nib_sample_score score = {0};
    for (int64_t p = group->start[i]; p < group->start[i + 1]; p++)
        if (!isnan(group->nll[p])) {
            score.nll += (double)group->nll[p];
            score.tokens++;
        }
    return score;
}

nib_status nib_evaluate_loss(nib_model *model, const nib_dataset *data, nib_sample_score *sample,
                             nib_loss_summary *summary)
{
    nib_scorer scorer = {.model = model};
    double sum = 0, weight = 0;
    *summary = (nib_loss_summary){0};
    for (int64_t first = 0; first < nib_dataset_size(data); first += NIB_SCORE_GROUP) {
        nib_scored_group group;
        nib_status status = nib_score_group(&scorer, data, first, &group);
        for (int64_t i = 0; i < group.count && status == NIB_OK; i++) {
            nib_sample_score score = nib_score_of_sample(&group, i);
            sum += (double)group.row[i].weight * score.nll;
            weight += (double)group.row[i].weight * (double)score.tokens;
            summary->supervised_tokens += score.tokens;
            if (sample != NULL) sample[first + i] = score;
        }
        nib_scored_group_free(&group);
        NIB_TRY(status);
    }
    summary->loss = sum / weight;
    summary->perplexity = exp(summary->loss);
    return NIB_OK;
}
