#include "train_evaluate.h"
#include "base/file.h"
#include "base/log.h"
#include "train_answers.h"
#include "train_step.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MAX_TOKENIZER_BYTES ((size_t)512 << 20)

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
        NIB_TRY(nib_train_reserve(t, batch));
        NIB_TRY(nib_model_score_batch(t->model, batch, t->nll));
        for (int64_t i = 0; i < batch->N; i++) *sum += (double)t->nll[i] * batch->target_weight[i];
    }
    return NIB_OK;
}

static nib_status score_all(nib_training *t, double *loss, int64_t *tokens)
{
    double sum = 0, weight = 0;
    *tokens = 0;
    for (int64_t first = 0, count; first < nib_dataset_size(t->eval); first += count) {
        nib_pack pack;
        NIB_TRY(nib_train_pack_evaluation(t, first, &count, &pack));
        nib_status status = score_pack(t, &pack, &sum);
        weight += pack.supervised_weight;
        *tokens += pack.supervised_tokens;
        nib_pack_free(&pack);
        NIB_TRY(status);
    }
    *loss = sum / weight;
    return NIB_OK;
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

nib_status nib_train_evaluate_before(nib_training *t)
{
    double loss = 0, exact_match, begun = nib_train_clock();
    int64_t tokens = 0;
    nib_buffer line = {0};
    NIB_TRY(score_all(t, &loss, &tokens));
    NIB_TRY(nib_train_answers(t, "answers-before.jsonl", &exact_match));
    nib_buffer_text(&line, "{\"event\":\"before\",\"step\":0");
    put_figures(&line, loss, exact_match, nib_train_clock() - begun);
    nib_status status = nib_metrics_line(&t->metrics, &line);
    nib_buffer_free(&line);
    log_figures("before training", loss, exact_match, "");
    return status;
}

nib_status nib_train_evaluate(nib_training *t, bool *stop)
{
    double loss = 0, exact_match, begun = nib_train_clock();
    int64_t tokens = 0;
    nib_buffer line = {0};
    char when[64];
    *stop = false;
    NIB_TRY(score_all(t, &loss, &tokens));
    bool better = isfinite(loss) && (t->state.best_step < 0 || loss < t->state.best_loss);
    NIB_TRY(nib_train_answers(t, better ? "answers.jsonl" : NULL, &exact_match));
    nib_buffer_format(&line, "{\"event\":\"eval\",\"step\":%lld,\"supervised_tokens\":%lld,\"best\":%s",
                      (long long)t->state.step, (long long)tokens, better ? "true" : "false");
    put_figures(&line, loss, exact_match, nib_train_clock() - begun);
    nib_status status = nib_metrics_line(&t->metrics, &line);
    nib_buffer_free(&line);
    NIB_TRY(status);
    snprintf(when, sizeof when, "after %lld steps", (long long)t->state.step);
    log_figures(when, loss, exact_match, better ? ", the best so far" : "");
    if (!better) {
        t->state.evaluations_since_best++;
        *stop = t->config->evaluate.patience != NIB_CONFIG_UNSET &&
                t->state.evaluations_since_best >= t->config->evaluate.patience;
        return NIB_OK;
    }
    t->state.best_loss = loss;
    t->state.best_step = t->state.step;
    t->state.evaluations_since_best = 0;
    return nib_train_save_adapter(t);
}

static nib_status put(const char *folder, const char *name, const void *bytes, size_t length)
{
    char *path = nib_path_join(folder, name);
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", folder);
    nib_status status = nib_file_replace(path, bytes, length);
    nib_free(path);
    return status;
}

/* Copies FROM/name beside the adapter; absent is fine. */
static nib_status copy_beside(const char *from, const char *name, const char *folder)
{
    char *path = nib_path_join(from, name), *text = NULL;
    size_t length;
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", from);
    nib_status status = NIB_OK;
    if (nib_file_exists(path)) {
        status = nib_file_read(path, MAX_TOKENIZER_BYTES, &text, &length);
        if (status == NIB_OK) status = put(folder, name, text, length);
    }
    nib_free(text);
    nib_free(path);
    return status;
}

static nib_status save_tokenizer(const nib_training *t)
{
    const nib_config *c = t->config;
    char *folder = NULL;
    const char *from = c->tokenizer != NULL ? c->tokenizer : c->model;
    if (!nib_file_is_folder(from)) {
        folder = nib_path_folder(from);
        if (folder == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", from);
        size_t length = strlen(from);
        bool named = length >= 14 && strcmp(from + length - 14, "tokenizer.json") == 0;
        from = named ? folder : NULL; /* a GGUF holds its own tokenizer */
    }
    nib_status status = NIB_OK;
    if (from != NULL) status = copy_beside(from, "tokenizer.json", t->folder.adapter);
    if (from != NULL && status == NIB_OK) status = copy_beside(from, "tokenizer_config.json", t->folder.adapter);
    nib_free(folder);
    return status;
}

static nib_status save_terminators(const nib_training *t)
{
    const int32_t *ids;
    int count = nib_dataset_terminators(t->train, &ids);
    if (count == 0) return NIB_OK;
    nib_buffer text = {0};
    nib_buffer_text(&text, "{\n  \"eos_token_id\": [");
    for (int i = 0; i < count; i++) nib_buffer_format(&text, i == 0 ? "%d" : ", %d", ids[i]);
    nib_buffer_text(&text, "]\n}\n");
    nib_status status = text.failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for generation_config.json")
                                    : put(t->folder.adapter, "generation_config.json", text.data, text.length);
    nib_buffer_free(&text);
    return status;
}

nib_status nib_train_save_adapter(const nib_training *t)
{
    NIB_TRY(nib_file_make_folders(t->folder.adapter));
    NIB_TRY(save_tokenizer(t));
    if (t->text.template_source != NULL)
        NIB_TRY(
            put(t->folder.adapter, "chat_template.jinja", t->text.template_source, strlen(t->text.template_source)));
    NIB_TRY(save_terminators(t));
    return nib_model_save_adapter(t->model, t->folder.adapter, t->config->model);
}
