#include "train_open.h"
#include "base/file.h"
#include "base/log.h"
#include "base/sha256.h"
#include "machine.h"
#include "train_step.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define USUAL_TOKENS       2048 /* enough rows for the matrix products to reach their speed */
#define MAX_SLOTS          64
#define MAX_MEMORY_CLASSES 32

nib_status nib_train_choose(const nib_config *config, int64_t longest, size_t available, int64_t *tokens,
                            nib_recompute *recompute, size_t *planned)
{
    nib_model_options options = nib_config_model(config, true);
    int64_t given = config->train.micro_batch_tokens;
    int64_t first = given != NIB_CONFIG_UNSET ? given : longest > USUAL_TOKENS ? longest : USUAL_TOKENS;
    int64_t last = given != NIB_CONFIG_UNSET ? given : longest;
    for (*tokens = first;; *tokens = *tokens / 2 > last ? *tokens / 2 : last) {
        int64_t most = *tokens > longest ? *tokens : longest;
        for (int policy = NIB_RECOMPUTE_NONE; policy <= NIB_RECOMPUTE_LAYER; policy++) {
            nib_memory_class classes[MAX_MEMORY_CLASSES];
            int count;
            *recompute = (nib_recompute)policy;
            NIB_TRY(nib_model_plan(&options, most, most, *recompute, classes, MAX_MEMORY_CLASSES, &count));
            *planned = 0;
            for (int i = 0; i < count; i++) *planned += classes[i].bytes;
            if (available == 0 || *planned <= available) return NIB_OK;
        }
        if (*tokens <= last) break;
    }
    return NIB_FAIL(NIB_ERROR_MEMORY,
                    "the run needs %.2f GiB at least (rows of up to %lld tokens), %.2f GiB are available; lower "
                    "data.max_length or lora.r, or see `nibble plan`",
                    (double)*planned / (1 << 30), (long long)longest, (double)available / (1 << 30));
}

static int64_t longest_row(const nib_dataset *dataset)
{
    int64_t longest = 1;
    for (int64_t i = 0; dataset != NULL && i < nib_dataset_size(dataset); i++) {
        int32_t length = nib_dataset_row(dataset, i).length;
        if (length > longest) longest = length;
    }
    return longest;
}

static nib_status open_schedule(nib_training *t)
{
    const nib_config *c = t->config;
    int64_t batch = c->train.batch_size, steps = c->train.max_steps;
    t->samples = (int64_t)ceil(c->train.epochs * (double)t->mixture.epoch_size);
    if (steps == NIB_CONFIG_UNSET)
        steps = (t->samples + batch - 1) / batch;
    else
        t->samples = steps * batch;
    int64_t warmup = c->train.warmup_steps;
    if (warmup == NIB_CONFIG_UNSET) warmup = (int64_t)ceil(c->train.warmup_ratio * (double)steps);
    if (warmup > steps) warmup = steps;
    t->schedule = (nib_schedule){.scheduler = (nib_scheduler)c->train.scheduler,
                                 .peak = c->train.learning_rate,
                                 .warmup = warmup,
                                 .steps = steps};
    return NIB_OK;
}

/* Reads the config that the run in the folder was started with: it fixes what this one leaves null. */
static nib_status continue_config(nib_training *t)
{
    nib_config was;
    nib_buffer lines = {0};
    NIB_TRY(nib_config_read(t->folder.config, NULL, 0, &was));
    nib_config *now = t->config;
    if (now->train.slots == NIB_CONFIG_UNSET) now->train.slots = was.train.slots;
    if (now->train.micro_batch_tokens == NIB_CONFIG_UNSET) now->train.micro_batch_tokens = was.train.micro_batch_tokens;
    nib_config_differences(&was, now, &lines);
    nib_status status = NIB_OK;
    if (lines.failed)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compare configurations");
    else if (lines.length > 0)
        status = NIB_FAIL(NIB_ERROR_CONFIG,
                          "%s: --resume: the run was started with another configuration:\n%sgive it the old values, or "
                          "another \"output\"",
                          t->folder.path, lines.data);
    nib_buffer_free(&lines);
    nib_config_free(&was);
    return status;
}

static nib_status choose_sizes(nib_training *t)
{
    nib_config *c = t->config;
    int64_t longest = longest_row(t->train), tokens;
    int64_t longest_eval = longest_row(t->eval);
    size_t planned, available = nib_available_memory();
    if (longest_eval > longest) longest = longest_eval;
    NIB_TRY(nib_train_choose(c, longest, available / 10 * 9, &tokens, &t->recompute, &planned));
    c->train.micro_batch_tokens = tokens;
    t->reserved_tokens = t->reserved_targets = tokens > longest ? tokens : longest;
    if (c->train.slots != NIB_CONFIG_UNSET) return NIB_OK;
    int64_t *samples;
    nib_pack pack = {0};
    c->train.slots = 1;
    NIB_TRY(nib_train_pack(t, 0, nib_train_step_rows(t), &samples, &pack));
    c->train.slots = pack.micro_batches < MAX_SLOTS ? pack.micro_batches : MAX_SLOTS;
    nib_pack_free(&pack);
    nib_free(samples);
    return NIB_OK;
}

static nib_status open_model(nib_training *t)
{
    nib_model_options options = nib_config_model(t->config, true);
    NIB_TRY(nib_model_open(t->ops, &options, &t->model));
    NIB_TRY(nib_model_reserve(t->model, t->reserved_tokens, t->reserved_targets, t->recompute, true));
    t->parameter_count = nib_model_parameters(t->model, &t->parameters);
    if (t->parameter_count == 0)
        return NIB_FAIL(NIB_ERROR_CONFIG, "no weight is trained: \"lora.target_modules\" names none of this model");
    const nib_parameter *last = &t->parameters[t->parameter_count - 1];
    int64_t n = last->gradient + last->rows * last->columns - t->parameters[0].gradient;
    NIB_TRY(nib_gradient_tree_create(t->ops, n, (int)t->config->train.slots, &t->tree));
    t->nll_capacity = t->reserved_targets;
    t->nll = nib_calloc((size_t)t->nll_capacity, sizeof *t->nll);
    t->tensors = nib_calloc((size_t)t->parameter_count, sizeof *t->tensors);
    if (t->nll == NULL || t->tensors == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the training state");
    for (int i = 0; i < t->parameter_count; i++) {
        const nib_parameter *p = &t->parameters[i];
        t->tensors[i] = (nib_checkpoint_tensor){.name = p->name,
                                                .rows = p->rows,
                                                .columns = p->columns,
                                                .master = p->master,
                                                .first_moment = p->first_moment,
                                                .second_moment = p->second_moment};
    }
    return NIB_OK;
}

static nib_status first_state(nib_training *t, nib_buffer *config_text)
{
    const nib_config *c = t->config;
    t->state = (nib_checkpoint_state){.seed = c->train.seed,
                                      .slots = c->train.slots,
                                      .micro_batch_tokens = c->train.micro_batch_tokens,
                                      .best_step = -1};
    NIB_TRY(nib_config_write(c, config_text));
    nib_sha256_of(config_text->data, config_text->length, t->state.config_hash);
    snprintf(t->state.base_hash, 65, "%s", nib_model_base_hash(t->model));
    if (t->text.tokenizer != NULL) snprintf(t->state.tokenizer_hash, 65, "%s", nib_tokenizer_hash(t->text.tokenizer));
    snprintf(t->state.data_hash, 65, "%s", nib_dataset_hash(t->train));
    return NIB_OK;
}

static nib_status same_hash(const nib_training *t, const char *what, const char *was, const char *now)
{
    if (strcmp(was, now) == 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_CONFIG,
                    "%s: --resume: the %s is not the one the run was started with (SHA-256 %.12s..., was %.12s...); "
                    "restore it, or give another \"output\"",
                    t->folder.path, what, now, was);
}

static nib_status load_checkpoint(nib_training *t)
{
    nib_checkpoint_state saved;
    int64_t step;
    NIB_TRY(nib_checkpoint_latest(t->folder.checkpoints, &step, &saved));
    if (step < 0) {
        nib_log("no checkpoint in %s yet: the run starts from its beginning", t->folder.checkpoints);
        return NIB_OK;
    }
    NIB_TRY(same_hash(t, "base model", saved.base_hash, t->state.base_hash));
    NIB_TRY(same_hash(t, "tokenizer", saved.tokenizer_hash, t->state.tokenizer_hash));
    NIB_TRY(same_hash(t, "training data", saved.data_hash, t->state.data_hash));
    NIB_TRY(nib_checkpoint_read(t->folder.checkpoints, step, t->tensors, t->parameter_count));
    memcpy(saved.config_hash, t->state.config_hash, sizeof saved.config_hash);
    t->state = saved;
    nib_log("continuing after step %lld of %lld", (long long)step, (long long)t->schedule.steps);
    return nib_model_refresh(t->model);
}

/* Such rows are legal, and usually a mistake. */
static nib_status warn_of_repeated_rows(const nib_training *t)
{
    int64_t *leak, leaks, line;
    for (int s = 0; s < nib_dataset_sources(t->train); s++) {
        const nib_source_report *r = nib_dataset_report(t->train, s);
        if (r->duplicates > 0)
            nib_warn("%s: %lld of %lld rows repeat an earlier one", r->path, (long long)r->duplicates,
                     (long long)r->rows);
    }
    if (t->eval == NULL) return NIB_OK;
    NIB_TRY(nib_dataset_leaks(t->train, t->eval, &leak, &leaks));
    if (leaks > 0) {
        const char *file = nib_dataset_file(t->eval, leak[0], &line);
        nib_warn("%lld of %lld evaluation samples are in the training data, first %s:%lld; the evaluation is too good "
                 "by them",
                 (long long)leaks, (long long)nib_dataset_size(t->eval), file, (long long)line);
    }
    nib_free(leak);
    return NIB_OK;
}

static nib_status open_data(nib_training *t)
{
    nib_config *c = t->config;
    nib_model_config model;
    NIB_TRY(nib_open_backend((nib_device)c->device, &t->ops));
    NIB_TRY(nib_open_model_config(c->model, &model));
    NIB_TRY(nib_text_open(c->model, c->tokenizer, c->data.chat_template, &t->text));
    NIB_TRY(nib_open_data(c, &c->data.train, &t->text, model.vocabulary, &t->train));
    if (c->data.eval.count > 0) NIB_TRY(nib_open_data(c, &c->data.eval, &t->text, model.vocabulary, &t->eval));
    NIB_TRY(warn_of_repeated_rows(t));
    NIB_TRY(nib_dataset_mixture(t->train, (uint64_t)c->train.seed, c->data.shuffle, &t->mixture));
    return open_schedule(t);
}

nib_status nib_train_open(nib_config *config, bool resume, nib_training *t)
{
    *t = (nib_training){.config = config, .folder.lock = -1, .metrics.fd = -1};
    nib_buffer text = {0};
    NIB_TRY(nib_run_folder_open(config->output, resume, &t->folder));
    if (config->has_lora && config->lora.dropout > 0 && config->data.share_prefixes) {
        nib_log("lora_dropout is not 0: prefixes are not shared, since every row needs masks of its own");
        config->data.share_prefixes = false;
    }
    if (!t->folder.fresh) NIB_TRY(continue_config(t));
    NIB_TRY(open_data(t));
    NIB_TRY(choose_sizes(t));
    NIB_TRY(open_model(t));
    nib_status status = first_state(t, &text);
    if (status == NIB_OK && !t->folder.fresh) status = load_checkpoint(t);
    if (status == NIB_OK) status = nib_file_replace(t->folder.config, text.data, text.length);
    nib_buffer_free(&text);
    NIB_TRY(status);
    NIB_TRY(nib_checkpointer_create(t->folder.checkpoints, config->checkpoint.keep, &t->checkpointer));
    nib_config_log(config);
    if (t->state.finished) return NIB_OK;
    return nib_metrics_open(t->folder.metrics, t->folder.path, t->state.step, &t->metrics);
}

void nib_train_close(nib_training *t)
{
    nib_checkpointer_free(t->checkpointer);
    nib_metrics_close(&t->metrics);
    nib_free(t->nll);
    nib_free(t->tensors);
    nib_gradient_tree_free(&t->tree);
    if (t->model != NULL) nib_model_close(t->model);
    nib_mixture_free(&t->mixture);
    nib_dataset_free(t->train);
    nib_dataset_free(t->eval);
    nib_text_close(&t->text);
    nib_close_backend(t->ops);
    nib_run_folder_close(&t->folder);
}
