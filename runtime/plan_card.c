/* The model's own code runs on a backend in rehearsal, so its arenas and its work are counted, not described again.
 * What the GPU's own ops take besides, and how fast they are, follows from the data sheet and these ratios. */
#include "plan_card.h"
#include "base/memory.h"
#include "cpu/backend.h"
#include "optim/optimizer.h"

#include <string.h>

/* Shares of a data sheet's figures. cuBLASLt sustains 0.65 to 0.73 of an H200's products, a copy 0.9 of its bandwidth,
 * of which elementwise kernels reach 0.85; mma.sync attention makes 250 to 300 TFLOP/s there, and adapter products,
 * bound by memory, 87. Not measured with Nibble yet. */
#define PRODUCTS    0.69
#define FP8         2 /* times as many products of 8 bits as of bf16, on every card that has them */
#define FP8_LEAST   89
#define ATTENTION   0.25
#define ADAPTERS    0.088
#define COPY        0.9
#define ELEMENTWISE (0.85 * COPY)
#define LINK        0.8

#define MOST_TOKENS   32768
#define NODE_GPUS     8
#define LOSS_ROWS     2048                /* a chunk of the linear cross-entropy */
#define CONTEXT_BYTES ((size_t)640 << 20) /* driver, kernels, cuBLASLt's workspace */

typedef struct {
    const nib_model_options *options;
    const nib_card_question *question;
    nib_ops *ops;
    nib_model *model;
} rehearsal;

/* T tokens as documents of equal length, every token but the first to be predicted. */
static nib_status make_batch(const nib_card_question *q, int64_t T, nib_micro_batch *batch)
{
    int32_t *words = nib_calloc((size_t)(5 * T), sizeof *words);
    float *weight = nib_calloc((size_t)T, sizeof *weight);
    *batch = (nib_micro_batch){.T = T,
                               .id = words,
                               .position = words + T,
                               .end = words + 2 * T,
                               .target_row = words + 3 * T,
                               .target_label = words + 4 * T,
                               .target_weight = weight};
    if (words == NULL || weight == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to plan a micro-batch of %lld tokens", (long long)T);
    for (int64_t t = 0; t < T; t++) {
        int64_t document = t / q->length;
        batch->position[t] = (int32_t)(t % q->length);
        batch->end[t] = (int32_t)((document + 1) * q->length);
        if (t % q->length + 1 < q->length) batch->target_row[batch->N++] = (int32_t)t;
    }
    return NIB_OK;
}

static nib_status rehearse_step(rehearsal *r, int64_t T, nib_recompute recompute, nib_work *work)
{
    nib_micro_batch batch;
    nib_status status;
    float *nll = NULL;
    double norm;
    nib_optimizer_options optimizer = {.max_norm = 1};
    NIB_TRY_GOTO(make_batch(r->question, T, &batch), done);
    nll = nib_calloc((size_t)batch.N + 1, sizeof *nll);
    if (nll == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld losses", (long long)batch.N);
        goto done;
    }
    NIB_TRY_GOTO(nib_model_reserve(r->model, T, batch.N, recompute, true), done);
    *nib_rehearsal_work(r->ops) = (nib_work){0};
    NIB_TRY_GOTO(
        nib_model_train_batch(r->model, &batch, (nib_step_options){.gradient_scale = 1, .dropout_key = 1}, nll), done);
    NIB_TRY_GOTO(nib_optimizer_step(r->ops, r->model, &optimizer, &norm), done);
    *work = *nib_rehearsal_work(r->ops);
done:
    nib_free(nll);
    nib_free(batch.id); /* the other arrays are parts of it */
    nib_free(batch.target_weight);
    return status;
}

static void add_class(nib_card_plan *plan, const char *name, double bytes)
{
    if (bytes > 0) plan->memory[plan->classes++] = (nib_memory_class){name, (size_t)bytes};
    plan->peak += bytes;
}

/* The largest linear dequantised with the adapter beside it, in fp8 half of that and the gradient of its T outputs, or
 * a chunk of logits with its gradient: one at a time. */
static double scratch_bytes(const nib_model_config *c, bool fp8, int64_t T)
{
    double C = (double)c->hidden, F = (double)c->feed_forward;
    double weight = 2 * (2 * F + 64) * (C + 64), logits = 6.0 * LOSS_ROWS * (double)c->vocabulary;
    if (fp8) weight = weight / 2 + 2 * F * (double)T;
    return weight > logits ? weight : logits;
}

static void sum_memory(const rehearsal *r, nib_card_plan *plan)
{
    const nib_memory_class *arena;
    int count = nib_model_memory(r->model, &arena);
    plan->classes = 0;
    plan->peak = 0;
    for (int i = 0; i + 1 < count; i++) /* the last is the CPU's scratch */
        add_class(plan, arena[i].name, (double)arena[i].bytes);
    plan->arenas = plan->classes;
    add_class(plan, "scratch", scratch_bytes(nib_model_get_config(r->model), r->options->fp8, plan->T));
    add_class(plan, "driver, libraries", (double)CONTEXT_BYTES);
}

static int64_t trained_elements(const nib_model *model)
{
    nib_parameter *parameter;
    int count = nib_model_parameters(model, &parameter);
    int64_t elements = 0;
    for (int i = 0; i < count; i++) elements += parameter[i].rows * parameter[i].columns;
    return elements;
}

static nib_shards ranks_of_node(const nib_card_question *q)
{
    return (nib_shards){.size = q->gpus < NODE_GPUS ? q->gpus : NODE_GPUS};
}

/* Every layer comes once for the forward and once for the backward pass. */
static double gather_seconds(const rehearsal *r)
{
    const nib_memory_class *arena;
    double windows = 0, ranks = ranks_of_node(r->question).size;
    int count = nib_model_memory(r->model, &arena);
    for (int i = 0; i < count; i++)
        if (strcmp(arena[i].name, "gathered layers") == 0) windows = (double)arena[i].bytes;
    double layers = (double)nib_model_get_config(r->model)->layers, record = windows / 2;
    return 2 * layers * record * (ranks - 1) / ranks / (LINK * r->question->card->link);
}

static void sum_time(const rehearsal *r, const nib_work *work, nib_card_plan *plan)
{
    const nib_card *card = r->question->card;
    double gpus = r->question->gpus, T = (double)plan->T;
    nib_rates rates = {.base = PRODUCTS * card->matrix,
                       .fp8 = FP8 * PRODUCTS * card->matrix,
                       .lora = ADAPTERS * card->matrix,
                       .attention = ATTENTION * card->matrix,
                       .loss = PRODUCTS * card->matrix,
                       .elementwise = ELEMENTWISE * card->bandwidth,
                       .optimizer = ELEMENTWISE * card->bandwidth};
    plan->step = nib_work_time(work, &rates);
    /* Every pass over a weight reads 4 bits and a 64th of a byte, and writes bf16, or e4m3; the product reads that
     * again. An activation is read in bf16 and written in e4m3. */
    double passes = r->options->quantization == NIB_QUANT_NF4 ? work->base_flops / (2 * T) : 0;
    double moved = passes * (0.5 + 1.0 / 64 + 2) + work->fp8_flops / (2 * T) * (0.5 + 1.0 / 64 + 1);
    plan->dequantize = (moved + 3 * work->fp8_elements) / (ELEMENTWISE * card->bandwidth);
    /* The tree over slots moves what a ring moves: all-to-all, then all-gather (runtime's collectives). */
    double bytes = 4.0 * (double)trained_elements(r->model);
    double gather = gather_seconds(r), compute = plan->step.sum + plan->dequantize;
    plan->exchange = gather > compute ? gather - compute : 0; /* what the next layer's way here takes beyond this one */
    if (r->question->shard_optimizer)                         /* the weights that each GPU has updated, in bf16 */
        plan->exchange += bytes / 2 * (gpus - 1) / gpus / (LINK * card->link);
    plan->exchange += gpus > 1 ? 2 * bytes * (gpus - 1) / gpus / (LINK * card->link) : 0;
    plan->tokens_per_second = gpus * T / (plan->step.sum + plan->dequantize + plan->exchange);
}

/* Every size of micro-batch, a power of two of documents, under every policy. */
static nib_status choose(rehearsal *r, nib_card_plan *best)
{
    const nib_card_question *q = r->question;
    bool fits = false;
    for (int64_t T = q->length; T == q->length || T <= MOST_TOKENS; T *= 2)
        for (int policy = NIB_RECOMPUTE_NONE; policy <= NIB_RECOMPUTE_LAYER; policy++) {
            nib_card_plan plan = {.T = T, .recompute = (nib_recompute)policy};
            nib_work work;
            NIB_TRY(rehearse_step(r, T, plan.recompute, &work));
            sum_memory(r, &plan);
            bool fit = plan.peak <= q->memory;
            if (fit) sum_time(r, &work, &plan);
            if (fit ? plan.tokens_per_second > best->tokens_per_second
                    : !fits && (best->classes == 0 || plan.peak < best->peak))
                *best = plan;
            fits = fits || fit;
        }
    return fits
               ? NIB_OK
               : NIB_FAIL(NIB_ERROR_MEMORY,
                          "%.1f GiB are needed at least (one document of %lld tokens, everything recomputed), %.1f GiB "
                          "are there; take shorter documents, a lower lora.r, a smaller model or a larger card",
                          best->peak / (1 << 30), (long long)q->length, q->memory / (1 << 30));
}

nib_status nib_card_plan_make(const nib_model_options *options, const nib_card_question *question, nib_card_plan *plan)
{
    nib_model_options opened = *options;
    rehearsal r = {.options = options, .question = question};
    nib_ops *cpu = NULL;
    nib_status status;
    *plan = (nib_card_plan){0};
    const nib_shards ranks = ranks_of_node(question);
    if (question->shard_base && ranks.size > 1) opened.shard_base = &ranks;
    if (question->shard_optimizer && ranks.size > 1) opened.shard_optimizer = &ranks;
    opened.random = true;
    opened.compute = NIB_DTYPE_BF16;
    NIB_TRY_GOTO(nib_cpu_backend_create(0, &cpu), done);
    NIB_TRY_GOTO(nib_rehearsal_create(cpu, &r.ops), done);
    r.ops->device = question->card->name;
    r.ops->fp8 = question->card->capability >= FP8_LEAST;
    NIB_TRY_GOTO(nib_model_open(r.ops, &opened, &r.model), done);
    status = choose(&r, plan);
done:
    nib_model_close(r.model);
    if (r.ops != NULL) r.ops->close(r.ops);
    nib_cpu_backend_free(cpu);
    return status;
}
