/* Templates that are broken or mean harm: every truncation and thousands of bit flips of the real ones neither crash
 * nor hang (run under ASan by the asan preset), and each limit is met with a message that names it and the line. */
#include "../check.h"

#include "base/file.h"
#include "tokenizer/chat_template.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nib_pool pool;
static nib_json *messages;

static int read_messages(void **state)
{
    (void)state;
    static const char text[] = "[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Ho\"}]";
    return nib_json_parse("messages", text, strlen(text), (nib_json_options){0}, &pool, &messages) != NIB_OK;
}

static int free_messages(void **state)
{
    (void)state;
    nib_pool_free(&pool);
    return 0;
}

static nib_status render(const char *source)
{
    nib_chat_template *chat_template = NULL;
    nib_buffer text = {0};
    nib_chat_inputs inputs = {.messages = messages, .bos_token = "<s>", .eos_token = "</s>"};
    nib_status status = nib_chat_template_compile("t", source, &chat_template);
    if (status == NIB_OK) status = nib_chat_template_render(chat_template, &inputs, &text);
    nib_chat_template_free(chat_template);
    nib_buffer_free(&text);
    return status;
}

static void expect_error(const char *source, const char *message)
{
    nib_status status = render(source);
    if (status != NIB_ERROR_DATA || strstr(nib_error_message(), message) == NULL)
        fail_msg("status %d, \"%s\", expected \"%s\"", status, nib_error_message(), message);
}

static void endless_loops_meet_the_step_limit(void **state)
{
    (void)state;
    expect_error("\n{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                 "t:2: more than 10000000 steps");
    expect_error("{% set x = [0] * 999999999999 %}", "t:1: more than");
}

static void endless_recursion_meets_the_depth_limit(void **state)
{
    (void)state;
    expect_error("{% macro m() %}\n{{ m() }}{% endmacro %}{{ m() }}", "t:2: nested deeper than 1000");
    expect_error("{% for x in [1] recursive %}\n{{ loop([1]) }}{% endfor %}", "t:2: nested deeper than 1000");
    expect_error("{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = [n.l] %}{% endfor %}\n{{ n.l }}",
                 "t:2: nested deeper than 1000");
    expect_error("{% set n = namespace() %}{% set n.n = n %}\n{{ n }}", "t:2: nested deeper than 1000");
}

static void big_results_meet_their_limits(void **state)
{
    (void)state;
    expect_error("{% set x = 'x' * 99999999999 %}", "t:1: a text of more than 64 MiB");
    expect_error("{% for i in range(99999) %}\n{{ 'x' * 10000 }}{% endfor %}", "t:2: ");
    expect_error("{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "MiB");
    expect_error("{{ 9223372036854775807 + 1 }}", "64 bits");
    expect_error("{{ -9223372036854775807 - 2 }}", "64 bits");
    expect_error("{{ 2 ** 64 }}", "64 bits");
}

static void deep_source_is_refused(void **state)
{
    (void)state;
    static const char *const expressions[] = {"(", "[", "not ", "-", "{1:", "1+", "x.y|f(", "1 if 1 else "};
    char *source = nib_calloc(1 << 20, 1);
    assert_non_null(source);
    for (int i = 0; i < 20000; i++) memcpy(source + (size_t)i * 10, "{% if 1 %}", 10);
    expect_error(source, "deeper than 200");
    for (size_t k = 0; k < sizeof expressions / sizeof *expressions; k++) {
        size_t length = (size_t)sprintf(source, "{{ ");
        for (int i = 0; i < 20000; i++) length += (size_t)sprintf(source + length, "%s", expressions[k]);
        sprintf(source + length, "1 }}");
        assert_int_equal(render(source), NIB_ERROR_DATA);
    }
    nib_free(source);
}

/* Calls `each` for every template of the golden data. */
static void for_each_template(void (*each)(char *source, size_t length))
{
    DIR *folder = opendir(NIB_TEST_DATA "/chat");
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char path[4096], *source = NULL;
        size_t length;
        if (strstr(entry->d_name, ".jinja") == NULL) continue;
        snprintf(path, sizeof path, NIB_TEST_DATA "/chat/%s", entry->d_name);
        assert_int_equal(nib_file_read(path, 1 << 20, &source, &length), NIB_OK);
        each(source, length);
        nib_free(source);
    }
    closedir(folder);
}

static void truncate_everywhere(char *source, size_t length)
{
    for (size_t cut = length; cut-- > 0;) {
        source[cut] = 0;
        assert_int_not_equal(render(source), NIB_ERROR_INTERNAL);
    }
}

static void flip_bits(char *source, size_t length)
{
    uint64_t random = 88172645463325252u; /* xorshift64, Marsaglia 2003 */
    for (int i = 0; i < 600; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        size_t at = (random >> 8) % length;
        char bit = (char)(1 << (random & 7));
        source[at] ^= bit;
        assert_int_not_equal(render(source), NIB_ERROR_INTERNAL);
        source[at] ^= bit;
    }
}

static void truncated_templates_do_no_harm(void **state)
{
    (void)state;
    for_each_template(truncate_everywhere);
}

static void templates_with_flipped_bits_do_no_harm(void **state)
{
    (void)state;
    for_each_template(flip_bits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(endless_loops_meet_the_step_limit), cmocka_unit_test(endless_recursion_meets_the_depth_limit),
        cmocka_unit_test(big_results_meet_their_limits),     cmocka_unit_test(deep_source_is_refused),
        cmocka_unit_test(truncated_templates_do_no_harm),    cmocka_unit_test(templates_with_flipped_bits_do_no_harm),
    };
    return cmocka_run_group_tests(tests, read_messages, free_messages);
}
