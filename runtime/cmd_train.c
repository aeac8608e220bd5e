#include "base/log.h"
#include "command.h"
#include "device.h"
#include "signals.h"
#include "train.h"

#include <string.h>

#define MAX_OVERRIDES 256

static nib_status parse_and_run(int argc, char **argv)
{
    const char *overrides[MAX_OVERRIDES], *path = NULL, *device_name = NULL;
    int count = 0;
    bool resume = false;
    for (int i = 0; i < argc; i++) {
        bool set = strcmp(argv[i], "--set") == 0;
        if (strcmp(argv[i], "--resume") == 0) {
            resume = true;
        } else if (set || strcmp(argv[i], "--device") == 0) {
            if (argv[i + 1] == NULL) return NIB_FAIL(NIB_ERROR_USAGE, "%s needs a value", argv[i]);
            if (set && count == MAX_OVERRIDES)
                return NIB_FAIL(NIB_ERROR_USAGE, "more than %d options --set", MAX_OVERRIDES);
            i++;
            if (set)
                overrides[count++] = argv[i];
            else
                device_name = argv[i];
        } else if (argv[i][0] == '-') {
            return NIB_FAIL(NIB_ERROR_USAGE, "unknown option %s; nibble train --help lists them", argv[i]);
        } else if (path != NULL) {
            return NIB_FAIL(NIB_ERROR_USAGE, "two configurations, %s and %s; expected one", path, argv[i]);
        } else {
            path = argv[i];
        }
    }
    if (path == NULL) return NIB_FAIL(NIB_ERROR_USAGE, "no configuration given; nibble train --help tells more");
    nib_device device = NIB_DEVICE_AUTO;
    if (device_name != NULL) NIB_TRY(nib_parse_device(device_name, &device));
    nib_ranks ranks;
    nib_collectives *collectives;
    NIB_TRY(nib_signals_watch()); /* what is asked while ranks meet and files are read is done before the first step */
    NIB_TRY(nib_ranks_read(&ranks));
    if (ranks.rank > 0) nib_log_quiet();
    NIB_TRY(nib_collectives_open(&ranks, &collectives));
    nib_config config;
    nib_status status = nib_config_read(path, overrides, count, &config);
    if (status == NIB_OK) {
        if (device_name != NULL) config.device = (int)device;
        status = nib_train(&config, resume, collectives);
        nib_config_free(&config);
    }
    nib_signals_settled();
    nib_status closed = collectives->close(collectives, status);
    return status == NIB_OK ? closed : status;
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
        "at once, unless it is SIGUSR1 again. SIGUSR2 changes nothing.\n",
    .run = parse_and_run,
};
