/* nibble plan: the memory and time of a run, before anything is allocated. */
#include "base/log.h"
#include "command.h"
#include "machine.h"
#include "plan.h"
#include "plan_rates.h"
#include "train_open.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((double)(1 << 20))
#define GIB ((double)(1 << 30))

typedef struct {
    const char *config;
    const char **overrides;
    int override_count;
    double memory; /* GiB; 0: what is available */
    bool gpus;
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    for (int i = 0; i < argc; i++) {
        bool last = i + 1 == argc;
        char *end;
        if (strcmp(argv[i], "--set") == 0 && !last) {
            a->overrides[a->override_count++] = argv[++i];
        } else if (strcmp(argv[i], "--memory") == 0 && !last) {
            a->memory = strtod(argv[++i], &end);
            if (*end != 0 || !(a->memory > 0) || a->memory > 1e6)
                return NIB_FAIL(NIB_ERROR_USAGE, "--memory %s: expected a number of GiB", argv[i]);
        } else if (strcmp(argv[i], "--gpus") == 0 && !last) {
            long count = strtol(argv[++i], &end, 10);
            if (*end != 0 || count < 1 || count > 1 << 20)
                return NIB_FAIL(NIB_ERROR_USAGE, "--gpus %s: expected a number of GPUs", argv[i]);
            a->gpus = true;
        } else if (argv[i][0] != '-' && a->config == NULL) {
            a->config = argv[i];
        } else {
            return NIB_FAIL(NIB_ERROR_USAGE, "unknown argument or missing value: '%s'", argv[i]);
        }
    }
    if (a->config == NULL) return NIB_FAIL(NIB_ERROR_USAGE, "a CONFIG is needed");
    if (a->gpus)
        return NIB_FAIL(NIB_ERROR_DEVICE, "--gpus: this build has no CUDA backend, so there is nothing to plan for; "
                                          "build the preset cuda, or leave --gpus out");
    return NIB_OK;
}

static void print_memory(const nib_plan *plan)
{
    printf("memory                    MiB\n");
    for (int i = 0; i < plan->classes; i++) {
        printf("  %-18s %10.1f\n", plan->memory[i].name, (double)plan->memory[i].bytes / MIB);
        if (i + 1 == plan->arenas)
            printf("  %-18s %10.1f  exactly (%zu bytes)\n", "= in arenas", (double)plan->arena_bytes / MIB,
                   plan->arena_bytes);
    }
    printf("  %-18s %10.1f  expected\n", "= peak", (double)plan->peak / MIB);
}

static void print_choice(const nib_training *t, const nib_plan *plan, double memory)
{
    printf("micro-batches of up to %lld tokens (the largest holds %lld, %lld targets), %lld slot%s, recompute %s\n",
           (long long)t->config->train.micro_batch_tokens, (long long)plan->T, (long long)plan->N,
           (long long)t->config->train.slots, t->config->train.slots == 1 ? "" : "s",
           nib_recompute_name(plan->recompute));
    printf("  the most tokens, then the least recomputing, that fit into %.2f GiB\n\n", memory / GIB);
}

static void print_time(const nib_training *t, const nib_plan *plan, const nib_rates *rates)
{
    nib_work_seconds s = nib_work_time(&plan->work, rates);
    double steps = (double)plan->steps;
    const struct {
        const char *name;
        double seconds;
    } kinds[] = {{"base products", s.base},      {"LoRA", s.lora},
                 {"attention", s.attention},     {"loss", s.loss},
                 {"elementwise", s.elementwise}, {"optimizer", s.optimizer}};
    printf("\na step                      s  share\n");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        printf("  %-18s %10.4f  %4.0f %%\n", kinds[i].name, kinds[i].seconds / steps, 100 * kinds[i].seconds / s.sum);
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
    print_memory(&plan);
    if (chosen != NIB_OK) return chosen;
    NIB_TRY(nib_rates_measure(t->ops, &options, &model, plan.computed_tokens / plan.steps, &rates));
    print_time(t, &plan, &rates);
    return NIB_OK;
}

static nib_status run(int argc, char **argv)
{
    nib_config config = {0};
    nib_training training = {.config = &config, .folder.lock = -1, .metrics.fd = -1};
    arguments a = {.overrides = nib_calloc((size_t)argc + 1, sizeof *a.overrides)};
    nib_status status;
    if (a.overrides == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the arguments");
    NIB_TRY_GOTO(read_arguments(argc, argv, &a), done);
    NIB_TRY_GOTO(nib_config_read(a.config, a.overrides, a.override_count, &config), done);
    status = plan_run(&training, (size_t)(a.memory * GIB));
done:
    nib_train_close(&training);
    nib_config_free(&config);
    nib_free(a.overrides);
    return status;
}

const nib_command nib_command_plan = {
    .name = "plan",
    .summary = "memory and time of a run, before anything is allocated",
    .usage =
        "usage: nibble plan CONFIG [--set a.b=value]... [--memory GiB] [--gpus N]\n\n"
        "Prints what train would choose (tokens of a micro-batch, slots, recompute policy), the memory of each class\n"
        "with the peak of the process, and the time of a step by kind of work. The data is read, of the model only\n"
        "its header.\n\n"
        "  --memory GiB  plan for so much memory instead of what this machine has left; exit 71 if nothing fits\n"
        "  --gpus N      plan for N GPUs; exit 69 if this build has no CUDA backend\n",
    .run = run,
};
