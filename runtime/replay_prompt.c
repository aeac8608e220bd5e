#include "replay_prompt.h"
#include "base/json.h"

#include <string.h>

nib_status nib_replay_prompt(const nib_text *text, const char *content, int64_t now, nib_token_list *ids)
{
    nib_buffer json = {0}, rendered = {0};
    nib_pool pool = {0};
    nib_json *messages;
    nib_status status;
    nib_buffer_text(&json, "[{\"role\": \"user\", \"content\": ");
    nib_buffer_json_string(&json, content, strlen(content), false);
    nib_buffer_text(&json, "}]");
    if (json.failed) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a message");
        goto done;
    }
    NIB_TRY_GOTO(nib_json_parse("message", json.data, json.length, (nib_json_options){0}, &pool, &messages), done);
    nib_chat_inputs inputs = {.messages = messages,
                              .bos_token = text->bos_token,
                              .eos_token = text->eos_token,
                              .add_generation_prompt = true,
                              .now = now};
    NIB_TRY_GOTO(nib_chat_template_render(text->chat_template, &inputs, &rendered), done);
    nib_encode_options options = {.add_special = false, .parse_special = true};
    ids->count = 0;
    status =
        nib_tokenizer_encode(text->tokenizer, rendered.length > 0 ? rendered.data : "", rendered.length, options, ids);
done:
    nib_buffer_free(&json);
    nib_buffer_free(&rendered);
    nib_pool_free(&pool);
    return status;
}
