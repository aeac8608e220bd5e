/* nibble plan: the memory of a run by class, before anything is allocated. */
#include "command.h"
#include "open.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CLASSES    16
#define DEFAULT_TOKENS 4096 /* of a micro-batch whose size the config leaves to the plan */
#define GIB            ((double)(1 << 30))

typedef struct {
    const char *config;
    const char **overrides;
    int override_count;
    double memory; /* GiB; 0: not stated */
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    for (int i = 0; i < argc; i++) {
        bool last = i + 1 == argc;
        if (strcmp(argv[i], "--set") == 0 && !last) {
            a->overrides[a->override_count++] = argv[++i];
        } else if (strcmp(argv[i], "--memory") == 0 && !last) {
            char *end;
            a->memory = strtod(argv[++i], &end);
            if (*end != 0 || !(a->memory > 0))
                return NIB_FAIL(NIB_ERROR_USAGE, "--memory %s: expected a number of GiB", argv[i]);
        } else if (argv[i][0] != '-' && a->config == NULL) {
            a->config = argv[i];
        } else {
            return NIB_FAIL(NIB_ERROR_USAGE, "unknown argument or missing value: '%s'", argv[i]);
        }
    }
    return a->config != NULL ? NIB_OK : NIB_FAIL(NIB_ERROR_USAGE, "a CONFIG is needed");
}

static double print_policy(const char *name, const nib_memory_class *classes, int count)
{
    double total = 0;
    printf("%-10s", name);
    for (int i = 0; i < count; i++) {
        printf("  %14.3f", (double)classes[i].bytes / GIB);
        total += (double)classes[i].bytes / GIB;
    }
    printf("  %10.3f\n", total);
    return total;
}

static nib_status plan(const nib_config *config, double memory)
{
    static const char *const names[] = {"none", "gate_up", "layer"};
    nib_model_options options = nib_config_model(config, true);
    int64_t T = config->train.micro_batch_tokens > 0 ? config->train.micro_batch_tokens : DEFAULT_TOKENS;
    double least = 0;
    for (int policy = NIB_RECOMPUTE_NONE; policy <= NIB_RECOMPUTE_LAYER; policy++) {
        nib_memory_class classes[MAX_CLASSES];
        int count;
        NIB_TRY(nib_model_plan(&options, T, T, (nib_recompute)policy, classes, MAX_CLASSES, &count));
        if (policy == NIB_RECOMPUTE_NONE) {
            printf("GiB for micro-batches of %lld tokens\n%-10s", (long long)T, "recompute");
            for (int i = 0; i < count; i++) printf("  %14s", classes[i].name);
            printf("  %10s\n", "sum");
        }
        least = print_policy(names[policy], classes, count);
    }
    if (memory > 0 && least > memory)
        return NIB_FAIL(NIB_ERROR_MEMORY, "at least %.2f GiB are needed, %.2f GiB given; lower \"micro_batch_tokens\"",
                        least, memory);
    return NIB_OK;
}

static nib_status run(int argc, char **argv)
{
    nib_config config = {0};
    arguments a = {.overrides = nib_calloc((size_t)argc + 1, sizeof *a.overrides)};
    nib_status status;
    if (a.overrides == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the arguments");
    NIB_TRY_GOTO(read_arguments(argc, argv, &a), done);
    NIB_TRY_GOTO(nib_config_read(a.config, a.overrides, a.override_count, &config), done);
    status = plan(&config, a.memory);
done:
    nib_config_free(&config);
    nib_free(a.overrides);
    return status;
}

const nib_command nib_command_plan = {
    .name = "plan",
    .summary = "memory of a run, before anything is allocated",
    .usage =
        "usage: nibble plan CONFIG [--set a.b=value]... [--memory GiB]\n\n"
        "Prints the memory of each class of tensors for each recompute policy. With --memory: exit 71 if not even\n"
        "the smallest fits. Nothing but the model's header is read.\n",
    .run = run,
};
