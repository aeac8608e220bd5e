/* nibble eval: loss of a model on data, and how its own answers compare with the reference answers. */
#include "command.h"
#include "open.h"
#include "options.h"

#include "base/log.h"
#include "eval/answers.h"
#include "eval/score.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define PROMPTS_AT_ONCE 32

typedef struct {
    const char *model, *adapter, *tokenizer, *chat_template, *out;
    nib_option_list data;
    nib_quantization quantization;
    nib_dtype compute;
    nib_device device;
    bool generate, json;
    int64_t max_new_tokens, limit;
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){
        .quantization = NIB_QUANT_NF4, .compute = NIB_DTYPE_BF16, .device = NIB_DEVICE_AUTO, .max_new_tokens = 256};
    const nib_option options[] = {
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &a->model, .required = true},
        {.name = "--adapter", .kind = NIB_OPTION_PATH, .value = &a->adapter},
        {.name = "--tokenizer", .kind = NIB_OPTION_PATH, .value = &a->tokenizer},
        {.name = "--chat-template", .kind = NIB_OPTION_PATH, .value = &a->chat_template},
        {.name = "--data", .kind = NIB_OPTION_LIST, .value = &a->data, .required = true},
        {.name = "--generate", .kind = NIB_OPTION_FLAG, .value = &a->generate},
        {.name = "--max-new-tokens", .kind = NIB_OPTION_INTEGER, .value = &a->max_new_tokens, .low = 1, .high = 1e6},
        {.name = "--out", .kind = NIB_OPTION_PATH, .value = &a->out},
        {.name = "--json", .kind = NIB_OPTION_FLAG, .value = &a->json},
        {.name = "--quant", .kind = NIB_OPTION_QUANT, .value = &a->quantization},
        {.name = "--compute", .kind = NIB_OPTION_COMPUTE, .value = &a->compute},
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &a->device},
    };
    return nib_options_read(argc, argv, options, sizeof options / sizeof *options);
}

typedef struct {
    const nib_dataset *data;
    nib_sample_score *scores; /* [samples] */
    nib_loss_summary loss;
    nib_answer_summary answers;
    nib_buffer lines; /* of --out */
    int64_t written;  /* samples that have their line */
    int64_t expected; /* for the live line */
    double seconds;
} evaluation;

static double clock_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void put_text(nib_buffer *line, const char *key, const char *text)
{
    nib_buffer_format(line, ", \"%s\": ", key);
    nib_buffer_json_string(line, text, strlen(text), false);
}

/* The line of one sample; answer NULL: it was not asked. */
static void write_sample(evaluation *e, int64_t sample, const nib_answer *answer)
{
    int64_t line;
    const char *file = nib_dataset_file(e->data, sample, &line);
    nib_buffer_text(&e->lines, "{\"file\": ");
    nib_buffer_json_string(&e->lines, file, strlen(file), false);
    nib_buffer_format(&e->lines, ", \"line\": %lld, \"nll\": %.9g, \"tokens\": %lld", (long long)line,
                      e->scores[sample].nll, (long long)e->scores[sample].tokens);
    if (answer != NULL) {
        put_text(&e->lines, "prompt", answer->prompt);
        put_text(&e->lines, "output", answer->output);
        put_text(&e->lines, "reference", answer->reference);
        nib_buffer_format(&e->lines, ", \"exact_match\": %d, \"f1\": %.6g, \"rouge_l\": %.6g", answer->exact_match,
                          answer->f1, answer->rouge_l);
    }
    nib_buffer_text(&e->lines, "}\n");
    e->written = sample + 1;
}

static nib_status write_answer(void *user, const nib_answer *answer)
{
    evaluation *e = user;
    char live[96];
    while (e->written < answer->sample) write_sample(e, e->written, NULL);
    write_sample(e, answer->sample, answer);
    snprintf(live, sizeof live, "%lld of %lld answered", (long long)e->written, (long long)e->expected);
    nib_log_live(live);
    return NIB_OK;
}

static nib_status evaluate(const arguments *a, const nib_text *text, nib_model *model, evaluation *e)
{
    double begun = clock_seconds();
    NIB_TRY(nib_evaluate_loss(model, e->data, e->scores, &e->loss));
    if (a->generate) {
        NIB_TRY(nib_evaluate_answers(model, e->data, text->tokenizer, nib_dataset_size(e->data), PROMPTS_AT_ONCE,
                                     a->max_new_tokens, write_answer, e, &e->answers));
        nib_log_live(NULL);
        if (e->answers.answers == 0)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: no row has a prompt and an answer; --generate needs conversations or pairs",
                            a->data.items[0]);
    }
    while (e->written < nib_dataset_size(e->data)) write_sample(e, e->written, NULL);
    e->seconds = clock_seconds() - begun;
    if (a->out == NULL) return NIB_OK;
    if (e->lines.failed) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its lines", a->out);
    return nib_file_replace(a->out, e->lines.data, e->lines.length);
}

static void print_json(const arguments *a, const evaluation *e)
{
    printf("{\"loss\": %.9g, \"perplexity\": %.9g, ", e->loss.loss, e->loss.perplexity);
    if (a->generate)
        printf(
            "\"exact_match\": %.9g, \"f1\": %.9g, \"rouge_l\": %.9g, \"answers\": %lld, \"generated_tokens\": %lld, ",
            e->answers.exact_match, e->answers.f1, e->answers.rouge_l, (long long)e->answers.answers,
            (long long)e->answers.generated_tokens);
    printf("\"samples\": %lld, \"supervised_tokens\": %lld, \"seconds\": %.3f}\n", (long long)nib_dataset_size(e->data),
           (long long)e->loss.supervised_tokens, e->seconds);
}

static void print_table(const arguments *a, const evaluation *e)
{
    printf("samples       %lld\n", (long long)nib_dataset_size(e->data));
    printf("loss          %.4f   over %lld tokens\n", e->loss.loss, (long long)e->loss.supervised_tokens);
    printf("perplexity    %.4g\n", e->loss.perplexity);
    if (a->generate) {
        printf("exact match   %.1f %%   of %lld answers\n", 100.0 * e->answers.exact_match,
               (long long)e->answers.answers);
        printf("F1            %.1f %%\n", 100.0 * e->answers.f1);
        printf("ROUGE-L       %.1f %%\n", 100.0 * e->answers.rouge_l);
    }
    printf("time          %.1f s\n", e->seconds);
}

static nib_status load_data(const arguments *a, const nib_text *text, nib_dataset **data)
{
    nib_model_config config;
    NIB_TRY(nib_open_model_config(a->model, &config));
    nib_data_source *sources = nib_calloc(a->data.count, sizeof *sources);
    if (sources == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu files", a->data.count);
    for (size_t i = 0; i < a->data.count; i++) sources[i].path = a->data.items[i];
    nib_data_options options = {.max_length = config.max_positions,
                                .over_long = NIB_OVER_LONG_ERROR,
                                .tokenizer = text->tokenizer,
                                .chat_template = text->chat_template,
                                .bos_token = text->bos_token,
                                .eos_token = text->eos_token};
    nib_status status = nib_dataset_load(sources, (int)a->data.count, &options, config.vocabulary, data);
    nib_free(sources);
    return status;
}

static nib_status run(int argc, char **argv)
{
    arguments a;
    evaluation e = {0};
    nib_ops *ops = NULL;
    nib_text text = {0};
    nib_dataset *data = NULL;
    nib_model *model = NULL;
    nib_status status;
    NIB_TRY_GOTO(read_arguments(argc, argv, &a), done);
    if (a.out != NULL) NIB_TRY_GOTO(nib_check_output_file(a.out, a.data.items, a.data.count), done);
    NIB_TRY_GOTO(nib_text_open_for(a.model, a.adapter, a.tokenizer, a.chat_template, &text), done);
    NIB_TRY_GOTO(load_data(&a, &text, &data), done);
    e.data = data;
    e.expected = nib_dataset_size(data);
    e.scores = nib_calloc((size_t)e.expected, sizeof *e.scores);
    if (e.scores == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the scores of %lld samples", (long long)e.expected);
        goto done;
    }
    NIB_TRY_GOTO(nib_open_backend(a.device, a.compute, 0, &ops), done);
    nib_model_options open = {
        .path = a.model, .quantization = a.quantization, .compute = a.compute, .adapter = a.adapter};
    NIB_TRY_GOTO(nib_model_open(ops, &open, &model), done);
    NIB_TRY_GOTO(evaluate(&a, &text, model, &e), done);
    if (a.json)
        print_json(&a, &e);
    else
        print_table(&a, &e);
done:
    nib_model_close(model);
    nib_close_backend(ops);
    nib_dataset_free(data);
    nib_text_close(&text);
    nib_buffer_free(&e.lines);
    nib_free(e.scores);
    nib_free(a.data.items);
    return status;
}

const nib_command nib_command_eval = {
    .name = "eval",
    .summary = "loss on data, and answers against reference answers",
    .usage =
        "usage: nibble eval --model M [--adapter A] --data F... [--generate] [options]\n"
        "\n"
        "Loss and perplexity of the supervised tokens of all rows; with --generate also exact match, F1 and\n"
        "ROUGE-L of the model's own answers (greedy, up to the end of the turn) to the rows' prompts.\n"
        "\n"
        "  --model M             a Hugging Face folder or a .gguf file\n"
        "  --adapter A           the folder of a PEFT adapter\n"
        "  --data F...           .jsonl or .jsonl.zst files\n"
        "  --generate            answer every prompt\n"
        "  --max-new-tokens N    longest answer (default 256)\n"
        "  --out F               one JSON line a sample: where it is from, nll, prompt, output, reference, scores\n"
        "  --json                the result as one JSON object\n"
        "  --quant nf4|none      the base's weights (default nf4, as it was trained)\n"
        "  --compute bf16|fp32   arithmetic (default bf16)\n"
        "  --device auto|cpu|cuda|emulated\n"
        "  --tokenizer T, --chat-template F   take precedence over the model's own\n"
        "\n"
        "Exact match: the same text but for white space at its ends. F1: SQuAD's, over words without case,\n"
        "punctuation and articles. ROUGE-L: F-measure over runs of a-z and 0-9.\n",
    .run = run,
};
