/* The line editor, key by key: | marks the cursor in what is expected. */
#include "check.h"

#include "base/random.h"
#include "base/utf8.h"
#include "line_editor.h"

#include <stdio.h>
#include <string.h>

static nib_edit_result type(nib_line_editor *editor, const char *keys)
{
    nib_edit_result result = NIB_EDIT_MORE;
    for (; *keys != 0; keys++) result = nib_line_editor_feed(editor, (uint8_t)*keys);
    return result;
}

static void expect_text(const nib_line_editor *editor, const char *expected)
{
    char shown[256];
    const char *text = editor->text.data == NULL ? "" : editor->text.data;
    snprintf(shown, sizeof shown, "%.*s|%s", (int)editor->cursor, text, text + editor->cursor);
    assert_string_equal(shown, expected);
}

static void keys_move_and_erase(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"hello", "hello|"},
        {"hello\x1b[D\x1b[D", "hel|lo"},
        {"hello\x1bOD\x7f", "hel|o"},
        {"hello\x1b[H\x1b[3~", "|ello"},
        {"hello\x01x\x05y", "xhelloy|"},
        {"hello\x02\x02\x0b", "hel|"},
        {"hello\x02\x02\x15", "|lo"},
        {"one two  three\x17", "one two  |"},
        {"one two  three\x17\x17", "one |"},
        {"one two\x1b[1;5D\x1b[1;5D", "|one two"},
        {"one two\x1b[1;5D\x1b[1;5D\x1b[1;5C", "one| two"},
        {"one two\x01\x1b"
         "f\x1b"
         "f\x1b"
         "b",
         "one |two"},
        {"a\x04", "a|"},
        {"ab\x02\x04", "a|"},
        {"\x7f\x08\x1b[C\x1b[D\x1b[3~", "|"},
        {"gr\xc3\xbc\xc3\x9f", "grüß|"},
        {"gr\xc3\xbc\xc3\x9f\x7f", "grü|"},
        {"e\xcc\x81x\x02\x02", "|e\xcc\x81x"}, /* a letter and its combining accent are one */
        {"a\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80"
         "b\x02\x7f",
         "a|b"},                 /* so is an emoji of three code points */
        {"a\x1b[99;7Zb", "ab|"}, /* an unknown sequence */
        {"a\xffz\xc3(b", "az(b|"},
        {"a\xe6\xbc\x7f"
         "b",
         "b|"}, /* bytes that are no UTF-8 */
        {"a\tb", "ab|"},
        {"x\x1b[200~one\r\ntw\to\x03\x1b[Z\x1b\x1b[201~y", "xone\n\ntw oy|"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nib_line_editor editor = {0};
        nib_line_editor_begin(&editor);
        assert_int_equal(type(&editor, cases[i][0]), NIB_EDIT_MORE);
        expect_text(&editor, cases[i][1]);
        nib_line_editor_free(&editor);
    }
}

static void lines_end(void **state)
{
    (void)state;
    nib_line_editor editor = {0};
    nib_line_editor_begin(&editor);
    assert_int_equal(type(&editor, "a\r"), NIB_EDIT_LINE);
    assert_int_equal(type(&editor, "b\x03"), NIB_EDIT_INTERRUPT);
    nib_line_editor_begin(&editor);
    assert_int_equal(type(&editor, "\x04"), NIB_EDIT_END);
    assert_int_equal(type(&editor, "\x0c"), NIB_EDIT_CLEAR);
    nib_line_editor_free(&editor);
}

static void enter(nib_line_editor *editor, const char *line)
{
    nib_line_editor_begin(editor);
    type(editor, line);
    nib_line_editor_remember(editor);
}

static void history_comes_back_and_keeps_the_draft(void **state)
{
    (void)state;
    nib_line_editor editor = {0};
    enter(&editor, "first");
    enter(&editor, "second");
    enter(&editor, "second");
    enter(&editor, "");
    nib_line_editor_begin(&editor);
    type(&editor, "draft\x1b[A");
    expect_text(&editor, "second|");
    type(&editor, "\x1b[A");
    expect_text(&editor, "first|");
    type(&editor, "\x1b[A!");
    expect_text(&editor, "first!|");
    type(&editor, "\x1b[B\x1b[B");
    expect_text(&editor, "draft|");
    type(&editor, "\x1b[B");
    expect_text(&editor, "draft|");
    nib_line_editor_free(&editor);
}

/* Whatever bytes come, the text stays UTF-8 and the cursor inside it. */
static void random_bytes_do_no_harm(void **state)
{
    (void)state;
    static const char likely[] = "\x1b[200~\x1b[201~\x1b[A\x1b[B\x1b[3~\x01\x02\x05\x06\x0b\x15\x17\x7f"
                                 "a \xe6\xbc\xa2\xcc\x81\r\n";
    nib_line_editor editor = {0};
    nib_line_editor_begin(&editor);
    for (uint64_t i = 0; i < 200000; i++) {
        uint32_t word[4];
        nib_philox(1, 0, i, word);
        uint8_t byte = word[0] % 4 == 0 ? (uint8_t)word[1] : (uint8_t)likely[word[1] % (sizeof likely - 1)];
        if (nib_line_editor_feed(&editor, byte) == NIB_EDIT_LINE) {
            nib_line_editor_remember(&editor);
            nib_line_editor_begin(&editor);
        }
        assert_true(editor.cursor <= editor.text.length);
        if (editor.text.length == 0) continue;
        assert_int_equal(nib_utf8_invalid_at(editor.text.data, editor.text.length), editor.text.length);
        assert_int_equal(nib_utf8_invalid_at(editor.text.data, editor.cursor), editor.cursor);
        if (editor.text.length > 500) nib_line_editor_begin(&editor);
    }
    nib_line_editor_free(&editor);
}

static void wide_characters_wrap_whole(void **state)
{
    (void)state;
    int row = 0, column = 0;
    nib_line_extent("abcdefgh\xe6\xbc\xa2", 11, 9, &row, &column); /* the ideograph needs two columns; one is left */
    assert_int_equal(row, 1);
    assert_int_equal(column, 2);
    row = column = 0;
    nib_line_extent("e\xcc\x81\n", 4, 80, &row, &column);
    assert_int_equal(row, 0);
    assert_int_equal(column, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_move_and_erase),
        cmocka_unit_test(lines_end),
        cmocka_unit_test(history_comes_back_and_keeps_the_draft),
        cmocka_unit_test(random_bytes_do_no_harm),
        cmocka_unit_test(wide_characters_wrap_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
