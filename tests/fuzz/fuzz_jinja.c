/* Compiles and renders whatever comes as a template. The conversation is fixed: it is ours, the template is not. */
#include "tokenizer/chat_template.h"

#include <stdlib.h>
#include <string.h>

static const char conversation[] =
    "[{\"role\":\"system\",\"content\":\"Be kind.\"},{\"role\":\"user\",\"content\":\"na\\u00efve \\u2603\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"abcdefghi\",\"type\":\"function\",\"function\":"
    "{\"name\":\"f\",\"arguments\":{\"x\":[1,2.5,true,null,{}]}}}]},"
    "{\"role\":\"tool\",\"name\":\"f\",\"tool_call_id\":\"abcdefghi\",\"content\":\"42\"}]";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    nib_pool pool = {0};
    nib_json *messages = NULL;
    nib_chat_template *chat_template = NULL;
    nib_buffer text = {0};
    char *source = malloc(size + 1);
    if (source == NULL) return 0;
    if (size > 0) memcpy(source, data, size);
    source[size] = 0;
    if (nib_json_parse("conversation", conversation, strlen(conversation), (nib_json_options){0}, &pool, &messages) !=
        NIB_OK)
        abort();
    if (nib_chat_template_compile("fuzz", source, &chat_template) == NIB_OK) {
        nib_chat_inputs inputs = {.messages = messages,
                                  .tools = messages,
                                  .bos_token = "<s>",
                                  .eos_token = "</s>",
                                  .add_generation_prompt = true,
                                  .now = 1767323045};
        if (nib_chat_template_render(chat_template, &inputs, &text) == NIB_ERROR_INTERNAL) abort();
    }
    nib_buffer_free(&text);
    nib_chat_template_free(chat_template);
    nib_pool_free(&pool);
    free(source);
    return 0;
}
