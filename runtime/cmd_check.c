/* nibble check: what a training run would see. Reads all data as `train` does, so that it fails where train would. */
#include "check_print.h"
#include "command.h"
#include "open.h"
#include "options.h"
#include "token_choice.h"

#include "base/utf8.h"
#include "data/prefetch.h"

#include <stdio.h>

enum { MAX_STEPS = 200, LEAKS_SHOWN = 3 };

static nib_status print_leaks(const nib_dataset *train, const nib_dataset *eval)
{
    int64_t *leak, count, line;
    NIB_TRY(nib_dataset_leaks(train, eval, &leak, &count));
    for (int64_t i = 0; i < count && i < LEAKS_SHOWN; i++) {
        const char *file = nib_dataset_file(eval, leak[i], &line);
        printf("  leak: %s:%lld is also in the training data\n", file, (long long)line);
    }
    printf("leaks: %lld of %lld evaluation samples are in the training data\n", (long long)count,
           (long long)nib_dataset_size(eval));
    nib_free(leak);
    return NIB_OK;
}

/* Tokens computed and held by the first steps of the run, packed as train packs them. */
static nib_status measure_sharing(const nib_config *config, const nib_step_plan *plan, int64_t steps)
{
    int64_t computed = 0, held = 0;
    for (int64_t step = 0; step < steps; step++) {
        nib_step_data data;
        NIB_TRY(nib_step_data_make(plan, step * plan->batch_size, &data));
        computed += data.pack.computed_tokens;
        held += data.pack.row_tokens;
        nib_step_data_free(&data);
    }
    printf("shared prefixes: %lld of %lld tokens are computed in the first %lld steps, %.2f times fewer%s\n",
           (long long)computed, (long long)held, (long long)steps, (double)held / (double)computed,
           config->has_lora && config->lora.dropout > 0 ? " (sharing is off with lora_dropout)" : "");
    return NIB_OK;
}

static nib_status print_sharing(const nib_config *config, const nib_model_config *model, const nib_dataset *data)
{
    nib_mixture mixture;
    int64_t batch = config->train.batch_size;
    NIB_TRY(nib_dataset_mixture(data, (uint64_t)config->train.seed, config->data.shuffle, &mixture));
    int64_t steps = (mixture.epoch_size + batch - 1) / batch;
    nib_check_print_shares(data, &mixture);
    printf("an epoch: %lld samples, %lld steps of %lld\n", (long long)mixture.epoch_size, (long long)steps,
           (long long)batch);
    if (steps > MAX_STEPS) steps = MAX_STEPS;
    nib_step_plan plan = {
        .data = data,
        .mixture = &mixture,
        .pack = {.slots = config->train.slots > 0 ? (int)config->train.slots : 1,
                 .micro_batch_tokens =
                     config->train.micro_batch_tokens > 0 ? config->train.micro_batch_tokens : INT32_MAX,
                 .share_prefixes = config->data.share_prefixes && !(config->has_lora && config->lora.dropout > 0),
                 .pack = config->data.pack,
                 .token_keys = nib_model_token_keys(model)},
        .samples = steps * batch,
        .batch_size = batch};
    nib_status status = measure_sharing(config, &plan, steps);
    nib_mixture_free(&mixture);
    return status;
}

/* Tokens of the data whose rows of the embedding look untrained, and how many rows the run would train. */
static nib_status print_tokens(nib_config *config, const nib_text *text, const nib_dataset *train, int64_t vocabulary)
{
    nib_buffer warnings = {0};
    nib_status status = nib_token_choice_settle(config, text, train, vocabulary, &warnings);
    if (status == NIB_OK && warnings.length > 0) nib_utf8_print(stdout, warnings.data, warnings.length);
    if (status == NIB_OK && config->lora.tokens.ids > 0)
        printf("%lld rows of the embedding are trained with the adapter\n", (long long)config->lora.tokens.ids);
    nib_buffer_free(&warnings);
    return status;
}

static nib_status check_data(nib_config *config, const nib_model_config *model, const nib_text *text,
                             nib_dataset *train, const nib_dataset *eval)
{
    NIB_TRY(nib_dataset_verify(train));
    NIB_TRY(nib_dataset_count_duplicates(train));
    nib_check_print_header();
    NIB_TRY(nib_check_print_sources("train", train));
    if (eval != NULL) NIB_TRY(nib_check_print_sources("eval", eval));
    putchar('\n');
    NIB_TRY(print_sharing(config, model, train));
    if (eval != NULL) NIB_TRY(print_leaks(train, eval));
    nib_check_print_terminators(text->tokenizer, train);
    NIB_TRY(print_tokens(config, text, train, model->vocabulary));
    return nib_check_print_masks(text->tokenizer, train);
}

static nib_status run(int argc, char **argv)
{
    const char *path = NULL;
    nib_option_list overrides = {0};
    nib_config config = {0};
    nib_text text = {0};
    nib_model_config model = {0};
    nib_dataset *train = NULL, *eval = NULL;
    nib_status status;

    const nib_option options[] = {
        {.name = "CONFIG", .kind = NIB_OPTION_ARGUMENT, .value = &path, .required = true},
        {.name = "--set", .kind = NIB_OPTION_REPEATED, .value = &overrides},
    };
    NIB_TRY_GOTO(nib_options_read(argc, argv, options, sizeof options / sizeof *options), done);
    NIB_TRY_GOTO(nib_config_read(path, overrides.items, (int)overrides.count, &config), done);
    NIB_TRY_GOTO(nib_open_model_config(config.model, &model), done);
    NIB_TRY_GOTO(nib_text_open(config.model, config.tokenizer, config.data.chat_template, &text), done);
    NIB_TRY_GOTO(nib_open_data(&config, &config.data.train, &text, model.vocabulary, true, &train), done);
    if (config.data.eval.count > 0)
        NIB_TRY_GOTO(nib_open_data(&config, &config.data.eval, &text, model.vocabulary, false, &eval), done);
    status = check_data(&config, &model, &text, train, eval);
done:
    nib_dataset_free(eval);
    nib_dataset_free(train);
    nib_text_close(&text);
    nib_config_free(&config);
    nib_free(overrides.items);
    return status;
}

const nib_command nib_command_check = {
    .name = "check",
    .summary = "shows what would be trained: tokens, masks, lengths, duplicates, leaks",
    .usage =
        "usage: nibble check CONFIG [--set a.b=value]...\n"
        "\n"
        "Reads all data of a config as train does, and trains nothing. Shows the tokens of each source, how far\n"
        "shared prefixes make a step smaller, evaluation rows that are in the training data, the token that ends a\n"
        "turn, tokens whose embedding row looks untrained (lora.trainable_token_indices trains such rows), and one\n"
        "sample of each source with what is supervised: green on a terminal, else between [[ and ]].\n"
        "\n"
        "  --set a.b=value   replaces a value of the config\n"
        "\n"
        "Exit code 65 and the file and line if train would refuse the data.\n",
    .run = run,
};
