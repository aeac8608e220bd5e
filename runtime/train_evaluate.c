#include "train_evaluate.h"
#include "base/file.h"
#include "base/log.h"
#include "export/merge.h"
#include "export_files.h"
#include "train_answers.h"
#include "train_replay.h"
#include "train_step.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

nib_status nib_train_pack_evaluation(const nib_training *t, int64_t first, int64_t *count, nib_pack *pack)
{
    int64_t left = nib_dataset_size(t->eval) - first, batch = t->config->train.batch_size;
    *count = left < batch ? left : batch;
    nib_row *rows = nib_calloc((size_t)*count, sizeof *rows);
    if (rows == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the %lld rows of an evaluation", (long long)*count);
    for (int64_t i = 0; i < *count; i++) rows[i] = nib_dataset_row(t->eval, first + i);
    nib_pack_options options = {
        .slots = 1,
        .micro_batch_tokens = t->config->train.micro_batch_tokens,
        .share_prefixes = true,
        .pack = t->config->data.pack,
    };
    nib_status status = nib_pack_step(rows, *count, options, pack);
    nib_free(rows);
    return status;
}

static nib_status score_pack(nib_training *t, const nib_pack *pack, double *sum)
{
    for (int m = 0; m < pack->micro_batches; m++) {
        const nib_micro_batch *batch = &pack->micro_batch[m];
        t->collectives->note(t->collectives, "evaluation"); /* again: it goes on */
        NIB_TRY(nib_train_reserve(t, batch));
        NIB_TRY(nib_model_score_batch(t->model, batch, t->nll));
        for (int64_t i = 0; i < batch->N; i++) *sum += (double)t->nll[i] * batch->target_weight[i];
    }
    return NIB_OK;
}

/* As in a step: where ranks hold parts of the base, each makes as many passes as the one with the most. No gather is
 * still on its way when the ranks meet over the host. */
static nib_status accompany(const nib_training *t, const int64_t *passes)
{
    int64_t most = 0;
    if (t->shards == NULL) return NIB_OK;
    for (int r = 0; r < t->collectives->size; r++)
        if (passes[r] > most) most = passes[r];
    for (int64_t i = passes[t->collectives->rank]; i < most; i++)
        NIB_TRY(nib_model_accompany(t->model, false, (nib_gradient_watch){0}));
    return t->ops->synchronize(t->ops);
}

/* Sums of the evaluation's packs, which the ranks score in turn; passes [ranks]: micro-batches of each, at first 0. */
static nib_status score_in_turn(nib_training *t, double *sum, double *weight, int64_t *tokens, int64_t *passes)
{
    int64_t packs = 0;
    for (int64_t first = 0, count; first < nib_dataset_size(t->eval); first += count, packs++) {
        nib_pack pack;
        NIB_TRY(nib_train_pack_evaluation(t, first, &count, &pack));
        nib_status status = NIB_OK;
        if (packs % t->collectives->size == t->collectives->rank) status = score_pack(t, &pack, &sum[packs]);
        passes[packs % t->collectives->size] += pack.micro_batches;
        *weight += pack.supervised_weight;
        *tokens += pack.supervised_tokens;
        nib_pack_free(&pack);
        NIB_TRY(status);
    }
    return accompany(t, passes);
}

/* Brings all packs' sums to all ranks; rank r has packs r, r + size, ... */
static nib_status exchange_sums(nib_collectives *c, double *sum, int64_t packs)
{
    int64_t share = (packs + c->size - 1) / c->size;
    double *all = nib_calloc((size_t)(share * c->size), sizeof *all);
    nib_part *part = nib_calloc((size_t)c->size, sizeof *part);
    nib_status status = NIB_OK;
    if (all == NULL || part == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the sums of an evaluation");
        goto done;
    }
    for (int r = 0; r < c->size; r++) part[r] = (nib_part){all + r * share, (size_t)share * sizeof *all};
    for (int64_t i = c->rank; i < packs; i += c->size) all[c->rank * share + i / c->size] = sum[i];
    NIB_TRY_GOTO(c->all_gather(c, part), done);
    for (int64_t i = 0; i < packs; i++) sum[i] = all[i % c->size * share + i / c->size];
done:
    nib_free(all);
    nib_free(part);
    return status;
}

/* The same bits on every rank, at any number of them: packs are added in their order. */
static nib_status score_all(nib_training *t, double *loss, int64_t *tokens)
{
    int64_t batch = t->config->train.batch_size, packs = (nib_dataset_size(t->eval) + batch - 1) / batch;
    double *sum = nib_calloc((size_t)packs, sizeof *sum), all = 0, weight = 0;
    int64_t *passes = nib_calloc((size_t)t->collectives->size, sizeof *passes);
    nib_status status = NIB_OK;
    *tokens = 0;
    t->collectives->note(t->collectives, "evaluation");
    nib_node_shards_at(t->shards, "evaluation");
    if (sum == NULL || passes == NULL) status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the sums of an evaluation");
    if (status == NIB_OK) status = score_in_turn(t, sum, &weight, tokens, passes);
    if (status == NIB_OK) status = exchange_sums(t->collectives, sum, packs);
    for (int64_t i = 0; status == NIB_OK && i < packs; i++) all += sum[i];
    nib_free(sum);
    nib_free(passes);
    *loss = all / weight;
    return status;
}

static void put_figures(nib_buffer *line, double loss, double exact_match, double seconds)
{
    nib_metrics_number(line, "loss", loss);
    nib_metrics_number(line, "perplexity", exp(loss));
    if (!isnan(exact_match)) nib_metrics_number(line, "exact_match", exact_match);
    nib_metrics_number(line, "seconds", seconds);
    nib_buffer_format(line, ",\"time\":%lld", (long long)time(NULL));
}

static void log_figures(const char *when, double loss, double exact_match, const char *verdict)
{
    nib_log("evaluation %s: loss %.4f, perplexity %.4g%s", when, loss, exp(loss), verdict);
    if (!isnan(exact_match)) nib_log("exact match of generated answers: %.1f %%", 100 * exact_match);
}

/* What the leading rank generates, with the others' parts of the base. */
static nib_status follow(nib_training *t, bool saved)
{
    double exact_match;
    if (t->shards == NULL) return NIB_OK;
    NIB_TRY(nib_train_answers(t, NULL, &exact_match));
    return saved ? nib_train_save_follow(t) : NIB_OK;
}

nib_status nib_train_evaluate_before(nib_training *t)
{
    double loss = 0, exact_match, begun = nib_train_clock();
    int64_t tokens = 0;
    nib_buffer line = {0};
    NIB_TRY(score_all(t, &loss, &tokens));
    if (!nib_train_leads(t)) return follow(t, false);
    NIB_TRY(nib_train_answers(t, "answers-before.jsonl", &exact_match));
    nib_buffer_text(&line, "{\"event\":\"before\",\"step\":0");
    put_figures(&line, loss, exact_match, nib_train_clock() - begun);
    nib_status status = nib_metrics_line(&t->metrics, &line);
    nib_buffer_free(&line);
    log_figures("before training", loss, exact_match, "");
    return status;
}

/* Answers, metrics and log of an evaluation, and the weights if they are the best so far. */
static nib_status report(nib_training *t, double loss, int64_t tokens, bool better, double begun)
{
    double exact_match;
    nib_buffer line = {0};
    char when[64];
    NIB_TRY(nib_train_answers(t, better ? "answers.jsonl" : NULL, &exact_match));
    nib_buffer_format(&line, "{\"event\":\"eval\",\"step\":%lld,\"supervised_tokens\":%lld,\"best\":%s",
                      (long long)t->state.step, (long long)tokens, better ? "true" : "false");
    put_figures(&line, loss, exact_match, nib_train_clock() - begun);
    nib_status status = nib_metrics_line(&t->metrics, &line);
    nib_buffer_free(&line);
    NIB_TRY(status);
    snprintf(when, sizeof when, "after %lld steps", (long long)t->state.step);
    log_figures(when, loss, exact_match, better ? ", the best so far" : "");
    return better ? nib_train_save(t) : NIB_OK;
}

nib_status nib_train_evaluate(nib_training *t, bool *stop)
{
    double loss = 0, begun = nib_train_clock();
    int64_t tokens = 0;
    *stop = false;
    NIB_TRY(score_all(t, &loss, &tokens));
    bool better = isfinite(loss) && (t->state.best_step < 0 || loss < t->state.best_loss);
    if (better) {
        t->state.best_loss = loss;
        t->state.best_step = t->state.step;
        t->state.evaluations_since_best = 0;
    } else {
        t->state.evaluations_since_best++;
        *stop = t->config->evaluate.patience != NIB_CONFIG_UNSET &&
                t->state.evaluations_since_best >= t->config->evaluate.patience;
    }
    return nib_train_leads(t) ? report(t, loss, tokens, better, begun) : follow(t, better);
}

static nib_status save_weights(const nib_training *t)
{
    const nib_config *c = t->config;
    nib_merge_summary summary;
    if (c->has_lora) {
        NIB_TRY(nib_train_replay_remove(t));
        NIB_TRY(nib_model_save_adapter(t->model, t->folder.result, c->model));
        return nib_train_replay_save(t);
    }
    NIB_TRY(nib_export_config(c->model, nib_model_get_config(t->model), t->folder.result));
    return nib_export_trained(t->ops, t->model, t->folder.result, &summary);
}

nib_status nib_train_save(const nib_training *t)
{
    const nib_config *c = t->config;
    const int32_t *terminators;
    int count = nib_dataset_terminators(t->train, &terminators);
    const char *from = c->tokenizer != NULL ? c->tokenizer : c->model;
    /* An adapter is used with its GGUF, which holds the tokenizer. */
    if (t->text.tokenizer != NULL && !(c->has_lora && nib_export_is_gguf(from)))
        NIB_TRY(nib_export_tokenizer(from, t->folder.result));
    NIB_TRY(nib_file_make_folders(t->folder.result));
    NIB_TRY(nib_export_chat_files(&t->text, nib_model_get_config(t->model), terminators, count, t->folder.result));
    return save_weights(t);
}

nib_status nib_train_save_follow(const nib_training *t)
{
    return t->shards == NULL ? NIB_OK : nib_train_replay_follow(t);
}
