/* nibble score: the log-likelihood of rows, one JSON line each, with prefixes that rows share computed once. */
#include "command.h"
#include "open.h"

#include "base/buffer.h"
#include "base/log.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define GROUP_ROWS         64   /* rows whose prefixes are shared */
#define MICRO_BATCH_TOKENS 2048 /* a longer row has a micro-batch of its own */

typedef struct {
    const char *model, *adapter, *data, *out;
    nib_quantization quantization;
    nib_dtype compute;
    nib_device device;
    bool per_token;
} arguments;

static nib_status choose(const char *flag, const char *value, const char *first, const char *second, bool *is_second)
{
    *is_second = strcmp(value, second) == 0;
    if (*is_second || strcmp(value, first) == 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_USAGE, "%s %s: expected %s or %s", flag, value, first, second);
}

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){.quantization = NIB_QUANT_NF4, .compute = NIB_DTYPE_F32, .device = NIB_DEVICE_AUTO};
    bool compute_given = false;
    const struct {
        const char *flag, **out;
    } texts[] = {{"--model", &a->model}, {"--adapter", &a->adapter}, {"--data", &a->data}, {"--out", &a->out}};
    for (int i = 0; i < argc; i++) {
        bool second;
        size_t t = 0;
        while (t < 4 && strcmp(argv[i], texts[t].flag) != 0) t++;
        if (strcmp(argv[i], "--per-token") == 0) {
            a->per_token = true;
        } else if (i + 1 == argc) {
            return NIB_FAIL(NIB_ERROR_USAGE, "unknown argument or missing value: '%s'", argv[i]);
        } else if (t < 4) {
            *texts[t].out = argv[++i];
        } else if (strcmp(argv[i], "--quant") == 0) {
            NIB_TRY(choose("--quant", argv[++i], "nf4", "none", &second));
            a->quantization = second ? NIB_QUANT_NONE : NIB_QUANT_NF4;
        } else if (strcmp(argv[i], "--compute") == 0) {
            NIB_TRY(choose("--compute", argv[++i], "fp32", "bf16", &second));
            a->compute = second ? NIB_DTYPE_BF16 : NIB_DTYPE_F32;
            compute_given = true;
        } else if (strcmp(argv[i], "--device") == 0) {
            NIB_TRY(nib_parse_device(argv[++i], &a->device));
        } else {
            return NIB_FAIL(NIB_ERROR_USAGE, "unknown argument: '%s'", argv[i]);
        }
    }
    if (a->model == NULL || a->data == NULL || a->out == NULL)
        return NIB_FAIL(NIB_ERROR_USAGE, "--model M, --data F and --out O are needed");
    if (!compute_given && (a->device == NIB_DEVICE_CUDA || a->device == NIB_DEVICE_EMULATED))
        a->compute = NIB_DTYPE_BF16;
    return NIB_OK;
}

/* The micro-batches that a model has room for. */
typedef struct {
    int64_t T, N;
} reserved;

static nib_status reserve(nib_model *model, const nib_micro_batch *batch, reserved *room)
{
    if (batch->T <= room->T && batch->N <= room->N) return NIB_OK;
    if (room->T < MICRO_BATCH_TOKENS) room->T = MICRO_BATCH_TOKENS;
    if (room->T < batch->T) room->T = batch->T;
    if (room->N < batch->N) room->N = batch->N;
    return nib_model_reserve(model, room->T, room->N, NIB_RECOMPUTE_NONE, false);
}

/* value[start[row] + position] of every target of the rows; others stay NaN. */
static nib_status score_rows(nib_model *model, const nib_row *rows, int64_t count, const int64_t *start, float *value,
                             reserved *room)
{
    nib_pack pack = {0};
    nib_status status;
    float *nll = NULL;
    nib_pack_options options = {
        .slots = 1, .micro_batch_tokens = MICRO_BATCH_TOKENS, .share_prefixes = true, .pack = true};
    NIB_TRY(nib_pack_step(rows, count, options, &pack));
    nll = nib_calloc((size_t)pack.supervised_tokens, sizeof *nll);
    if (nll == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the scores of %lld rows", (long long)count);
        goto done;
    }
    for (int b = 0; b < pack.micro_batches; b++) {
        const nib_micro_batch *batch = &pack.micro_batch[b];
        NIB_TRY_GOTO(reserve(model, batch, room), done);
        NIB_TRY_GOTO(nib_model_score_batch(model, batch, nll), done);
        for (int64_t i = 0; i < batch->N; i++)
            value[start[batch->target_sample[i]] + batch->target_position[i]] = nll[i];
    }
    status = NIB_OK;
done:
    nib_free(nll);
    nib_pack_free(&pack);
    return status;
}

static void append_row(nib_buffer *out, const float *value, int32_t length, bool per_token, double *nll,
                       int64_t *tokens)
{
    double sum = 0;
    int64_t n = 0;
    for (int32_t i = 0; i < length; i++)
        if (!isnan(value[i])) {
            sum += (double)value[i];
            n++;
        }
    nib_buffer_format(out, "{\"nll\": %.9g, \"tokens\": %lld", sum, (long long)n);
    if (per_token) {
        const char *separator = ", \"logprobs\": [";
        for (int32_t i = 0; i < length; i++)
            if (!isnan(value[i])) {
                nib_buffer_format(out, "%s%.9g", separator, -(double)value[i]);
                separator = ", ";
            }
        nib_buffer_char(out, ']');
    }
    nib_buffer_text(out, "}\n");
    *nll += sum;
    *tokens += n;
}

static nib_status score_group(nib_model *model, const nib_dataset *data, int64_t first, int64_t count, bool per_token,
                              reserved *room, nib_buffer *out, double *nll, int64_t *tokens)
{
    nib_row rows[GROUP_ROWS];
    int64_t start[GROUP_ROWS + 1] = {0};
    for (int64_t i = 0; i < count; i++) {
        rows[i] = nib_dataset_row(data, first + i);
        start[i + 1] = start[i] + rows[i].length;
    }
    float *value = nib_calloc((size_t)start[count], sizeof *value);
    if (value == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the scores of %lld rows", (long long)count);
    for (int64_t i = 0; i < start[count]; i++) value[i] = NAN;
    nib_status status = score_rows(model, rows, count, start, value, room);
    for (int64_t i = 0; i < count && status == NIB_OK; i++)
        append_row(out, value + start[i], rows[i].length, per_token, nll, tokens);
    nib_free(value);
    return status;
}

static nib_status score_all(nib_model *model, const nib_dataset *data, const arguments *a)
{
    nib_buffer out = {0};
    reserved room = {0};
    double nll = 0;
    int64_t tokens = 0, size = nib_dataset_size(data);
    nib_status status = NIB_OK;
    for (int64_t first = 0; first < size && status == NIB_OK; first += GROUP_ROWS) {
        int64_t count = size - first < GROUP_ROWS ? size - first : GROUP_ROWS;
        status = score_group(model, data, first, count, a->per_token, &room, &out, &nll, &tokens);
    }
    if (status == NIB_OK && out.failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the scores", a->out);
    if (status == NIB_OK) status = nib_file_replace(a->out, out.data, out.length);
    if (status == NIB_OK) nib_log("loss %.9g", nll / (double)tokens);
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
    NIB_TRY_GOTO(nib_text_open(a.model, NULL, NULL, &text), done);
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
