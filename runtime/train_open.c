#include "train_open.h"
#include "base/file.h"
#include "base/log.h"
#include "base/sha256.h"
#include "export/tokenizer_json.h"
#include "export_files.h"
#include "plan.h"
#include "token_choice.h"
#include "train_state.h"
#include "train_step.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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

/* A full fine-tune writes its tokenizer beside the weights: one that cannot be written is refused before the training.
 */
static nib_status check_tokenizer(const nib_training *t)
{
    const char *from = t->config->tokenizer != NULL ? t->config->tokenizer : t->config->model;
    if (t->config->has_lora || t->text.tokenizer == NULL || !nib_export_is_gguf(from)) return NIB_OK;
    return nib_export_tokenizer_json(from, NULL);
}

/* A scratch arena that grows gets all that the plan counted, at once. */
static nib_status reserve_scratch(nib_arena *scratch, size_t bytes)
{
    void *unused;
    if (scratch->grow == NULL) return NIB_OK;
    NIB_TRY(nib_arena_take(scratch, (int64_t)bytes, 1, &unused));
    nib_arena_reset(scratch, 0);
    return NIB_OK;
}

static nib_status plan_sizes(nib_training *t)
{
    nib_plan plan;
    size_t memory;
    NIB_TRY(nib_plan_memory(t->ops, t->collectives->local_size, &memory));
    NIB_TRY(nib_plan_choose(t, memory, &plan));
    t->recompute = plan.recompute;
    nib_plan_text(&plan, t->planned, sizeof t->planned);
    t->reserved_tokens = plan.T;
    t->reserved_targets = plan.N;
    nib_log("plan: micro-batches of up to %lld tokens (%lld here), recompute %s, %.1f MiB in arenas, peak %.1f MiB",
            (long long)t->config->train.micro_batch_tokens, (long long)plan.T, nib_recompute_name(plan.recompute),
            (double)plan.arena_bytes / (1 << 20), (double)plan.peak / (1 << 20));
    return reserve_scratch(t->ops->scratch, plan.scratch);
}

/* What rank 0's memory allows is what all ranks do. */
static nib_status choose_sizes(nib_training *t)
{
    nib_config *c = t->config;
    if (nib_train_leads(t)) NIB_TRY(plan_sizes(t));
    int64_t sizes[] = {c->train.slots, c->train.micro_batch_tokens, t->recompute, t->reserved_tokens,
                       t->reserved_targets};
    NIB_TRY(t->collectives->broadcast(t->collectives, sizes, sizeof sizes, 0));
    c->train.slots = sizes[0];
    c->train.micro_batch_tokens = sizes[1];
    t->recompute = (nib_recompute)sizes[2];
    t->reserved_tokens = sizes[3];
    t->reserved_targets = sizes[4];
    if (c->train.slots >= t->collectives->size) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_CONFIG,
                    "%d ranks, but a step has %lld slots, and each rank needs one; start fewer ranks, or %s",
                    t->collectives->size, (long long)c->train.slots,
                    t->folder.fresh ? "raise \"train.slots\"" : "begin a new run with more \"train.slots\"");
}

nib_model_options nib_train_model_options(const nib_training *t)
{
    nib_model_options options = nib_config_model(t->config, true);
    if (t->config->parallel.shard_base) options.shard_base = nib_node_shards_table(t->shards);
    if (t->config->parallel.shard_optimizer) options.shard_optimizer = nib_node_shards_table(t->shards);
    return options;
}

static nib_status open_shards(nib_training *t)
{
    if (!t->config->parallel.shard_base && !t->config->parallel.shard_optimizer) return NIB_OK;
    NIB_TRY(nib_node_shards_open(t->collectives, t->ops, t->exchange, &t->shards));
    if (t->shards == NULL) nib_log("parallel: one rank on this node, which holds all itself");
    return NIB_OK;
}

/* PEFT's rule: a name is that of a module, or its end behind a dot. */
static bool is_adapted(const char *name, const nib_parameter *parameters, int count)
{
    char part[256];
    snprintf(part, sizeof part, ".%s.lora_A.", name);
    for (int i = 0; i < count; i++)
        if (strstr(parameters[i].name, part) != NULL) return true;
    return false;
}

nib_status nib_train_parameters(const nib_config *config, nib_model *model, nib_parameter **parameters, int *count)
{
    const nib_target_list *targets = &config->lora.targets;
    const char *wrong = NULL;
    *count = nib_model_parameters(model, parameters);
    for (int i = 0; i < targets->count && config->lora.init_adapter == NULL && wrong == NULL; i++)
        if (!is_adapted(targets->name[i], *parameters, *count)) wrong = targets->name[i];
    if (wrong == NULL && *count == 0) wrong = "those of \"lora.init_adapter\"";
    if (wrong == NULL) return NIB_OK;
    return NIB_FAIL(
        NIB_ERROR_CONFIG,
        "\"lora.target_modules\": found %s: no linear of this model has that name; expected \"all-linear\" or some of "
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        wrong);
}

static nib_status open_model(nib_training *t)
{
    nib_model_options options = nib_train_model_options(t);
    NIB_TRY(nib_model_open(t->ops, &options, &t->model));
    NIB_TRY(nib_model_reserve(t->model, t->reserved_tokens, t->reserved_targets, t->recompute, true));
    NIB_TRY(nib_train_parameters(t->config, t->model, &t->parameters, &t->parameter_count));
    const nib_parameter *last = &t->parameters[t->parameter_count - 1];
    int64_t n = last->gradient + last->rows * last->columns - t->parameters[0].gradient;
    NIB_TRY(nib_gradient_tree_create(t->ops, n, (int)t->config->train.slots, nib_train_slots(t), &t->tree));
    NIB_TRY(nib_gradient_stream_open(t->collectives, &t->tree, t->parameters[0].gradient, t->exchange, &t->stream));
    t->nll_capacity = t->reserved_targets;
    t->nll = nib_calloc((size_t)t->nll_capacity, sizeof *t->nll);
    t->tensors = nib_calloc((size_t)t->parameter_count, sizeof *t->tensors);
    if (t->nll == NULL || t->tensors == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the training state");
    for (int i = 0; i < t->parameter_count; i++) t->tensors[i] = nib_train_state_tensor(&t->parameters[i]);
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
    if (t->eval != NULL) snprintf(t->state.evaluation_hash, 65, "%s", nib_dataset_hash(t->eval));
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

/* Ranks that hold other data or another model would train on in silence. */
static nib_status compare_ranks(const nib_training *t)
{
    enum { CONFIG, BASE, TOKENIZER, DATA, EVALUATION, HASHES };
    static const char *const names[HASHES] = {"configuration", "base model", "tokenizer", "training data",
                                              "evaluation data"};
    const char *own[HASHES] = {t->state.config_hash, t->state.base_hash, t->state.tokenizer_hash, t->state.data_hash,
                               t->state.evaluation_hash};
    char first[HASHES][65] = {{0}};
    for (int i = 0; i < HASHES; i++) memcpy(first[i], own[i], sizeof first[i]);
    NIB_TRY(t->collectives->broadcast(t->collectives, first, sizeof first, 0));
    for (int i = 0; i < HASHES; i++)
        if (memcmp(first[i], own[i], sizeof first[i]) != 0)
            return NIB_FAIL(NIB_ERROR_CONFIG,
                            "rank %d has another %s than rank 0 (SHA-256 %.12s..., there %.12s...); give all ranks the "
                            "same files, at the same paths",
                            t->collectives->rank, names[i], own[i], first[i]);
    return NIB_OK;
}

/* A kernel that is wrong on one rank's device is switched off on all. */
static nib_status agree_on_kernels(const nib_training *t)
{
    int64_t *all = nib_calloc((size_t)t->collectives->size, sizeof *all);
    uint32_t off = 0;
    if (all == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compare %d ranks", t->collectives->size);
    nib_status status = nib_gather_values(t->collectives, (int64_t)t->ops->plain, all);
    for (int r = 0; r < t->collectives->size; r++) off |= (uint32_t)all[r];
    nib_free(all);
    if (status == NIB_OK && off != t->ops->plain) t->ops->use_plain(t->ops, off);
    return status;
}

/* Kernels of another kind round otherwise: where only some of the ranks have a GPU, the run's bits would depend on
 * which. */
static nib_status compare_backends(const nib_training *t)
{
    char first[32] = "";
    snprintf(first, sizeof first, "%s", t->ops->name);
    NIB_TRY(t->collectives->broadcast(t->collectives, first, sizeof first, 0));
    if (strcmp(first, t->ops->name) == 0) return agree_on_kernels(t);
    return NIB_FAIL(NIB_ERROR_DEVICE,
                    "rank %d computes on %s, rank 0 on %.31s; start the run where every rank has a GPU, or give it "
                    "--device cpu",
                    t->collectives->rank, t->ops->name, first);
}

/* The latest checkpoint's state into t->state; *found: there is one. */
static nib_status read_state(nib_training *t, bool *found)
{
    nib_checkpoint_state saved;
    int64_t step;
    NIB_TRY(nib_checkpoint_latest(t->folder.checkpoints, &step, &saved));
    *found = step >= 0;
    if (!*found) {
        nib_log("no checkpoint in %s yet: the run starts from its beginning", t->folder.checkpoints);
        return NIB_OK;
    }
    NIB_TRY(same_hash(t, "base model", saved.base_hash, t->state.base_hash));
    NIB_TRY(same_hash(t, "tokenizer", saved.tokenizer_hash, t->state.tokenizer_hash));
    NIB_TRY(same_hash(t, "training data", saved.data_hash, t->state.data_hash));
    NIB_TRY(same_hash(t, "evaluation data", saved.evaluation_hash, t->state.evaluation_hash));
    memcpy(saved.config_hash, t->state.config_hash, sizeof saved.config_hash);
    t->state = saved;
    nib_log("continuing after step %lld of %lld", (long long)step, (long long)t->schedule.steps);
    return NIB_OK;
}

/* Only rank 0 needs to see the run folder. */
static nib_status load_checkpoint(nib_training *t)
{
    nib_collectives *c = t->collectives;
    bool found = false;
    if (nib_train_leads(t)) NIB_TRY(read_state(t, &found));
    NIB_TRY(c->broadcast(c, &found, sizeof found, 0));
    if (!found) return NIB_OK;
    NIB_TRY(c->broadcast(c, &t->state, sizeof t->state, 0));
    NIB_TRY(nib_train_leads(t) ? nib_checkpoint_read(t->folder.checkpoints, t->state.step, nib_train_state_carrier(t),
                                                     t->tensors, t->parameter_count)
                               : nib_train_state_receive(t));
    NIB_TRY(nib_model_refresh(t->model));
    return t->ops->synchronize(t->ops); /* what it gathers from the other ranks has come */
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

/* Which rows of the embedding are trained, and a warning of those that ought to be. */
static nib_status settle_tokens(nib_training *t, int64_t vocabulary)
{
    nib_buffer warnings = {0};
    nib_status status = nib_token_choice_settle(t->config, &t->text, t->train, vocabulary, &warnings);
    for (char *line = warnings.data, *end; status == NIB_OK && line != NULL && *line != 0; line = end + 1) {
        end = strchr(line, '\n');
        nib_warn("%.*s", (int)(end - line), line);
    }
    nib_buffer_free(&warnings);
    if (status == NIB_OK && t->config->lora.tokens.ids > 0)
        nib_log("%lld rows of the embedding are trained with the adapter", (long long)t->config->lora.tokens.ids);
    return status;
}

void nib_train_settle(nib_config *c)
{
    if (!c->has_lora || c->lora.dropout <= 0 || !c->data.share_prefixes) return;
    nib_log("lora_dropout is not 0: prefixes are not shared, since every row needs masks of its own");
    c->data.share_prefixes = false;
}

nib_status nib_train_open_data(nib_training *t)
{
    nib_config *c = t->config;
    nib_model_config model;
    int local_rank = t->collectives == NULL ? 0 : t->collectives->local_rank;
    NIB_TRY(nib_open_backend((nib_device)c->device, nib_config_model(c, true).compute, local_rank, &t->ops));
    NIB_TRY(nib_open_model_config(c->model, &model));
    t->token_keys = nib_model_token_keys(&model);
    NIB_TRY(nib_text_open(c->model, c->tokenizer, c->data.chat_template, &t->text));
    if (c->evaluate.generate > 0 && t->text.tokenizer == NULL)
        return NIB_FAIL(NIB_ERROR_CONFIG,
                        "\"evaluate.generate\" is %lld, and %s has no tokenizer to write answers with; give one as "
                        "\"tokenizer\", or generate none",
                        (long long)c->evaluate.generate, c->model);
    NIB_TRY(nib_open_data(c, &c->data.train, &t->text, model.vocabulary, true, &t->train));
    if (c->data.eval.count > 0) NIB_TRY(nib_open_data(c, &c->data.eval, &t->text, model.vocabulary, false, &t->eval));
    if (nib_train_leads(t)) NIB_TRY(warn_of_repeated_rows(t)); /* goes through the index of all samples */
    NIB_TRY(settle_tokens(t, model.vocabulary));
    NIB_TRY(nib_dataset_mixture(t->train, (uint64_t)c->train.seed, c->data.shuffle, &t->mixture));
    return open_schedule(t);
}

/* Rank 0 takes the run folder and, if it holds a run, that run's sizes; the others are told. */
static nib_status open_folder(nib_training *t, bool resume)
{
    nib_config *c = t->config;
    const char *result = c->has_lora ? "adapter" : "model";
    if (nib_train_leads(t)) {
        NIB_TRY(nib_run_folder_open(c->output, result, resume, &t->folder));
        if (!t->folder.fresh) NIB_TRY(continue_config(t));
    }
    int64_t facts[] = {t->folder.fresh, c->train.slots, c->train.micro_batch_tokens};
    NIB_TRY(t->collectives->broadcast(t->collectives, facts, sizeof facts, 0));
    if (!nib_train_leads(t)) NIB_TRY(nib_run_folder_follow(c->output, result, t->collectives->rank, &t->folder));
    t->folder.fresh = facts[0] != 0;
    c->train.slots = facts[1];
    c->train.micro_batch_tokens = facts[2];
    return NIB_OK;
}

/* What rank 0 alone writes, from here on. */
static nib_status open_output(nib_training *t, const nib_buffer *config_text)
{
    NIB_TRY(nib_file_replace(t->folder.config, config_text->data, config_text->length));
    NIB_TRY(nib_checkpointer_create(t->folder.checkpoints, t->config->checkpoint.keep, &t->checkpointer));
    if (t->state.finished) return NIB_OK;
    return nib_metrics_open(t->folder.metrics, t->folder.path, t->state.step, &t->metrics);
}

nib_status nib_train_open(nib_config *config, bool resume, nib_collectives *collectives, nib_training *t)
{
    *t = (nib_training){.config = config, .collectives = collectives, .folder.lock = -1, .metrics.fd = -1};
    nib_buffer text = {0};
    collectives->note(collectives, "opening data and model");
    nib_train_settle(config); /* as the folder's config.json has it */
    NIB_TRY(open_folder(t, resume));
    if (collectives->size > 1)
        nib_log_file_only("%d ranks over %s; their check took %.1f ms", collectives->size, collectives->name,
                          1e3 * collectives->check_seconds);
    NIB_TRY(nib_train_open_data(t));
    NIB_TRY(compare_backends(t));
    NIB_TRY(nib_device_exchange_open(collectives, t->ops, &t->exchange));
    NIB_TRY(open_shards(t));
    NIB_TRY(check_tokenizer(t));
    NIB_TRY(choose_sizes(t));
    NIB_TRY(open_model(t));
    nib_status status = first_state(t, &text);
    if (status == NIB_OK) status = compare_ranks(t);
    if (status == NIB_OK && !t->folder.fresh) status = load_checkpoint(t);
    if (status == NIB_OK && nib_train_leads(t)) status = open_output(t, &text);
    nib_buffer_free(&text);
    /* Only now that there is a run: a folder that holds anything else is refused. */
    if (status == NIB_OK && t->ops->keep_algorithms != NULL)
        status = t->ops->keep_algorithms(t->ops, t->folder.checkpoints);
    NIB_TRY(status);
    nib_log("%s: %s", t->ops->name, t->ops->device);
    nib_config_log(config);
    return NIB_OK;
}

void nib_train_close(nib_training *t)
{
    nib_prefetch_free(t->prefetch); /* first: it reads from what follows */
    nib_checkpointer_free(t->checkpointer);
    nib_metrics_close(&t->metrics);
    nib_free(t->nll);
    nib_free(t->tensors);
    nib_gradient_stream_close(t->stream);
    nib_gradient_tree_free(&t->tree);
    if (t->model != NULL) nib_model_close(t->model);
    nib_node_shards_close(t->shards);
    nib_mixture_free(&t->mixture);
    nib_dataset_free(t->train);
    nib_dataset_free(t->eval);
    nib_text_close(&t->text);
    nib_close_backend(t->ops);
    nib_train_steps_free(t); /* what steps under way would have fetched has nowhere to go until the backend is closed */
    nib_run_folder_close(&t->folder);
}
