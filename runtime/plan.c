#include "plan.h"
#include "machine.h"
#include "optim/gradient_tree.h"
#include "optim/optimizer.h"
#include "train_answers.h"
#include "train_evaluate.h"
#include "train_open.h"
#include "train_replay.h"
#include "train_state.h"
#include "train_step.h"

#include <stdio.h>

#define USUAL_TOKENS    2048                /* enough rows for the matrix products to reach their speed */
#define MEASURED_TOKENS ((int64_t)16 << 20) /* of a longer run the size of micro-batches is bounded, not measured */
#define REHEARSED_STEPS 32                  /* whose work is counted */
#define MAX_SLOTS       64
/* Threads' stacks, oneDNN's own state, and what the allocator keeps; then oneDNN's code, which it makes anew for each
 * length of a micro-batch and keeps for the last ones. Measured as the growth of resident memory over runs. */
#define LIBRARY_BYTES       ((size_t)12 << 20)
#define CODE_BYTES          ((size_t)360 << 10)
#define MOST_LENGTHS_CACHED 32

const char *nib_recompute_name(nib_recompute recompute)
{
    static const char *const names[] = {"none", "gate_up", "layer"};
    return names[recompute];
}

void nib_plan_text(const nib_plan *plan, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < plan->classes && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%s %.1f MiB", i == 0 ? "" : ", ", plan->memory[i].name,
                                 (double)plan->memory[i].bytes / (1 << 20));
}

nib_status nib_plan_memory(nib_ops *ops, int processes, size_t *bytes)
{
    size_t available = nib_available_memory();
    *bytes = available == 0 ? 0 : available / 10 * 9 / (size_t)processes + nib_resident_memory();
    if (ops->memory_left == NULL) return NIB_OK;
    NIB_TRY(ops->memory_left(ops, &available));
    *bytes = available / 10 * 9;
    return NIB_OK;
}

typedef struct {
    nib_training *training;
    nib_ops *ops; /* in rehearsal */
    nib_model *model;
    nib_plan *plan;
    int64_t rows;  /* most distinct rows with a target of any micro-batch */
    uint8_t *seen; /* [seen_capacity] lengths of micro-batches that occurred */
    size_t seen_capacity, lengths;
    float *nll;
    int64_t nll_capacity;
    size_t answers_bytes; /* of generation at evaluations, and when an adapter is saved */
} rehearsal;

static int64_t target_rows(const nib_micro_batch *batch)
{
    int64_t rows = 0;
    for (int64_t n = 0; n < batch->N; n++) rows += n == 0 || batch->target_row[n] != batch->target_row[n - 1];
    return rows;
}

static nib_status rehearse(rehearsal *r, const nib_micro_batch *batch, bool backward)
{
    if (batch->N > r->nll_capacity) {
        nib_free(r->nll);
        r->nll = nib_calloc((size_t)batch->N, sizeof *r->nll);
        r->nll_capacity = r->nll == NULL ? 0 : batch->N;
        if (r->nll == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld losses", (long long)batch->N);
    }
    NIB_TRY(nib_model_reserve(r->model, batch->T, batch->N, r->plan->recompute, true));
    if (!backward) return nib_model_score_batch(r->model, batch, r->nll);
    return nib_model_train_batch(r->model, batch, (nib_step_options){.gradient_scale = 1, .dropout_key = 1}, r->nll);
}

/* Every micro-batch that is larger than all before in some way takes part; `always` all of them. */
static nib_status rehearse_all(rehearsal *r, const nib_pack *pack, bool backward, bool always)
{
    for (int m = 0; m < pack->micro_batches; m++) {
        const nib_micro_batch *batch = &pack->micro_batch[m];
        nib_plan *p = r->plan;
        int64_t rows = target_rows(batch);
        if (!nib_grow(&r->seen, &r->seen_capacity, (size_t)batch->T + 1, 1))
            return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to plan a micro-batch of %lld tokens", (long long)batch->T);
        r->lengths += r->seen[batch->T] == 0;
        r->seen[batch->T] = 1;
        bool larger = batch->T > p->T || batch->N > p->N || rows > r->rows;
        p->T = batch->T > p->T ? batch->T : p->T;
        p->N = batch->N > p->N ? batch->N : p->N;
        r->rows = rows > r->rows ? rows : r->rows;
        if (larger || always) NIB_TRY(rehearse(r, batch, backward));
    }
    return NIB_OK;
}

/* For runs too long to look at each step: one document as long as a micro-batch may be. */
static nib_status rehearse_bound(rehearsal *r, int64_t T)
{
    int32_t *words = nib_calloc((size_t)(5 * T), sizeof *words);
    float *weight = nib_calloc((size_t)T, sizeof *weight);
    nib_status status;
    if (words == NULL || weight == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to plan a micro-batch of %lld tokens", (long long)T);
    } else {
        nib_micro_batch batch = {.T = T,
                                 .id = words,
                                 .position = words + T,
                                 .end = words + 2 * T,
                                 .N = T - 1,
                                 .target_row = words + 3 * T,
                                 .target_label = words + 4 * T,
                                 .target_weight = weight};
        for (int64_t t = 0; t < T; t++) {
            batch.position[t] = batch.target_row[t] = (int32_t)t;
            batch.end[t] = (int32_t)T;
        }
        nib_pack pack = {.micro_batches = 1, .micro_batch = &batch};
        status = rehearse_all(r, &pack, true, false);
    }
    nib_free(words);
    nib_free(weight);
    return status;
}

static nib_status rehearse_step(rehearsal *r, int64_t cursor, bool counted)
{
    nib_plan *p = r->plan;
    nib_work *work = nib_rehearsal_work(r->ops), before = *work;
    nib_step_plan plan = nib_train_step_plan(r->training);
    nib_step_data data;
    NIB_TRY(nib_step_data_make(&plan, cursor, &data));
    nib_status status = rehearse_all(r, &data.pack, true, counted);
    p->tokens += counted ? data.pack.row_tokens : 0;
    p->computed_tokens += counted ? data.pack.computed_tokens : 0;
    p->supervised_tokens += counted ? data.pack.supervised_tokens : 0;
    p->steps += counted;
    nib_step_data_free(&data);
    if (counted && status == NIB_OK) {
        double norm;
        nib_optimizer_options options = {.max_norm = 1};
        NIB_TRY(nib_optimizer_zero(r->ops, r->model));
        status = nib_optimizer_step(r->ops, r->model, &options, &norm);
    }
    if (!counted) *work = before;
    return status;
}

static nib_status rehearse_training(rehearsal *r)
{
    const nib_training *t = r->training;
    int64_t batch = t->config->train.batch_size, seen = 0;
    for (int64_t cursor = 0, step = 0; cursor < t->samples; cursor += batch, step++) {
        int64_t count = t->samples - cursor < batch ? t->samples - cursor : batch;
        for (int64_t i = 0; i < count; i++) {
            int64_t sample, tokens, supervised;
            NIB_TRY(nib_mixture_sample(&t->mixture, cursor + i, &sample));
            NIB_TRY(nib_dataset_counts(t->train, sample, &tokens, &supervised));
            seen += tokens;
        }
        if (seen > MEASURED_TOKENS) {
            nib_work *work = nib_rehearsal_work(r->ops), before = *work;
            NIB_TRY(rehearse_bound(r, t->config->train.micro_batch_tokens));
            *work = before;
            return NIB_OK;
        }
        NIB_TRY(rehearse_step(r, cursor, step < REHEARSED_STEPS));
    }
    return NIB_OK;
}

static nib_status rehearse_evaluation(rehearsal *r)
{
    int64_t size = r->training->eval == NULL ? 0 : nib_dataset_size(r->training->eval);
    for (int64_t first = 0, count; first < size; first += count) {
        nib_pack pack;
        NIB_TRY(nib_train_pack_evaluation(r->training, first, &count, &pack));
        nib_status status = rehearse_all(r, &pack, false, false);
        nib_pack_free(&pack);
        NIB_TRY(status);
    }
    return NIB_OK;
}

static size_t add_class(nib_plan *plan, const char *name, size_t bytes)
{
    if (bytes > 0) plan->memory[plan->classes++] = (nib_memory_class){name, bytes};
    return bytes;
}

/* The classes of the model as it is reserved now, then what the process holds beside, if that is the same memory. */
static void sum_up(const rehearsal *r)
{
    nib_plan *p = r->plan;
    const nib_memory_class *arena;
    nib_parameter *parameter;
    int count = nib_model_memory(r->model, &arena), parameters = nib_model_parameters(r->model, &parameter);
    int64_t elements = 0;
    size_t state = 0;
    for (int i = 0; i < parameters; i++) {
        elements += parameter[i].rows * parameter[i].columns;
        state += nib_train_state_bytes(&parameter[i]);
    }
    for (int i = 0; i < count; i++) p->arena_bytes += add_class(p, arena[i].name, arena[i].bytes);
    p->arena_bytes += add_class(p, "gradient slots", nib_train_slot_bytes(r->training, elements));
    p->arenas = p->classes;
    p->scratch = r->ops->scratch->peak;
    const bool host_only = r->training->ops->memory_left == NULL;
    /* What a checkpoint is copied to is kept from the first one on; at the end of a run there are no answers any more.
     */
    const bool together = r->training->config->checkpoint.every_steps < r->training->schedule.steps;
    const bool larger = !host_only || together || r->answers_bytes > state;
    p->peak = p->arena_bytes + (larger ? add_class(p, "answers", r->answers_bytes) : 0);
    if (!host_only) return; /* the rest is the host's */
    p->peak += together || !larger ? add_class(p, "checkpoint copy", state) : 0;
    p->peak += add_class(p, "program and data", nib_resident_memory());
    size_t lengths = r->lengths < MOST_LENGTHS_CACHED ? r->lengths : MOST_LENGTHS_CACHED;
    p->peak += add_class(p, "libraries", LIBRARY_BYTES + lengths * CODE_BYTES);
}

nib_status nib_plan_make(nib_training *t, nib_recompute recompute, nib_plan *plan)
{
    nib_model_options options = nib_train_model_options(t);
    rehearsal r = {.training = t, .plan = plan};
    nib_parameter *parameters;
    int count;
    nib_status status;
    *plan = (nib_plan){.recompute = recompute};
    NIB_TRY_GOTO(nib_rehearsal_create(t->ops, &r.ops), done);
    NIB_TRY_GOTO(nib_model_open(r.ops, &options, &r.model), done);
    NIB_TRY_GOTO(nib_train_parameters(t->config, r.model, &parameters, &count), done);
    *nib_rehearsal_work(r.ops) = (nib_work){0};
    NIB_TRY_GOTO(rehearse_training(&r), done);
    plan->work = *nib_rehearsal_work(r.ops);
    NIB_TRY_GOTO(rehearse_evaluation(&r), done);
    NIB_TRY_GOTO(nib_train_answers_memory(t, r.model, &r.answers_bytes), done);
    size_t replay_bytes;
    NIB_TRY_GOTO(nib_train_replay_memory(t, r.model, &replay_bytes), done);
    if (replay_bytes > r.answers_bytes) r.answers_bytes = replay_bytes; /* never both at once */
    NIB_TRY_GOTO(nib_model_reserve(r.model, plan->T, plan->N, recompute, true), done);
    sum_up(&r);
done:
    nib_free(r.nll);
    nib_free(r.seen);
    nib_model_close(r.model);
    if (r.ops != NULL) r.ops->close(r.ops);
    return status;
}

/* As many slots as the first step has micro-batches, and one for each rank at least. */
static nib_status choose_slots(nib_training *t)
{
    int ranks = t->collectives == NULL ? 1 : t->collectives->size;
    nib_step_data data;
    t->config->train.slots = 1;
    nib_step_plan plan = nib_train_step_plan(t);
    NIB_TRY(nib_step_data_make(&plan, 0, &data));
    t->config->train.slots = data.pack.micro_batches < MAX_SLOTS ? data.pack.micro_batches : MAX_SLOTS;
    if (t->config->train.slots < ranks) t->config->train.slots = ranks;
    nib_step_data_free(&data);
    return NIB_OK;
}

nib_status nib_plan_choose(nib_training *t, size_t memory, nib_plan *plan)
{
    nib_config *c = t->config;
    bool given = c->train.micro_batch_tokens != NIB_CONFIG_UNSET, slots_given = c->train.slots != NIB_CONFIG_UNSET;
    int64_t longest = nib_dataset_longest(t->train);
    if (t->eval != NULL && nib_dataset_longest(t->eval) > longest) longest = nib_dataset_longest(t->eval);
    if (!given) c->train.micro_batch_tokens = longest > USUAL_TOKENS ? longest : USUAL_TOKENS;
    for (;; c->train.micro_batch_tokens = c->train.micro_batch_tokens / 2 > longest ? c->train.micro_batch_tokens / 2
                                                                                    : longest) {
        if (!slots_given) NIB_TRY(choose_slots(t));
        for (int policy = NIB_RECOMPUTE_NONE; policy <= NIB_RECOMPUTE_LAYER; policy++) {
            NIB_TRY(nib_plan_make(t, (nib_recompute)policy, plan));
            if (memory == 0 || plan->peak <= memory) return NIB_OK;
        }
        if (given || c->train.micro_batch_tokens <= longest) break;
    }
    char classes[1024];
    nib_plan_text(plan, classes, sizeof classes);
    return NIB_FAIL(NIB_ERROR_MEMORY,
                    "the run needs %.2f GiB at least (micro-batches of %lld tokens, rows of up to %lld, everything "
                    "recomputed), %.2f GiB are there; lower %sdata.max_length, %s, or take a smaller model\n"
                    "what is needed: %s",
                    (double)plan->peak / (1 << 30), (long long)c->train.micro_batch_tokens, (long long)longest,
                    (double)memory / (1 << 30), given ? "train.micro_batch_tokens, " : "",
                    c->has_lora ? "lower lora.r" : "train a \"lora\"", classes);
}
