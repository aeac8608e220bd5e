/* nibble chat: talks with a model, in a terminal or line by line from a pipe. */
#include "command.h"
#include "conversation.h"
#include "options.h"
#include "signals.h"
#include "terminal.h"
#include "token_stream.h"

#include "base/file.h"
#include "base/log.h"
#include "model/generate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_CONTEXT 8192

typedef struct {
    const char *model, *adapter, *tokenizer, *chat_template, *prompt, *system;
    double temperature, top_p;
    int64_t top_k, seed, max_new_tokens, context;
    nib_quantization quantization;
    nib_dtype compute;
    nib_device device;
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){.temperature = 0.7,
                     .top_p = 0.95,
                     .seed = -1,
                     .max_new_tokens = 1024,
                     .quantization = NIB_QUANT_NF4,
                     .compute = NIB_DTYPE_BF16};
    const nib_option options[] = {
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &a->model, .required = true},
        {.name = "--adapter", .kind = NIB_OPTION_PATH, .value = &a->adapter},
        {.name = "--tokenizer", .kind = NIB_OPTION_PATH, .value = &a->tokenizer},
        {.name = "--chat-template", .kind = NIB_OPTION_PATH, .value = &a->chat_template},
        {.name = "--prompt", .kind = NIB_OPTION_TEXT, .value = &a->prompt},
        {.name = "--system", .kind = NIB_OPTION_TEXT, .value = &a->system},
        {.name = "--temperature", .kind = NIB_OPTION_NUMBER, .value = &a->temperature, .high = 100},
        {.name = "--top-p", .kind = NIB_OPTION_NUMBER, .value = &a->top_p, .low = 1e-6, .high = 1},
        {.name = "--top-k", .kind = NIB_OPTION_INTEGER, .value = &a->top_k, .high = 1e9},
        {.name = "--seed", .kind = NIB_OPTION_INTEGER, .value = &a->seed, .high = 9e15},
        {.name = "--max-new-tokens", .kind = NIB_OPTION_INTEGER, .value = &a->max_new_tokens, .low = 1, .high = 1e9},
        {.name = "--context", .kind = NIB_OPTION_INTEGER, .value = &a->context, .low = 8, .high = 1e9},
        {.name = "--quant", .kind = NIB_OPTION_QUANT, .value = &a->quantization},
        {.name = "--compute", .kind = NIB_OPTION_COMPUTE, .value = &a->compute},
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &a->device},
    };
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    if (a->seed < 0) a->seed = (int64_t)time(NULL);
    return NIB_OK;
}

typedef struct {
    const arguments *arguments;
    nib_text text;
    nib_ops *ops;
    nib_model *model;
    nib_generator *generator;
    nib_conversation conversation;
    nib_token_list prompt;
    bool terminal, color;
} chat;

/* An answer on its way out. */
typedef struct {
    nib_token_stream stream;
    nib_buffer all, piece;
    nib_status status;
} answer;

static nib_status print_piece(answer *a)
{
    nib_buffer_append(&a->all, a->piece.data, a->piece.length);
    if (a->all.failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the answer");
    if (fwrite(a->piece.data, 1, a->piece.length, stdout) != a->piece.length || fflush(stdout) != 0)
        return NIB_FAIL(NIB_ERROR_IO, "standard output: cannot be written: %s", strerror(errno));
    nib_buffer_clear(&a->piece);
    return NIB_OK;
}

static bool print_token(void *user, int sequence, int32_t id)
{
    answer *a = user;
    (void)sequence;
    a->status = nib_token_stream_put(&a->stream, id, &a->piece);
    if (a->status == NIB_OK && a->piece.length > 0) a->status = print_piece(a);
    return a->status == NIB_OK && !nib_interrupt_take();
}

static nib_status generate(chat *c, answer *a)
{
    const arguments *o = c->arguments;
    nib_generate_options options = {.max_new_tokens = o->max_new_tokens,
                                    .temperature = o->temperature,
                                    .top_p = o->top_p,
                                    .top_k = o->top_k,
                                    .seed = (uint64_t)o->seed,
                                    .stop = c->conversation.stop,
                                    .stop_count = c->conversation.stop_count};
    nib_prompt prompt = {c->prompt.ids, (int32_t)c->prompt.count};
    NIB_TRY(nib_generate_continue(c->generator, prompt, &options, print_token, a));
    NIB_TRY(a->status);
    NIB_TRY(nib_token_stream_end(&a->stream, &a->piece));
    return a->piece.length > 0 ? print_piece(a) : NIB_OK;
}

/* Answers one message of the user and keeps both; what fails leaves the conversation as it was. */
static nib_status reply(chat *c, const char *message, size_t length)
{
    answer a = {.stream.tokenizer = c->text.tokenizer};
    NIB_TRY(nib_conversation_add(&c->conversation, "user", message, length));
    nib_status status = nib_conversation_prompt(&c->conversation, &c->prompt);
    if (status == NIB_OK) {
        nib_interrupt_hold(true); /* Ctrl-C stops the answer in work, and ends the program otherwise */
        nib_terminal_send_signals(true);
        status = generate(c, &a);
        nib_terminal_send_signals(false);
        (void)nib_interrupt_take();
        nib_interrupt_hold(false);
        if (status == NIB_OK && (putchar('\n') == EOF || fflush(stdout) != 0))
            status = NIB_FAIL(NIB_ERROR_IO, "standard output: cannot be written: %s", strerror(errno));
    }
    if (status == NIB_OK)
        status = nib_conversation_add(&c->conversation, "assistant", a.all.length > 0 ? a.all.data : "", a.all.length);
    else
        nib_conversation_undo(&c->conversation);
    nib_token_stream_free(&a.stream);
    nib_buffer_free(&a.all);
    nib_buffer_free(&a.piece);
    return status;
}

static const char help_text[] = "/reset        forgets the conversation\n"
                                "/system TEXT  sets the system message (none without TEXT) and begins anew\n"
                                "/help         shows this\n"
                                "/quit         ends, as Ctrl-D does\n"
                                "Ctrl-C stops a running answer. Arrows up and down bring earlier lines back.\n";

static void begin_anew(chat *c)
{
    nib_conversation_reset(&c->conversation);
    nib_generator_forget(c->generator);
}

/* A line that begins with a slash. */
static nib_status obey(chat *c, const char *line, bool *quit)
{
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) {
        *quit = true;
    } else if (strcmp(line, "/reset") == 0) {
        begin_anew(c);
        nib_log("the conversation begins anew");
    } else if (strncmp(line, "/system", 7) == 0 && (line[7] == ' ' || line[7] == 0)) {
        const char *content = line + 7 + strspn(line + 7, " ");
        NIB_TRY(nib_conversation_set_system(&c->conversation, content));
        begin_anew(c);
        nib_log(*content != 0 ? "system message set; the conversation begins anew" : "no system message from here on");
    } else {
        fputs(help_text, stderr);
    }
    return NIB_OK;
}

/* One line of input. What is wrong with the message alone is told, and the talk goes on. */
static nib_status take_line(chat *c, const char *line, size_t length, bool *quit)
{
    if (length == 0) return NIB_OK;
    nib_status status = line[0] == '/' ? obey(c, line, quit) : reply(c, line, length);
    if (status != NIB_ERROR_DATA) return status;
    nib_warn("%s", nib_error_message());
    return NIB_OK;
}

static nib_status talk_in_terminal(chat *c)
{
    nib_line_editor editor = {0};
    nib_status status = NIB_OK;
    bool quit = false;
    NIB_TRY_GOTO(nib_terminal_begin(), done);
    fputs("Ctrl-D ends, Ctrl-C stops an answer, /help shows more.\n", stderr);
    while (!quit) {
        nib_edit_result result;
        NIB_TRY_GOTO(nib_terminal_read_line(&editor, c->color ? "\x1b[1;32m>\x1b[0m " : "> ", &result), done);
        if (result == NIB_EDIT_END) break;
        if (result == NIB_EDIT_INTERRUPT) continue;
        nib_line_editor_remember(&editor);
        NIB_TRY_GOTO(take_line(c, editor.text.data, editor.text.length, &quit), done);
    }
done:
    nib_terminal_end();
    nib_line_editor_free(&editor);
    return status;
}

static nib_status talk_in_lines(chat *c)
{
    char *line = NULL;
    size_t capacity = 0;
    nib_status status = NIB_OK;
    bool quit = false;
    while (!quit && status == NIB_OK) {
        ssize_t length = getline(&line, &capacity, stdin);
        if (length < 0) break;
        while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r')) line[--length] = 0;
        status = take_line(c, line, (size_t)length, &quit);
    }
    if (status == NIB_OK && !quit && !feof(stdin)) /* getline finds no memory without an error of the stream */
        status = NIB_FAIL(errno == ENOMEM ? NIB_ERROR_MEMORY : NIB_ERROR_IO, "standard input: %s", strerror(errno));
    free(line);
    return status;
}

static nib_status open_chat(chat *c)
{
    const arguments *a = c->arguments;
    NIB_TRY(nib_text_open_for(a->model, a->adapter, a->tokenizer, a->chat_template, &c->text));
    nib_interrupt_hold(true); /* for the backend's threads */
    nib_status opened = nib_open_backend(a->device, a->compute, 0, &c->ops);
    nib_interrupt_hold(false);
    NIB_TRY(opened);
    nib_model_options options = {
        .path = a->model, .quantization = a->quantization, .compute = a->compute, .adapter = a->adapter};
    NIB_TRY(nib_model_open(c->ops, &options, &c->model));
    const nib_model_config *config = nib_model_get_config(c->model);
    NIB_TRY(nib_conversation_open(&c->text, config, &c->conversation));
    NIB_TRY(nib_conversation_set_system(&c->conversation, a->system));
    if (c->text.chat_template == NULL)
        nib_warn("%s has no chat template: it goes on with your text as it stands", a->model);
    int64_t context = a->context > 0 ? a->context : DEFAULT_CONTEXT;
    if (config->max_positions > 0 && context > config->max_positions) context = config->max_positions;
    return nib_generator_create(c->model, context, 1, &c->generator);
}

static void close_chat(chat *c)
{
    nib_generator_free(c->generator);
    nib_conversation_close(&c->conversation);
    nib_token_list_free(&c->prompt);
    nib_model_close(c->model);
    nib_close_backend(c->ops);
    nib_text_close(&c->text);
}

static nib_status run(int argc, char **argv)
{
    arguments a;
    NIB_TRY(read_arguments(argc, argv, &a));
    chat c = {.arguments = &a, .terminal = nib_terminal_can_edit()};
    c.color = c.terminal && getenv("NO_COLOR") == NULL;
    nib_status status = open_chat(&c);
    if (status == NIB_OK) {
        if (a.prompt != NULL)
            status = reply(&c, a.prompt, strlen(a.prompt));
        else
            status = c.terminal ? talk_in_terminal(&c) : talk_in_lines(&c);
    }
    close_chat(&c);
    return status;
}

const nib_command nib_command_chat = {
    .name = "chat",
    .summary = "talks with a model",
    .usage = "usage: nibble chat --model M [--adapter A] [--prompt TEXT] [options]\n"
             "\n"
             "A conversation in the terminal; answers appear as they are made. /help lists what may be typed besides.\n"
             "If standard input is no terminal, every line is a message. --prompt answers once and ends.\n"
             "\n"
             "  --model M             a Hugging Face folder or a .gguf file\n"
             "  --adapter A           the folder of a PEFT adapter; its chat template is used if it holds one\n"
             "  --prompt TEXT         the one message\n"
             "  --system TEXT         the system message\n"
             "  --temperature X       0: always the likeliest token (default 0.7)\n"
             "  --top-p X             of the likeliest tokens, as many as make up this probability (default 0.95)\n"
             "  --top-k N             of the N likeliest tokens; 0: no limit (default)\n"
             "  --seed N              the same seed, the same answers (default: the clock)\n"
             "  --max-new-tokens N    longest answer (default 1024)\n"
             "  --context N           longest conversation in tokens (default 8192, or what the model allows)\n"
             "  --quant nf4|none      the base's weights (default nf4, as adapters are trained)\n"
             "  --compute bf16|fp32   arithmetic (default bf16)\n"
             "  --device auto|cpu|cuda|emulated\n"
             "  --tokenizer T, --chat-template F   take precedence over the model's own\n",
    .run = run,
};
