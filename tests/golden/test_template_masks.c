/* What is supervised under real models' templates: both answers and the token that ends each, nothing else. The
 * tokenizer is a golden one whose <|im_end|> is given the name of each model's end of turn. */
#include "check.h"
#include "folder.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/memory.h"
#include "data/dataset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGES                                                                                                       \
    "{\"messages\": [{\"role\": \"user\", \"content\": \"first\"}, {\"role\": \"assistant\", \"content\": \"one "      \
    "two\"}, "                                                                                                         \
    "{\"role\": \"user\", \"content\": \"second\"}, {\"role\": \"assistant\", \"content\": \"three\"}]"

/* supervised: one '|' before every supervised stretch. Phi 3.5 and Qwen 3 write a conversation's last turn otherwise
 * than earlier ones, so that each turn is a sample. Hermes' template for tools cannot do without a list of tools. */
static const struct {
    const char *name, *end_of_turn, *supervised;
    int samples;
} models[] = {
    {"HuggingFaceTB-SmolLM3-3B", "<|im_end|>", "|one two<|im_end|>|three<|im_end|>", 1},
    {"Mistral-Small-3.2-24B-Instruct-2506", "</s>", "|one two</s>|three</s>", 1},
    {"NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "<|im_end|>", "|one two<|im_end|>|three<|im_end|>", 1},
    {"Qwen-Qwen2.5-7B-Instruct", "<|im_end|>", "|one two<|im_end|>|three<|im_end|>", 1},
    {"Qwen-Qwen3-0.6B", "<|im_end|>",
     "|<think>\n\n</think>\n\none two<|im_end|>|<think>\n\n</think>\n\nthree<|im_end|>", 2},
    {"gemma1", "<end_of_turn>", "|one two<end_of_turn>|three<end_of_turn>", 1},
    {"google-gemma-2-2b-it", "<end_of_turn>", "|one two<end_of_turn>|three<end_of_turn>", 1},
    {"google-gemma-4-31B-it", "<turn|>", "|one two<turn|>|three<turn|>", 1},
    {"ibm-granite-granite-3.3-2B-Instruct", "<|end_of_text|>", "|one two<|end_of_text|>|three<|end_of_text|>", 1},
    {"llama2", "</s>", "| one two </s>| three </s>", 1},
    {"meta-llama-Llama-3.1-8B-Instruct", "<|eot_id|>", "|one two<|eot_id|>|three<|eot_id|>", 1},
    {"meta-llama-Llama-3.2-3B-Instruct", "<|eot_id|>", "|one two<|eot_id|>|three<|eot_id|>", 1},
    {"microsoft-Phi-3.5-mini-instruct", "<|end|>", "|one two<|end|>|three<|end|>", 2},
    {"mistralai-Mistral-Nemo-Instruct-2407", "</s>", "|one two</s>|three</s>", 1},
    {"smollm2", "<|im_end|>", "|one two<|im_end|>|three<|im_end|>", 1},
    {"zephyr", "</s>", "|one two</s>|three</s>", 1},
};

static char rows_path[64], tokenizer_path[64];

static int set_up(void **state)
{
    if (make_folder(state) != 0) return -1;
    snprintf(rows_path, sizeof rows_path, "%s/rows.jsonl", folder);
    snprintf(tokenizer_path, sizeof tokenizer_path, "%s/tokenizer.json", folder);
    return 0;
}

static void write_row(bool tools)
{
    const char *row = tools ? MESSAGES ", \"tools\": []}" : MESSAGES "}";
    assert_int_equal(nib_file_replace(rows_path, row, strlen(row)), NIB_OK);
}

static nib_tokenizer *open_renamed(const char *end_of_turn)
{
    static const char from[] = "<|im_end|>";
    char *text;
    size_t length;
    nib_buffer renamed = {0};
    nib_tokenizer *tokenizer = NULL;
    assert_int_equal(nib_file_read(NIB_TEST_DATA "/tokenizers/qwen2/tokenizer.json", 64 << 20, &text, &length), NIB_OK);
    for (const char *at = text, *next; at != NULL; at = next) {
        next = strstr(at, from);
        nib_buffer_append(&renamed, at, next == NULL ? strlen(at) : (size_t)(next - at));
        if (next == NULL) break;
        nib_buffer_text(&renamed, end_of_turn);
        next += sizeof from - 1;
    }
    assert_int_equal(nib_file_replace(tokenizer_path, renamed.data, renamed.length), NIB_OK);
    if (nib_tokenizer_open(tokenizer_path, &tokenizer) != NIB_OK) fail_msg("%s", nib_error_message());
    nib_buffer_free(&renamed);
    nib_free(text);
    return tokenizer;
}

static nib_chat_template *open_template(const char *name)
{
    char path[200], *source;
    size_t length;
    nib_chat_template *chat_template = NULL;
    snprintf(path, sizeof path, NIB_TEST_DATA "/chat/%s.jinja", name);
    assert_int_equal(nib_file_read(path, 1 << 20, &source, &length), NIB_OK);
    if (nib_chat_template_compile(name, source, &chat_template) != NIB_OK) fail_msg("%s", nib_error_message());
    nib_free(source);
    return chat_template;
}

static void append_supervised(const nib_tokenizer *tokenizer, nib_row row, nib_buffer *text)
{
    for (int32_t p = 1; p < row.length; p++) {
        if (!row.supervised[p]) continue;
        int32_t end = p;
        while (end < row.length && row.supervised[end]) end++;
        nib_buffer_char(text, '|');
        assert_int_equal(nib_tokenizer_decode(tokenizer, row.ids + p, (size_t)(end - p), false, text), NIB_OK);
        p = end;
    }
}

static void answers_and_their_ends_are_supervised(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        nib_tokenizer *tokenizer = open_renamed(models[m].end_of_turn);
        nib_chat_template *chat_template = open_template(models[m].name);
        nib_data_source source = {rows_path, NULL, 0};
        nib_data_options options = {.max_length = 4096,
                                    .tokenizer = tokenizer,
                                    .chat_template = chat_template,
                                    .bos_token = "<s>",
                                    .eos_token = models[m].end_of_turn};
        nib_dataset *dataset;
        nib_buffer text = {0};
        write_row(strstr(models[m].name, "tool_use") != NULL);
        if (nib_dataset_load(&source, 1, &options, 1 << 20, &dataset) != NIB_OK)
            fail_msg("%s: %s", models[m].name, nib_error_message());
        if (nib_dataset_size(dataset) != models[m].samples)
            fail_msg("%s: %d samples, expected %d", models[m].name, (int)nib_dataset_size(dataset), models[m].samples);
        for (int64_t i = 0; i < nib_dataset_size(dataset); i++)
            append_supervised(tokenizer, nib_dataset_row(dataset, i), &text);
        if (strcmp(text.data, models[m].supervised) != 0)
            fail_msg("%s: found '%s', expected '%s'", models[m].name, text.data, models[m].supervised);
        nib_buffer_free(&text);
        nib_dataset_free(dataset);
        nib_chat_template_free(chat_template);
        nib_tokenizer_free(tokenizer);
    }
}

/* Apertus ends a turn only when the next one begins, so a last turn would never be ended. */
static void a_template_without_an_end_of_turn_is_refused(void **state)
{
    (void)state;
    nib_tokenizer *tokenizer = open_renamed("<|assistant_end|>");
    nib_chat_template *chat_template = open_template("Apertus-8B-Instruct");
    nib_data_source source = {rows_path, NULL, 0};
    nib_data_options options = {.max_length = 4096,
                                .tokenizer = tokenizer,
                                .chat_template = chat_template,
                                .bos_token = "<s>",
                                .eos_token = ""};
    nib_dataset *dataset;
    write_row(false);
    assert_int_equal(nib_dataset_load(&source, 1, &options, 1 << 20, &dataset), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "never learn to stop"));
    nib_chat_template_free(chat_template);
    nib_tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_and_their_ends_are_supervised),
        cmocka_unit_test(a_template_without_an_end_of_turn_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
