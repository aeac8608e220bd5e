/* nibble export: an adapter in PEFT's form, a merged model, or a Modelfile, each with what a server needs beside it. */
#include "command.h"
#include "conversation.h"
#include "export_files.h"
#include "export_replay.h"
#include "options.h"

#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "export/difference.h"
#include "export/merge.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *adapter, *to, *out, *tokenizer, *chat_template;
    nib_device device;
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){0};
    const nib_option options[] = {
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &a->model, .required = true},
        {.name = "--adapter", .kind = NIB_OPTION_PATH, .value = &a->adapter},
        {.name = "--to", .kind = NIB_OPTION_TEXT, .value = &a->to, .required = true},
        {.name = "--out", .kind = NIB_OPTION_PATH, .value = &a->out, .required = true},
        {.name = "--tokenizer", .kind = NIB_OPTION_PATH, .value = &a->tokenizer},
        {.name = "--chat-template", .kind = NIB_OPTION_PATH, .value = &a->chat_template},
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &a->device},
    };
    return nib_options_read(argc, argv, options, sizeof options / sizeof *options);
}

/* Prompts that two models are compared on: sentences, or random ids where there is no tokenizer. */
enum { PROMPTS = 4, RANDOM_LENGTH = 24 };
typedef struct {
    nib_token_list ids[PROMPTS];
    nib_prompt prompts[PROMPTS];
} sample;

static nib_status make_sample(const nib_text *text, const nib_model_config *config, sample *s)
{
    static const char *const sentences[PROMPTS] = {
        "The capital of France is Paris, and the river that runs through it is the Seine.",
        "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
        "Wasser kocht bei 100 Grad Celsius, wenn der Luftdruck dem auf Meereshöhe entspricht.",
        "Which section of the archive does this package belong to? Answer with one word."};
    for (int p = 0; p < PROMPTS; p++) {
        nib_token_list *list = &s->ids[p];
        if (text->tokenizer != NULL) {
            nib_encode_options options = {.add_special = true};
            NIB_TRY(nib_tokenizer_encode(text->tokenizer, sentences[p], strlen(sentences[p]), options, list));
            for (size_t i = 0; i < list->count; i++)
                if (list->ids[i] >= config->vocabulary)
                    return NIB_FAIL(NIB_ERROR_DATA,
                                    "the tokenizer gives id %d, the model's vocabulary ends at %lld; is this another "
                                    "model's tokenizer?",
                                    list->ids[i], (long long)config->vocabulary - 1);
        } else {
            if (!nib_grow(&list->ids, &list->capacity, RANDOM_LENGTH, sizeof *list->ids))
                return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a prompt");
            for (uint64_t i = 0; i < RANDOM_LENGTH; i++) {
                uint32_t word[4];
                nib_philox((uint64_t)p, 0, i, word);
                list->ids[list->count++] = (int32_t)(word[0] % (uint32_t)config->vocabulary);
            }
        }
        s->prompts[p] = (nib_prompt){list->ids, (int32_t)list->count};
    }
    return NIB_OK;
}

static nib_status report_difference(nib_ops *ops, const arguments *a, nib_quantization quantization, const char *label,
                                    const sample *s)
{
    nib_logit_difference d;
    nib_model_options adapted = {.path = a->model, .adapter = a->adapter, .quantization = quantization};
    nib_model_options merged = {.path = a->out, .quantization = NIB_QUANT_NONE};
    NIB_TRY(nib_export_difference(ops, &adapted, &merged, s->prompts, PROMPTS, &d));
    printf(
        "%-28s largest difference %.4f, KL divergence %.3g nats, same likeliest token at %.1f %% of %lld positions\n",
        label, d.max_abs, d.mean_kl, 100.0 * d.same_best, d.positions);
    return NIB_OK;
}

/* What was written into a->out answers as the model did in training. */
static nib_status replay(const arguments *a, bool merged)
{
    nib_text written = {0};
    nib_model_options parts = {.path = a->model, .adapter = merged ? a->adapter : a->out};
    if (a->adapter == NULL) return NIB_OK;
    NIB_TRY(nib_text_open_for(a->out, a->out, NULL, NULL, &written));
    nib_status status =
        merged ? nib_export_replay_merged(a->adapter, &written, parts, (nib_model_options){.path = a->out}, a->device)
               : nib_export_replay(a->adapter, &written, parts, a->device);
    nib_text_close(&written);
    return status;
}

/* The merged model is opened again from its files, and compared with base and adapter. */
static nib_status measure_merge(const arguments *a, const sample *s)
{
    nib_ops *ops = NULL;
    nib_status status;
    NIB_TRY_GOTO(nib_open_backend(NIB_DEVICE_CPU, NIB_DTYPE_F32, 0, &ops), done);
    NIB_TRY_GOTO(report_difference(ops, a, NIB_QUANT_NONE, "against 16-bit and adapter:", s), done);
    if (a->adapter != NULL) status = report_difference(ops, a, NIB_QUANT_NF4, "against NF4 and adapter:", s);
done:
    nib_close_backend(ops);
    return status;
}

static nib_status export_merged(const arguments *a, const nib_text *text, const nib_model_config *config,
                                const nib_conversation *conversation)
{
    sample s = {0};
    nib_merge_summary summary;
    nib_status status;
    NIB_TRY_GOTO(make_sample(text, config, &s), done);
    NIB_TRY_GOTO(nib_export_merged(a->model, a->adapter, a->out, &summary), done);
    NIB_TRY_GOTO(nib_export_config(a->model, &summary.config, a->out), done);
    NIB_TRY_GOTO(nib_export_tokenizer(a->tokenizer != NULL ? a->tokenizer : a->model, a->out), done);
    NIB_TRY_GOTO(nib_export_chat_files(text, &summary.config, conversation->stop, conversation->stop_count, a->out),
                 done);
    printf("%s: %lld tensors in bf16 in %d file%s, %lld of them changed by the adapter\n", a->out, summary.tensors,
           summary.shards, summary.shards == 1 ? "" : "s", summary.adapted);
    NIB_TRY_GOTO(measure_merge(a, &s), done);
    status = replay(a, true);
done:
    for (int p = 0; p < PROMPTS; p++) nib_token_list_free(&s.ids[p]);
    return status;
}

/* The adapter is opened on its model, which checks every tensor, and written anew. */
static nib_status export_adapter(const arguments *a, const nib_text *text, const nib_conversation *conversation)
{
    nib_ops *ops = NULL;
    nib_model *model = NULL;
    nib_parameter *parameters;
    nib_status status;
    if (a->adapter == NULL) return NIB_FAIL(NIB_ERROR_USAGE, "--to adapter needs --adapter A");
    nib_model_options options = {.path = a->model, .adapter = a->adapter, .quantization = NIB_QUANT_NF4};
    options.compute = NIB_DTYPE_F32;
    NIB_TRY_GOTO(nib_open_backend(NIB_DEVICE_CPU, NIB_DTYPE_F32, 0, &ops), done);
    NIB_TRY_GOTO(nib_model_open(ops, &options, &model), done);
    NIB_TRY_GOTO(nib_model_save_adapter(model, a->out, a->model), done);
    NIB_TRY_GOTO(nib_export_tokenizer(a->tokenizer != NULL ? a->tokenizer : a->model, a->out), done);
    NIB_TRY_GOTO(
        nib_export_chat_files(text, nib_model_get_config(model), conversation->stop, conversation->stop_count, a->out),
        done);
    printf("%s: %d tensors in PEFT's form\n", a->out, nib_model_parameters(model, &parameters));
done:
    nib_model_close(model);
    nib_close_backend(ops);
    return status == NIB_OK ? replay(a, false) : status;
}

/* A Modelfile names model and adapter, which answer with the template that it was derived from. */
static nib_status export_modelfile(const arguments *a, const nib_text *text, const nib_model_config *config,
                                   const nib_conversation *conversation)
{
    NIB_TRY(nib_export_modelfile(a->model, a->adapter, text, config, conversation, a->out));
    if (a->adapter == NULL) return NIB_OK;
    nib_model_options options = {.path = a->model, .adapter = a->adapter};
    return nib_export_replay(a->adapter, text, options, a->device);
}

static nib_status run(int argc, char **argv)
{
    arguments a;
    nib_text text = {0};
    nib_model_config config;
    nib_conversation conversation = {0};
    nib_status status;
    NIB_TRY(read_arguments(argc, argv, &a));
    const char *inputs[] = {a.model, a.adapter};
    if (strcmp(a.to, "modelfile") != 0) NIB_TRY(nib_check_output_folder(a.out, inputs, 2)); /* adds one file */
    NIB_TRY_GOTO(nib_open_model_config(a.model, &config), done);
    NIB_TRY_GOTO(nib_text_open_for(a.model, a.adapter, a.tokenizer, a.chat_template, &text), done);
    if (text.tokenizer != NULL) NIB_TRY_GOTO(nib_conversation_open(&text, &config, &conversation), done);
    if (strcmp(a.to, "merged") == 0)
        status = export_merged(&a, &text, &config, &conversation);
    else if (strcmp(a.to, "adapter") == 0)
        status = export_adapter(&a, &text, &conversation);
    else if (strcmp(a.to, "modelfile") == 0)
        status = export_modelfile(&a, &text, &config, &conversation);
    else
        status = NIB_FAIL(NIB_ERROR_USAGE, "--to %s: expected adapter, merged or modelfile", a.to);
done:
    nib_conversation_close(&conversation);
    nib_text_close(&text);
    return status;
}

const nib_command nib_command_export = {
    .name = "export",
    .summary = "adapter for PEFT, merged 16-bit model, Modelfile",
    .usage =
        "usage: nibble export --model M [--adapter A] --to adapter|merged|modelfile --out D\n"
        "\n"
        "  --to adapter     the adapter as PEFT reads it, checked against the model, in folder D\n"
        "  --to merged      the adapter merged into the model's 16-bit weights: a Hugging Face folder D with config,\n"
        "                   tokenizer, template and generation_config.json; the model is opened again and its logits\n"
        "                   are compared with those of base and adapter\n"
        "  --to modelfile   D/Modelfile for Ollama: the model (and adapter), its template and what ends a turn\n"
        "\n"
        "Training saves a few prompts and its answers beside the adapter (replay.jsonl). They are replayed with what\n"
        "was written, token for token; exit code 65 names the first difference that is no near tie (0.05 nats). If\n"
        "training had an NF4 base, a merged model is held to the 16-bit base with the adapter (near tie: 0.25 nats,\n"
        "for weights rounded to bf16), and these to the training on the NF4 base.\n"
        "\n"
        "  --model M        a Hugging Face folder or a .gguf file\n"
        "  --adapter A      the folder of a PEFT adapter\n"
        "  --out D          new or empty, but for modelfile\n"
        "  --tokenizer T, --chat-template F   take precedence over the model's own\n"
        "  --device auto|cpu|cuda|emulated   where the prompts are replayed; the rest is the CPU's, in fp32\n",
    .run = run,
};
