/* Every chat template of tests/golden/data/chat against what transformers' own environment rendered from it (or the
 * message that it raised), and the language against a table of snippets that jinja2 evaluated
 * (tests/peers/jinja_cases.py). */
#include "../check.h"

#include "base/file.h"
#include "tokenizer/chat_template.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char *read_file(const char *path, size_t *length)
{
    char *text = NULL;
    if (nib_file_read(path, 64 << 20, &text, length) != NIB_OK) fail_msg("%s", nib_error_message());
    return text;
}

static nib_json *read_json(const char *path, nib_pool *pool)
{
    size_t length;
    nib_json *root = NULL;
    char *text = read_file(path, &length);
    if (nib_json_parse(path, text, length, (nib_json_options){0}, pool, &root) != NIB_OK)
        fail_msg("%s", nib_error_message());
    nib_free(text);
    return root;
}

static const char *string_of(const nib_json *object, const char *key)
{
    const nib_json *value = nib_json_get(object, key);
    return nib_json_is(value, NIB_JSON_STRING) ? value->string : NULL;
}

static const nib_json *array_of(const nib_json *object, const char *key)
{
    const nib_json *value = nib_json_get(object, key);
    return nib_json_is(value, NIB_JSON_ARRAY) ? value : NULL;
}

/* 1 if the rendering is as the case wants it, else 0, told on standard error. */
static int check_rendering(const char *name, const nib_chat_template *chat_template, const nib_chat_inputs *inputs,
                           const nib_json *wanted)
{
    nib_buffer text = {0};
    const char *rendered = string_of(wanted, "rendered"), *error = string_of(wanted, "error");
    nib_status status = nib_chat_template_render(chat_template, inputs, &text);
    const char *found = text.data != NULL ? text.data : "";
    int good = error != NULL ? status == NIB_ERROR_DATA && strstr(nib_error_message(), error) != NULL
                             : status == NIB_OK && rendered != NULL && strcmp(found, rendered) == 0;
    if (!good)
        fprintf(stderr, "%s, line %u of its cases:\n  found    %s\n  expected %s\n", name, wanted->line,
                status == NIB_OK ? found : nib_error_message(), error != NULL ? error : rendered);
    nib_buffer_free(&text);
    return good;
}

static void check_template(const char *name)
{
    char path[4096];
    nib_pool pool = {0};
    size_t length;
    int bad = 0, cases = 0;
    snprintf(path, sizeof path, NIB_TEST_DATA "/chat/%s.jinja", name);
    char *source = read_file(path, &length);
    snprintf(path, sizeof path, NIB_TEST_DATA "/chat/%s.json", name);
    const nib_json *root = read_json(path, &pool);
    nib_chat_template *chat_template = NULL;
    if (nib_chat_template_compile(name, source, &chat_template) != NIB_OK) fail_msg("%s", nib_error_message());
    struct tm now = {0};
    assert_non_null(strptime(string_of(root, "now"), "%Y-%m-%dT%H:%M:%S", &now));
    for (const nib_json *item = array_of(root, "cases")->first; item != NULL; item = item->next) {
        nib_chat_inputs inputs = {.messages = array_of(item, "messages"),
                                  .tools = array_of(item, "tools"),
                                  .bos_token = string_of(root, "bos_token"),
                                  .eos_token = string_of(root, "eos_token"),
                                  .now = timegm(&now)};
        inputs.add_generation_prompt = nib_json_is(nib_json_get(item, "add_generation_prompt"), NIB_JSON_TRUE);
        bad += !check_rendering(name, chat_template, &inputs, item);
        cases++;
    }
    nib_chat_template_free(chat_template);
    nib_free(source);
    nib_pool_free(&pool);
    assert_true(cases > 0);
    assert_int_equal(bad, 0);
}

static void templates_render_as_transformers_renders_them(void **state)
{
    (void)state;
    int templates = 0;
    DIR *folder = opendir(NIB_TEST_DATA "/chat");
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char *suffix = strstr(entry->d_name, ".jinja");
        if (suffix == NULL) continue;
        *suffix = 0;
        check_template(entry->d_name);
        templates++;
    }
    closedir(folder);
    assert_true(templates >= 17);
}

static void the_language_is_that_of_jinja2(void **state)
{
    (void)state;
    nib_pool pool = {0};
    int bad = 0, cases = 0;
    const nib_json *root = read_json(NIB_TEST_DATA "/jinja/cases.json", &pool);
    const nib_json *variables = nib_json_get(root, "variables");
    for (const nib_json *item = array_of(root, "cases")->first; item != NULL; item = item->next, cases++) {
        nib_chat_template *chat_template = NULL;
        const char *source = string_of(item, "source");
        nib_chat_inputs inputs = {
            .messages = array_of(variables, "messages"), .bos_token = "<s>", .eos_token = "</s>", .extra = variables};
        bool raises = nib_json_get(item, "raises") != NULL;
        nib_status status = nib_chat_template_compile("case", source, &chat_template);
        if (raises) {
            nib_buffer text = {0};
            if (status == NIB_OK) status = nib_chat_template_render(chat_template, &inputs, &text);
            if (status != NIB_ERROR_DATA)
                fprintf(stderr, "%s\n  found    %s\n  expected an error: %s\n", source, text.data,
                        string_of(item, "raises"));
            bad += status != NIB_ERROR_DATA;
            nib_buffer_free(&text);
        } else if (status != NIB_OK) {
            fprintf(stderr, "%s\n  found    %s\n  expected %s\n", source, nib_error_message(),
                    string_of(item, "rendered"));
            bad++;
        } else {
            bad += !check_rendering(source, chat_template, &inputs, item);
        }
        nib_chat_template_free(chat_template);
    }
    nib_pool_free(&pool);
    fprintf(stderr, "%d of %d snippets wrong\n", bad, cases);
    assert_true(cases > 300);
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_render_as_transformers_renders_them),
        cmocka_unit_test(the_language_is_that_of_jinja2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
