/* nibble render: prints a conversation as the model sees it. */
#include "command.h"
#include "options.h"

#include "base/file.h"
#include "base/json.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { MAX_TEMPLATE = 16 << 20, MAX_MESSAGES = 256 << 20 };

typedef struct {
    const char *template_path, *model, *messages, *tools, *bos_token, *eos_token, *now;
    bool generation_prompt;
} render_options;

static nib_status read_arguments(int argc, char **argv, render_options *a)
{
    const nib_option options[] = {
        {.name = "--template", .kind = NIB_OPTION_PATH, .value = &a->template_path},
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &a->model},
        {.name = "--messages", .kind = NIB_OPTION_PATH, .value = &a->messages, .required = true},
        {.name = "--tools", .kind = NIB_OPTION_PATH, .value = &a->tools},
        {.name = "--bos-token", .kind = NIB_OPTION_TEXT, .value = &a->bos_token},
        {.name = "--eos-token", .kind = NIB_OPTION_TEXT, .value = &a->eos_token},
        {.name = "--now", .kind = NIB_OPTION_TEXT, .value = &a->now},
        {.name = "--generation-prompt", .kind = NIB_OPTION_FLAG, .value = &a->generation_prompt},
    };
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    if ((a->template_path == NULL) == (a->model == NULL))
        return NIB_FAIL(NIB_ERROR_USAGE, "give one of --template FILE and --model MODEL");
    return NIB_OK;
}

/* 2026-01-02T03:04:05 as seconds since the epoch; NULL: the present local time. */
static nib_status parse_now(const char *text, int64_t *now)
{
    struct tm parts = {0};
    if (text == NULL) {
        time_t present = time(NULL);
        localtime_r(&present, &parts);
        *now = (int64_t)present + parts.tm_gmtoff;
        return NIB_OK;
    }
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &parts);
    const int day = parts.tm_mday, second = parts.tm_sec;
    *now = (int64_t)timegm(&parts); /* turns 30 February into 2 March */
    if (end == NULL || *end != 0 || parts.tm_mday != day || parts.tm_sec != second)
        return NIB_FAIL(NIB_ERROR_USAGE, "--now: found '%s', expected a time like 2026-01-02T03:04:05", text);
    return NIB_OK;
}

static nib_status read_json_array(const char *path, nib_pool *pool, nib_json **root)
{
    char *text = NULL;
    size_t length;
    nib_status status = nib_file_read(path, MAX_MESSAGES, &text, &length);
    if (status != NIB_OK) return status;
    status = nib_json_parse(path, text, length, (nib_json_options){0}, pool, root);
    if (status == NIB_OK && !nib_json_is(*root, NIB_JSON_ARRAY))
        status = NIB_FAIL(NIB_ERROR_DATA, "%s:%u: expected an array, found %s", path, (*root)->line,
                          nib_json_kind_name((*root)->kind));
    nib_free(text);
    return status;
}

/* The template, and the tokens that the model's tokenizer names where the command line names none. */
static nib_status open_template(render_options *options, nib_tokenizer *const *tokenizer,
                                nib_chat_template **chat_template)
{
    if (options->template_path == NULL) {
        const char *source = nib_tokenizer_chat_template(*tokenizer);
        int32_t bos = nib_tokenizer_bos(*tokenizer), eos = nib_tokenizer_eos(*tokenizer);
        if (source == NULL)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: the model has no chat template; give one with --template",
                            options->model);
        if (options->bos_token == NULL && bos >= 0) options->bos_token = nib_tokenizer_text(*tokenizer, bos);
        if (options->eos_token == NULL && eos >= 0) options->eos_token = nib_tokenizer_text(*tokenizer, eos);
        return nib_chat_template_compile(options->model, source, chat_template);
    }
    char *source = NULL;
    size_t length;
    NIB_TRY(nib_file_read(options->template_path, MAX_TEMPLATE, &source, &length));
    nib_status status = strlen(source) == length
                            ? nib_chat_template_compile(options->template_path, source, chat_template)
                            : NIB_FAIL(NIB_ERROR_DATA, "%s: a NUL byte at %zu", options->template_path, strlen(source));
    nib_free(source);
    return status;
}

static nib_status run(int argc, char **argv)
{
    render_options options = {0};
    nib_chat_inputs inputs = {0};
    nib_pool pool = {0};
    nib_json *messages = NULL, *tools = NULL;
    nib_tokenizer *tokenizer = NULL;
    nib_chat_template *chat_template = NULL;
    nib_buffer text = {0};
    nib_status status;

    NIB_TRY_GOTO(read_arguments(argc, argv, &options), done);
    NIB_TRY_GOTO(parse_now(options.now, &inputs.now), done);
    NIB_TRY_GOTO(read_json_array(options.messages, &pool, &messages), done);
    if (options.tools != NULL) NIB_TRY_GOTO(read_json_array(options.tools, &pool, &tools), done);
    if (options.model != NULL) NIB_TRY_GOTO(nib_tokenizer_open(options.model, &tokenizer), done);
    NIB_TRY_GOTO(open_template(&options, &tokenizer, &chat_template), done);

    inputs.messages = messages;
    inputs.tools = tools;
    inputs.bos_token = options.bos_token != NULL ? options.bos_token : "";
    inputs.eos_token = options.eos_token != NULL ? options.eos_token : "";
    inputs.add_generation_prompt = options.generation_prompt;
    NIB_TRY_GOTO(nib_chat_template_render(chat_template, &inputs, &text), done);
    if (text.length > 0) fwrite(text.data, 1, text.length, stdout);
done:
    nib_buffer_free(&text);
    nib_chat_template_free(chat_template);
    nib_tokenizer_free(tokenizer);
    nib_pool_free(&pool);
    return status;
}

const nib_command nib_command_render = {
    .name = "render",
    .summary = "prints a conversation as the model sees it",
    .usage = "usage: nibble render (--template FILE | --model MODEL) --messages FILE [options]\n"
             "\n"
             "Prints the conversation of --messages (a JSON array of messages) through a chat template.\n"
             "\n"
             "  --template FILE       a Jinja template\n"
             "  --model MODEL         a model folder or .gguf file, whose own template and tokens are used\n"
             "  --messages FILE       the messages\n"
             "  --tools FILE          a JSON array of tools\n"
             "  --generation-prompt   ends with the beginning of the assistant's turn\n"
             "  --bos-token TEXT      what bos_token is in the template\n"
             "  --eos-token TEXT      what eos_token is in the template\n"
             "  --now TIME            the clock that the template sees, as 2026-01-02T03:04:05; default: now\n"
             "\n"
             "Exit code 65 and the template's message if it raises an exception.\n",
    .run = run,
};
