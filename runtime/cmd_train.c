#include "base/log.h"
#include "command.h"
#include "device.h"
#include "options.h"
#include "signals.h"
#include "train.h"

typedef struct {
    const char *config, *device_name;
    nib_option_list overrides;
    nib_device device; /* if there is a name */
    bool resume;
} arguments;

static nib_status read_and_train(const arguments *a, nib_collectives *collectives)
{
    nib_config config;
    NIB_TRY(nib_config_read(a->config, a->overrides.items, (int)a->overrides.count, &config));
    if (a->device_name != NULL) config.device = (int)a->device;
    nib_status status = nib_train(&config, a->resume, collectives);
    nib_config_free(&config);
    return status;
}

static nib_status run_ranks(const arguments *a)
{
    nib_ranks ranks;
    nib_collectives *collectives;
    NIB_TRY(nib_signals_watch()); /* what is asked while ranks meet and files are read is done before the first step */
    NIB_TRY(nib_ranks_read(&ranks));
    nib_ranks_share_processors(&ranks);
    if (ranks.rank > 0) nib_log_quiet();
    NIB_TRY(nib_collectives_open(&ranks, &collectives));
    nib_status status = read_and_train(a, collectives);
    nib_signals_settled();
    nib_status closed = collectives->close(collectives, status);
    return status == NIB_OK ? closed : status;
}

static nib_status run(int argc, char **argv)
{
    arguments a = {0};
    const nib_option options[] = {
        {.name = "CONFIG", .kind = NIB_OPTION_ARGUMENT, .value = &a.config, .required = true},
        {.name = "--set", .kind = NIB_OPTION_REPEATED, .value = &a.overrides},
        {.name = "--resume", .kind = NIB_OPTION_FLAG, .value = &a.resume},
        {.name = "--device", .kind = NIB_OPTION_TEXT, .value = &a.device_name},
    };
    nib_status status = nib_options_read(argc, argv, options, sizeof options / sizeof *options);
    if (status == NIB_OK && a.device_name != NULL) status = nib_parse_device(a.device_name, &a.device);
    if (status == NIB_OK) status = run_ranks(&a);
    nib_free(a.overrides.items);
    return status;
}

const nib_command nib_command_train = {
    .name = "train",
    .summary = "fine-tunes a model as a configuration says",
    .usage =
        "usage: nibble train CONFIG [--set a.b=value]... [--resume] [--device auto|cpu|cuda|emulated]\n\n"
        "Trains a LoRA adapter on the rows of CONFIG and writes the run into its \"output\" folder: adapter/ (the\n"
        "best by the evaluation data), metrics.jsonl, checkpoints/, log.txt. With \"lora\": null and\n"
        "\"quantization\": \"none\" it trains every weight, and model/ takes the place of adapter/.\n\n"
        "  --set a.b=value  overrides a value of CONFIG, for instance --set train.epochs=1; may be repeated\n"
        "  --resume         continues the run in the output folder; nothing to do if it is finished\n"
        "  --device D       where to compute\n\n"
        "SIGINT, SIGTERM or SIGUSR1 finishes the step, writes a checkpoint and exits with 75; a second one ends\n"
        "at once. SIGUSR2 changes nothing.\n",
    .run = run,
};
