/* nibble score: the log-likelihood of rows, one JSON line each, with prefixes that rows share computed once. */
#include "command.h"
#include "open.h"
#include "options.h"

#include "base/buffer.h"
#include "base/log.h"
#include "eval/score.h"

#include <math.h>
#include <stdio.h>

typedef struct {
    const char *model, *adapter, *data, *out;
    nib_quantization quantization;
    nib_dtype compute;
    nib_device device;
    bool per_token;
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    const nib_dtype unset = NIB_DTYPE_COUNT;
    *a = (arguments){.quantization = NIB_QUANT_NF4, .compute = unset, .device = NIB_DEVICE_AUTO};
    const nib_option options[] = {
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &a->model, .required = true},
        {.name = "--adapter", .kind = NIB_OPTION_PATH, .value = &a->adapter},
        {.name = "--data", .kind = NIB_OPTION_PATH, .value = &a->data, .required = true},
        {.name = "--out", .kind = NIB_OPTION_PATH, .value = &a->out, .required = true},
        {.name = "--per-token", .kind = NIB_OPTION_FLAG, .value = &a->per_token},
        {.name = "--quant", .kind = NIB_OPTION_QUANT, .value = &a->quantization},
        {.name = "--compute", .kind = NIB_OPTION_COMPUTE, .value = &a->compute},
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &a->device},
    };
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    const bool bf16_only = a->device == NIB_DEVICE_CUDA || a->device == NIB_DEVICE_EMULATED;
    if (a->compute == unset) a->compute = bf16_only ? NIB_DTYPE_BF16 : NIB_DTYPE_F32;
    return NIB_OK;
}

static void append_row(nib_buffer *out, const nib_scored_group *group, int64_t i, bool per_token)
{
    nib_sample_score score = nib_score_of_sample(group, i);
    nib_buffer_format(out, "{\"nll\": %.9g, \"tokens\": %lld", score.nll, (long long)score.tokens);
    if (per_token) {
        const char *separator = ", \"logprobs\": [";
        for (int64_t p = group->start[i]; p < group->start[i + 1]; p++)
            if (!isnan(group->nll[p])) {
                nib_buffer_format(out, "%s%.9g", separator, -(double)group->nll[p]);
                separator = ", ";
            }
        nib_buffer_char(out, ']');
    }
    nib_buffer_text(out, "}\n");
}

static nib_status score_all(nib_model *model, const nib_dataset *data, const arguments *a)
{
    nib_buffer out = {0};
    nib_scorer scorer = {.model = model};
    nib_sample_score all = {0};
    nib_status status = NIB_OK;
    for (int64_t first = 0; first < nib_dataset_size(data) && status == NIB_OK; first += NIB_SCORE_GROUP) {
        nib_scored_group group;
        status = nib_score_group(&scorer, data, first, &group);
        for (int64_t i = 0; i < group.count && status == NIB_OK; i++) {
            nib_sample_score score = nib_score_of_sample(&group, i);
            append_row(&out, &group, i, a->per_token);
            all.nll += score.nll;
            all.tokens += score.tokens;
        }
        nib_scored_group_free(&group);
    }
    if (status == NIB_OK && out.failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the scores", a->out);
    if (status == NIB_OK) status = nib_file_replace(a->out, out.data, out.length);
    if (status == NIB_OK) nib_log("loss %.9g", all.nll / (double)all.tokens);
    nib_buffer_free(&out);
    return status;
}

static nib_status run(int argc, char **argv)
{
    arguments a;
    nib_ops *ops = NULL;
    nib_text text = {0};
    nib_model_config config;
    nib_dataset *data = NULL;
    nib_model *model = NULL;
    nib_status status;
    NIB_TRY(read_arguments(argc, argv, &a));
    NIB_TRY(nib_check_output_file(a.out, &a.data, 1));
    NIB_TRY_GOTO(nib_text_open_for(a.model, a.adapter, NULL, NULL, &text), done);
    NIB_TRY_GOTO(nib_open_model_config(a.model, &config), done);
    nib_data_source source = {.path = a.data};
    nib_data_options options = {.max_length = config.max_positions,
                                .over_long = NIB_OVER_LONG_ERROR,
                                .tokenizer = text.tokenizer,
                                .chat_template = text.chat_template,
                                .bos_token = text.bos_token,
                                .eos_token = text.eos_token};
    NIB_TRY_GOTO(nib_dataset_load(&source, 1, &options, config.vocabulary, &data), done);
    NIB_TRY_GOTO(nib_open_backend(a.device, a.compute, 0, &ops), done);
    nib_model_options open = {
        .path = a.model, .quantization = a.quantization, .compute = a.compute, .adapter = a.adapter};
    NIB_TRY_GOTO(nib_model_open(ops, &open, &model), done);
    status = score_all(model, data, &a);
done:
    nib_model_close(model);
    nib_close_backend(ops);
    if (data != NULL) nib_dataset_free(data);
    nib_text_close(&text);
    return status;
}

const nib_command nib_command_score = {
    .name = "score",
    .summary = "log-likelihood of rows",
    .usage = "usage: nibble score --model M [--adapter A] [--quant nf4|none] [--compute fp32|bf16] [--per-token]\n"
             "                    [--device auto|cpu|cuda|emulated] --data F --out O\n\n"
             "For each row of F one JSON line in O: {\"nll\": sum, \"tokens\": supervised, \"logprobs\": [...]}, with\n"
             "--per-token for the last. Standard error ends with the loss: nll over tokens of all rows.\n"
             "M is a Hugging Face folder or a .gguf file, A a folder of a PEFT adapter.\n"
             "Defaults: --quant nf4 --device auto --compute fp32, which is the CPU's; bf16 with --device cuda.\n",
    .run = run,
};
