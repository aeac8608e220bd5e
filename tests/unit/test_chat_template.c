/* What transformers adds to Jinja (generation blocks, strftime_now), the lines in messages, the inputs. */
#include "../check.h"

#include "tokenizer/chat_template.h"

#include <string.h>

static nib_status render(const char *source, nib_buffer *text)
{
    static const char conversation[] = "[{\"role\":\"user\",\"content\":\"Hi\"}]";
    nib_pool pool = {0};
    nib_json *messages = NULL, *extra = NULL;
    nib_chat_template *chat_template = NULL;
    assert_int_equal(nib_json_parse("m", conversation, strlen(conversation), (nib_json_options){0}, &pool, &messages),
                     NIB_OK);
    assert_int_equal(nib_json_parse("x", "{\"enable_thinking\":false}", 25, (nib_json_options){0}, &pool, &extra),
                     NIB_OK);
    nib_chat_inputs inputs = {.messages = messages,
                              .bos_token = "<s>",
                              .eos_token = "</s>",
                              .add_generation_prompt = true,
                              .now = 1767323045, /* 2026-01-02T03:04:05, date -u -d @1767323045 */
                              .extra = extra};
    nib_status status = nib_chat_template_compile("t", source, &chat_template);
    if (status == NIB_OK) status = nib_chat_template_render(chat_template, &inputs, text);
    nib_chat_template_free(chat_template);
    nib_pool_free(&pool);
    return status;
}

static void expect(const char *source, const char *rendered)
{
    nib_buffer text = {0};
    if (render(source, &text) != NIB_OK) fail_msg("%s", nib_error_message());
    assert_string_equal(text.data, rendered);
    nib_buffer_free(&text);
}

static void expect_error(const char *source, const char *message)
{
    nib_buffer text = {0};
    assert_int_equal(render(source, &text), NIB_ERROR_DATA);
    assert_string_equal(nib_error_message(), message);
    assert_int_equal(text.length, 0); /* nothing is appended by a rendering that fails */
    nib_buffer_free(&text);
}

static void generation_blocks_are_part_of_the_text(void **state)
{
    (void)state;
    expect("a{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}b", "aHib");
}

/* Expected: datetime.datetime(2026, 1, 2, 3, 4, 5).strftime(...) in CPython 3.11 on Linux. */
static void strftime_now_is_that_of_python(void **state)
{
    (void)state;
    expect("{{ strftime_now('%d %b %Y') }}", "02 Jan 2026");
    expect("{{ strftime_now('%-d/%-m %H:%M:%S.%f %A%%%Z|%z|%j') }}", "2/1 03:04:05.000000 Friday%||002");
    expect("{{ strftime_now('é %B') }}", "é January");
}

static void inputs_are_variables(void **state)
{
    (void)state;
    expect("{{ bos_token }}{{ messages[0].role }}{{ eos_token }}{{ tools }}{{ documents }}{{ add_generation_prompt }}"
           "{{ enable_thinking }}",
           "<s>user</s>NoneNoneTrueFalse");
}

static void messages_name_the_line(void **state)
{
    (void)state;
    expect_error("a\n{{ raise_exception('no such role') }}", "t:2: no such role");
    expect_error("\n\n{% for m in messages %}\n{{ m.a.b }}{% endfor %}", "t:4: 'dict object' has no attribute 'a'");
    expect_error("x\n{{ 1 +\n\n }}", "t:4: unexpected '}}', expected an expression");
    expect_error("{{ nothing.at_all }}", "t:1: 'nothing' is undefined");
    expect_error("{{ messages.append(1) }}", "t:1: access to attribute 'append' of 'list' object is unsafe.");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(generation_blocks_are_part_of_the_text),
        cmocka_unit_test(strftime_now_is_that_of_python),
        cmocka_unit_test(inputs_are_variables),
        cmocka_unit_test(messages_name_the_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
