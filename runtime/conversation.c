#include "conversation.h"
#include "base/json.h"
#include "base/utf8.h"
#include "data/row_encoder.h"

#include <string.h>
#include <time.h>

static void add_stop(nib_conversation *c, int32_t id)
{
    for (int i = 0; i < c->stop_count; i++)
        if (c->stop[i] == id) return;
    if (c->stop_count < NIB_MAX_STOPS) c->stop[c->stop_count++] = id;
}

static nib_status ignore_draft(void *context, const nib_draft *draft)
{
    (void)context;
    (void)draft;
    return NIB_OK;
}

/* The terminator as training finds it (data/row_encoder.h), from a conversation of one turn. */
static nib_status find_terminators(nib_conversation *c)
{
    static const char example[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}, "
                                  "{\"role\": \"assistant\", \"content\": \"Hello\"}]}";
    nib_data_options options = {.tokenizer = c->text->tokenizer,
                                .chat_template = c->text->chat_template,
                                .bos_token = c->text->bos_token,
                                .eos_token = c->text->eos_token};
    nib_row_encoder encoder = {.options = &options, .sink = ignore_draft};
    nib_pool pool = {0};
    nib_json *row;
    nib_parsed_row parsed;
    nib_status status;
    NIB_TRY_GOTO(nib_json_parse("example", example, sizeof example - 1, (nib_json_options){0}, &pool, &row), done);
    NIB_TRY_GOTO(nib_row_parse("example", row, true, &pool, &parsed), done);
    NIB_TRY_GOTO(nib_row_encode(&encoder, "chat template", &parsed), done);
    for (int i = 0; i < encoder.terminators; i++) add_stop(c, encoder.terminator[i]);
done:
    nib_row_encoder_free(&encoder);
    nib_pool_free(&pool);
    return status;
}

nib_status nib_conversation_open(const nib_text *text, const nib_model_config *config, nib_conversation *c)
{
    *c = (nib_conversation){.text = text};
    if (text->tokenizer == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "the model has no tokenizer.json; give one with --tokenizer");
    for (int i = 0; i < config->eos_count; i++) add_stop(c, config->eos[i]);
    if (nib_tokenizer_eos(text->tokenizer) >= 0) add_stop(c, nib_tokenizer_eos(text->tokenizer));
    return text->chat_template != NULL ? find_terminators(c) : NIB_OK;
}

void nib_conversation_close(nib_conversation *c)
{
    nib_free(c->system);
    nib_buffer_free(&c->messages);
    *c = (nib_conversation){0};
}

void nib_conversation_reset(nib_conversation *c)
{
    nib_buffer_clear(&c->messages);
    c->last = 0;
}

nib_status nib_conversation_set_system(nib_conversation *c, const char *content)
{
    char *copy = NULL;
    if (content != NULL && *content != 0) {
        size_t length = strlen(content);
        if (nib_utf8_invalid_at(content, length) != length)
            return NIB_FAIL(NIB_ERROR_DATA, "the system message is not UTF-8 at byte %zu",
                            nib_utf8_invalid_at(content, length));
        copy = nib_calloc(length + 1, 1);
        if (copy == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a system message");
        memcpy(copy, content, length);
    }
    nib_free(c->system);
    c->system = copy;
    return NIB_OK;
}

static void append_message(nib_buffer *out, const char *role, const char *content, size_t length)
{
    if (out->length > 0 && out->data[out->length - 1] == '}') nib_buffer_char(out, ',');
    nib_buffer_format(out, "{\"role\": \"%s\", \"content\": ", role);
    nib_buffer_json_string(out, content, length, false);
    nib_buffer_char(out, '}');
}

nib_status nib_conversation_add(nib_conversation *c, const char *role, const char *content, size_t length)
{
    size_t invalid = nib_utf8_invalid_at(content, length);
    if (invalid != length || memchr(content, 0, length) != NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "a message is not UTF-8 text at byte %zu",
                        invalid != length ? invalid : strlen(content));
    c->last = c->messages.length;
    append_message(&c->messages, role, content, length);
    return c->messages.failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the conversation") : NIB_OK;
}

void nib_conversation_undo(nib_conversation *c)
{
    c->messages.length = c->last;
    if (c->messages.data != NULL) c->messages.data[c->last] = 0;
}

static nib_status render(const nib_conversation *c, const nib_json *messages, nib_buffer *text)
{
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    nib_chat_inputs inputs = {.messages = messages,
                              .bos_token = c->text->bos_token,
                              .eos_token = c->text->eos_token,
                              .add_generation_prompt = true,
                              .now = (int64_t)now + local.tm_gmtoff};
    if (c->text->chat_template != NULL) return nib_chat_template_render(c->text->chat_template, &inputs, text);
    for (const nib_json *m = messages->first; m != NULL; m = m->next) {
        const nib_json *content = nib_json_get(m, "content");
        nib_buffer_append(text, content->string, content->length);
    }
    return NIB_OK;
}

nib_status nib_conversation_prompt(const nib_conversation *c, nib_token_list *ids)
{
    nib_buffer json = {0}, text = {0};
    nib_pool pool = {0};
    nib_json *messages;
    nib_status status;
    nib_buffer_char(&json, '[');
    if (c->system != NULL) append_message(&json, "system", c->system, strlen(c->system));
    if (c->system != NULL && c->messages.length > 0) nib_buffer_char(&json, ',');
    nib_buffer_append(&json, c->messages.data, c->messages.length);
    nib_buffer_char(&json, ']');
    if (json.failed) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the conversation");
        goto done;
    }
    NIB_TRY_GOTO(nib_json_parse("conversation", json.data, json.length, (nib_json_options){0}, &pool, &messages), done);
    NIB_TRY_GOTO(render(c, messages, &text), done);
    ids->count = 0;
    nib_encode_options options = {.add_special = c->text->chat_template == NULL, .parse_special = true};
    status = nib_tokenizer_encode(c->text->tokenizer, text.length > 0 ? text.data : "", text.length, options, ids);
    if (status == NIB_OK && ids->count == 0) status = NIB_FAIL(NIB_ERROR_DATA, "the conversation holds no token");
done:
    nib_buffer_free(&json);
    nib_buffer_free(&text);
    nib_pool_free(&pool);
    return status;
}
