/* Tokenizers against Hugging Face's tokenizers (every case of a family: ids with and without special tokens, decoded
 * text) and against llama.cpp's own cases for vocabularies inside a GGUF. */
#include "check.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void ids_are(const nib_tokenizer *tokenizer, const char *text, size_t length, bool special,
                    const nib_json *expected)
{
    nib_token_list list = {0};
    nib_encode_options options = {.add_special = special, .parse_special = true};
    assert_int_equal(nib_tokenizer_encode(tokenizer, text, length, options, &list), NIB_OK);
    bool equal = list.count == expected->length;
    const nib_json *id = expected->first;
    for (size_t i = 0; equal && i < list.count; i++, id = id->next) equal = list.ids[i] == id->integer;
    if (!equal) fail_msg("\"%s\": %zu ids differ from the %zu expected", text, list.count, expected->length);
    nib_token_list_free(&list);
}

static void text_is(const nib_tokenizer *tokenizer, const nib_json *ids, bool skip_special, const nib_json *expected)
{
    nib_buffer text = {0};
    int32_t *list = calloc(ids->length + 1, sizeof *list);
    size_t count = 0;
    for (const nib_json *id = ids->first; id != NULL; id = id->next) list[count++] = (int32_t)id->integer;
    assert_int_equal(nib_tokenizer_decode(tokenizer, list, count, skip_special, &text), NIB_OK);
    if (text.length != expected->length || memcmp(text.data, expected->string, text.length) != 0)
        fail_msg("decoded \"%s\", expected \"%s\"", text.data, expected->string);
    nib_buffer_free(&text);
    free(list);
}

static void family_is_equal(void **state)
{
    const char *name = *state;
    char path[512];
    char *cases;
    size_t length, count = 0;
    nib_tokenizer *tokenizer;
    snprintf(path, sizeof path, "%s/tokenizers/%s/tokenizer.json", NIB_TEST_DATA, name);
    if (nib_tokenizer_open(path, &tokenizer) != NIB_OK) fail_msg("%s", nib_error_message());
    snprintf(path, sizeof path, "%s/tokenizers/%s/cases.jsonl", NIB_TEST_DATA, name);
    assert_int_equal(nib_file_read(path, 1 << 24, &cases, &length), NIB_OK);
    for (char *line = cases, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, count++) {
        nib_pool pool = {0};
        nib_json *row;
        nib_json_options options = {.allow_nul = true};
        assert_int_equal(nib_json_parse(path, line, (size_t)(end - line), options, &pool, &row), NIB_OK);
        const nib_json *text = nib_json_get(row, "text"), *ids = nib_json_get(row, "ids");
        ids_are(tokenizer, text->string, text->length, false, ids);
        ids_are(tokenizer, text->string, text->length, true, nib_json_get(row, "ids_with_special"));
        text_is(tokenizer, ids, false, nib_json_get(row, "decoded"));
        text_is(tokenizer, nib_json_get(row, "ids_with_special"), true, nib_json_get(row, "decoded_skip_special"));
        nib_pool_free(&pool);
    }
    assert_true(count > 300);
    nib_free(cases);
    nib_tokenizer_free(tokenizer);
}

/* Texts separated by a line of their own; ids of each on a line. */
static void gguf_is_equal(void **state)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    const char *name = *state;
    char path[512];
    char *texts, *ids, *text, *line;
    size_t length, count = 0;
    nib_tokenizer *tokenizer;
    snprintf(path, sizeof path, "%s/gguf_vocab/ggml-vocab-%s.gguf", NIB_TEST_DATA, name);
    if (nib_tokenizer_open(path, &tokenizer) != NIB_OK) fail_msg("%s", nib_error_message());
    snprintf(path, sizeof path, "%s/gguf_vocab/ggml-vocab-%s.gguf.inp", NIB_TEST_DATA, name);
    assert_int_equal(nib_file_read(path, 1 << 20, &texts, &length), NIB_OK);
    snprintf(path, sizeof path, "%s/gguf_vocab/ggml-vocab-%s.gguf.out", NIB_TEST_DATA, name);
    assert_int_equal(nib_file_read(path, 1 << 20, &ids, &length), NIB_OK);
    for (text = texts, line = ids; text != NULL; count++) {
        char *next = strstr(text, separator);
        size_t text_length = next != NULL ? (size_t)(next - text) : strlen(text);
        nib_token_list list = {0};
        nib_encode_options options = {.add_special = false, .parse_special = false};
        assert_int_equal(nib_tokenizer_encode(tokenizer, text, text_length, options, &list), NIB_OK);
        char *line_end = line + strcspn(line, "\n");
        for (size_t i = 0; i < list.count; i++) {
            char *rest;
            if (strtol(line, &rest, 10) != list.ids[i] || rest == line || rest > line_end)
                fail_msg("%s: case %zu differs at token %zu", name, count, i);
            line = rest;
        }
        assert_int_equal(strspn(line, " "), line_end - line);
        line = line_end + (*line_end == '\n');
        nib_token_list_free(&list);
        text = next != NULL ? next + strlen(separator) : NULL;
    }
    assert_true(count > 40);
    nib_free(texts);
    nib_free(ids);
    nib_tokenizer_free(tokenizer);
}

int main(void)
{
#define FAMILY(name)                                                                                                   \
    {                                                                                                                  \
        "tokenizer.json of " name, family_is_equal, NULL, NULL, (void *)name                                           \
    }
#define GGUF(name)                                                                                                     \
    {                                                                                                                  \
        "vocabulary in a GGUF of " name, gguf_is_equal, NULL, NULL, (void *)name                                       \
    }
    const struct CMUnitTest tests[] = {
        FAMILY("llama3"),  FAMILY("qwen2"),  FAMILY("tekken"),  FAMILY("phi4"),        FAMILY("gpt2_phi2"),
        FAMILY("smollm2"), FAMILY("falcon"), FAMILY("gemma"),   FAMILY("mistral_spm"), FAMILY("mistral_metaspace"),
        GGUF("llama-bpe"), GGUF("falcon"),   GGUF("llama-spm"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
