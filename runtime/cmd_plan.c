/* nibble plan: the memory and time of a run, before anything is allocated. */
#include "base/log.h"
#include "command.h"
#include "machine.h"
#include "options.h"
#include "plan.h"
#include "plan_card.h"
#include "plan_rates.h"
#include "train_open.h"

#include <stdio.h>

#define MIB ((double)(1 << 20))
#define GIB ((double)(1 << 30))

typedef struct {
    const char *config;
    nib_option_list overrides;
    double memory;    /* GiB; 0: what is available */
    const char *card; /* NULL: this machine */
    int64_t length;   /* of a document; 0: data.max_length */
    int64_t gpus;     /* 0: not given */
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    const nib_option options[] = {
        {.name = "CONFIG", .kind = NIB_OPTION_ARGUMENT, .value = &a->config, .required = true},
        {.name = "--set", .kind = NIB_OPTION_REPEATED, .value = &a->overrides},
        {.name = "--memory", .kind = NIB_OPTION_NUMBER, .value = &a->memory, .low = 1e-6, .high = 1e6},
        {.name = "--card", .kind = NIB_OPTION_TEXT, .value = &a->card},
        {.name = "--length", .kind = NIB_OPTION_INTEGER, .value = &a->length, .low = 1, .high = 1 << 20},
        {.name = "--gpus", .kind = NIB_OPTION_INTEGER, .value = &a->gpus, .low = 1, .high = 1 << 20},
    };
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    if (a->card == NULL && (a->gpus > 0 || a->length > 0)) a->card = "H100";
    return NIB_OK;
}

/* The first `arenas` of `classes` are exact. */
static void print_memory(const nib_memory_class *memory, int arenas, int classes, double peak)
{
    size_t exact = 0;
    printf("memory                    MiB\n");
    for (int i = 0; i < classes; i++) {
        printf("  %-18s %10.1f\n", memory[i].name, (double)memory[i].bytes / MIB);
        exact += i < arenas ? memory[i].bytes : 0;
        if (i + 1 == arenas) printf("  %-18s %10.1f  exactly (%zu bytes)\n", "= in arenas", (double)exact / MIB, exact);
    }
    printf("  %-18s %10.1f  expected\n", "= peak", peak / MIB);
}

static void print_choice(const nib_training *t, const nib_plan *plan, double memory)
{
    printf("micro-batches of up to %lld tokens (the largest holds %lld, %lld targets), %lld slot%s, recompute %s\n",
           (long long)t->config->train.micro_batch_tokens, (long long)plan->T, (long long)plan->N,
           (long long)t->config->train.slots, t->config->train.slots == 1 ? "" : "s",
           nib_recompute_name(plan->recompute));
    printf("  the most tokens, then the least recomputing, that fit into %.2f GiB\n\n", memory / GIB);
}

static void print_seconds(const char *name, double seconds, double sum)
{
    if (seconds > 0) printf("  %-18s %10.4f  %4.0f %%\n", name, seconds, 100 * seconds / sum);
}

/* Of one step. */
static void print_kinds(const nib_work_seconds *s, double steps, double sum)
{
    printf("\na step                      s  share\n");
    print_seconds("base products", s->base / steps, sum);
    print_seconds("base, fp8", s->fp8 / steps, sum);
    print_seconds("LoRA", s->lora / steps, sum);
    print_seconds("attention", s->attention / steps, sum);
    print_seconds("loss", s->loss / steps, sum);
    print_seconds("elementwise", s->elementwise / steps, sum);
    print_seconds("optimizer", s->optimizer / steps, sum);
}

static void print_time(const nib_training *t, const nib_plan *plan, const nib_rates *rates)
{
    nib_work_seconds s = nib_work_time(&plan->work, rates);
    double steps = (double)plan->steps;
    print_kinds(&s, steps, s.sum / steps);
    printf("  %-18s %10.4f  modelled\n", "= sum", s.sum / steps);
    printf("  %.0f tokens, of which %.0f computed (%.2f times fewer by shared prefixes), %.0f supervised\n",
           (double)plan->tokens / steps, (double)plan->computed_tokens / steps,
           (double)plan->tokens / (double)plan->computed_tokens, (double)plan->supervised_tokens / steps);
    double seconds = s.sum / steps * (double)t->schedule.steps;
    printf("  %.0f tokens/s; %lld steps in %d:%02d:%02d\n", (double)plan->tokens / s.sum, (long long)t->schedule.steps,
           (int)(seconds / 3600), (int)(seconds / 60) % 60, (int)seconds % 60);
}

/* memory: bytes, 0 for what the device has. */
static nib_status plan_run(nib_training *t, size_t memory)
{
    nib_plan plan;
    nib_rates rates;
    nib_model_config model;
    nib_model_options options = nib_config_model(t->config, true);
    nib_train_settle(t->config);
    NIB_TRY(nib_train_open_data(t));
    NIB_TRY(nib_open_model_config(t->config->model, &model));
    if (memory == 0) NIB_TRY(nib_plan_memory(t->ops, 1, &memory));
    nib_status chosen = nib_plan_choose(t, memory, &plan);
    if (chosen != NIB_OK && chosen != NIB_ERROR_MEMORY) return chosen;
    if (plan.classes == 0) return chosen; /* not even the plan had memory */
    if (chosen == NIB_OK) print_choice(t, &plan, (double)memory);
    print_memory(plan.memory, plan.arenas, plan.classes, (double)plan.peak);
    if (chosen != NIB_OK) return chosen;
    NIB_TRY(nib_rates_measure(t->ops, &options, &model, plan.computed_tokens / plan.steps, &rates));
    print_time(t, &plan, &rates);
    return NIB_OK;
}

/* A step of the plan is one micro-batch on each GPU. */
static void print_card(const nib_card_question *q, const nib_card_plan *plan, bool fits)
{
    double sum = plan->step.sum + plan->dequantize + plan->exchange;
    printf("%d x %s, documents of %lld tokens, all supervised: micro-batches of %lld tokens, recompute %s\n", q->gpus,
           q->card->name, (long long)q->length, (long long)plan->T, nib_recompute_name(plan->recompute));
    printf(fits ? "  the fastest of those that fit into %.1f GiB\n\n" : "  the smallest, for %.1f GiB\n\n",
           q->memory / GIB);
    print_memory(plan->memory, plan->arenas, plan->classes, plan->peak);
    if (!fits) return;
    print_kinds(&plan->step, 1, sum);
    print_seconds("dequantising", plan->dequantize, sum);
    print_seconds("exchange", plan->exchange, sum);
    printf("  %-18s %10.4f  modelled, not measured\n", "= sum", sum);
    printf("  %.0f tokens/s\n", plan->tokens_per_second);
}

static nib_status plan_card(const nib_config *config, const arguments *a)
{
    nib_model_options options = nib_config_model(config, true);
    nib_card_question question = {.gpus = a->gpus > 0 ? (int)a->gpus : 1,
                                  .length = a->length > 0 ? a->length : config->data.max_length,
                                  .shard_base = config->parallel.shard_base,
                                  .shard_optimizer = config->parallel.shard_optimizer};
    nib_card_plan plan;
    NIB_TRY(nib_card_find(a->card, &question.card));
    question.memory = a->memory > 0 ? a->memory * GIB : question.card->memory;
    nib_status status = nib_card_plan_make(&options, &question, &plan);
    if (plan.classes > 0) print_card(&question, &plan, status == NIB_OK);
    return status;
}

static nib_status run(int argc, char **argv)
{
    nib_config config = {0};
    nib_training training = {.config = &config, .folder.lock = -1, .metrics.fd = -1};
    arguments a = {0};
    nib_status status;
    NIB_TRY_GOTO(read_arguments(argc, argv, &a), done);
    NIB_TRY_GOTO(nib_config_read(a.config, a.overrides.items, (int)a.overrides.count, &config), done);
    if (a.card != NULL) {
        status = plan_card(&config, &a);
        goto done;
    }
    status = plan_run(&training, (size_t)(a.memory * GIB));
done:
    nib_train_close(&training);
    nib_config_free(&config);
    nib_free(a.overrides.items);
    return status;
}

const nib_command nib_command_plan = {
    .name = "plan",
    .summary = "memory and time of a run, before anything is allocated",
    .usage =
        "usage: nibble plan CONFIG [--set a.b=value]... [--memory GiB]\n"
        "       nibble plan CONFIG [--card NAME] [--gpus N] [--length L] [--memory GiB] [--set a.b=value]...\n\n"
        "Prints what train would choose (tokens of a micro-batch, slots, recompute policy), the memory of each class\n"
        "with the peak of the process, and the time of a step by kind of work. The data is read, of the model only\n"
        "its header.\n\n"
        "  --memory GiB  plan for so much memory instead of what this machine, or the card, has; exit 71 if nothing\n"
        "                fits\n"
        "  --card NAME   plan for a GPU that need not be here: A100, H100, H200, B200, L40S, A6000, RTX3090, RTX4090,\n"
        "                RTX5090 (H100 where only --gpus or --length is given). Of the model only its config.json is "
        "read,\n"
        "                of the data nothing\n"
        "  --gpus N      so many of them, each with a batch of its own; with parallel.shard_base each holds its part "
        "of\n"
        "                the base\n"
        "  --length L    tokens of a document (data.max_length)\n",
    .run = run,
};
