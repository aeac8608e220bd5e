/* Compressed rows are made with libzstd and damaged in every way that its checksum or our rules can see. */
#include "check.h"
#include "folder.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/memory.h"
#include "formats/row_reader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

static char path[64];

static int set_up(void **state)
{
    if (make_folder(state) != 0) return -1;
    snprintf(path, sizeof path, "%s/rows.jsonl", folder);
    return 0;
}

/* Writes bytes to the file and reads it; the lines are put into *all, each ended by '|'. */
static nib_status read_rows(const void *bytes, size_t size, nib_buffer *all)
{
    nib_row_reader *reader;
    const char *line;
    size_t length;
    nib_buffer_clear(all);
    unlink(path); /* some file systems flush a file that is truncated and written again, never a new one */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    nib_status status = nib_row_reader_open(path, &reader);
    if (status != NIB_OK) return status;
    while ((status = nib_row_reader_next(reader, &line, &length)) == NIB_OK && line != NULL) {
        nib_buffer_append(all, line, length);
        nib_buffer_char(all, '|');
    }
    nib_row_reader_close(reader);
    return status;
}

/* One frame with a content checksum. */
static void append_frame(nib_buffer *file, const char *text, size_t length)
{
    size_t bound = ZSTD_compressBound(length);
    char *frame = malloc(bound);
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    size_t size = ZSTD_compress2(context, frame, bound, text, length);
    assert_false(ZSTD_isError(size));
    nib_buffer_append(file, frame, size);
    ZSTD_freeCCtx(context);
    free(frame);
}

static void lines_come_as_written(void **state)
{
    (void)state;
    static const struct {
        const char *text, *lines;
    } cases[] = {
        {"", ""},
        {"\n", "|"},
        {"a", "a|"},
        {"a\n", "a|"},
        {"a\n\nb", "a||b|"},
        {"a\r\nb\r\n", "a|b|"},
        {"\xef\xbb\xbf"
         "a\nb\n",
         "a|b|"},
        {"\xef\xbb\xbf", ""},
    };
    nib_buffer all = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nib_buffer file = {0};
        assert_int_equal(read_rows(cases[i].text, strlen(cases[i].text), &all), NIB_OK);
        assert_string_equal(all.length > 0 ? all.data : "", cases[i].lines);
        append_frame(&file, cases[i].text, strlen(cases[i].text));
        assert_int_equal(read_rows(file.data, file.length, &all), NIB_OK);
        assert_string_equal(all.length > 0 ? all.data : "", cases[i].lines);
        nib_buffer_free(&file);
    }
    nib_buffer_free(&all);
}

/* Frames cut lines anywhere; skippable frames (the seek table is one) carry no text. */
static void frames_are_joined(void **state)
{
    (void)state;
    static const char skippable[] = "\x5e\x2a\x4d\x18\x03\x00\x00\x00xyz";
    nib_buffer file = {0}, all = {0};
    append_frame(&file, "{\"te", 4);
    nib_buffer_append(&file, skippable, sizeof skippable - 1);
    append_frame(&file, "", 0);
    append_frame(&file, "xt\": 1}\n2", 9);
    nib_buffer_append(&file, skippable, sizeof skippable - 1);
    assert_int_equal(read_rows(file.data, file.length, &all), NIB_OK);
    assert_string_equal(all.data, "{\"text\": 1}|2|");
    nib_buffer_free(&file);
    nib_buffer_free(&all);
}

/* A line of 3 MB between short ones, far larger than a decoder's piece of output. */
static void long_lines_are_whole(void **state)
{
    (void)state;
    nib_buffer text = {0}, file = {0}, all = {0};
    nib_buffer_text(&text, "first\n");
    for (int i = 0; i < 3000000; i++) nib_buffer_char(&text, (char)('a' + i % 23));
    nib_buffer_text(&text, "\nlast\n");
    append_frame(&file, text.data, text.length);
    assert_int_equal(read_rows(file.data, file.length, &all), NIB_OK);
    for (size_t i = 0; i < text.length; i++)
        if (text.data[i] == '\n') text.data[i] = '|';
    assert_int_equal(all.length, text.length);
    assert_memory_equal(all.data, text.data, text.length);
    nib_buffer_free(&text);
    nib_buffer_free(&file);
    nib_buffer_free(&all);
}

static void expect_error(const void *bytes, size_t size, const char *part)
{
    nib_buffer all = {0};
    assert_int_equal(read_rows(bytes, size, &all), NIB_ERROR_DATA);
    if (strstr(nib_error_message(), part) == NULL) fail_msg("\"%s\" is not in \"%s\"", part, nib_error_message());
    nib_buffer_free(&all);
}

static void errors_say_where(void **state)
{
    (void)state;
    nib_buffer file = {0}, text = {0};
    expect_error("ok\nb\xc3(\n", 7, "rows.jsonl:2: invalid UTF-8 at byte 4 of the file (0xc3)");
    append_frame(&file, "ok\n\xff\n", 5);
    expect_error(file.data, file.length, "rows.jsonl:2: invalid UTF-8 at byte 3 of the decoded text (0xff)");
    nib_buffer_clear(&file);
    append_frame(&file, "ok\n", 3);
    size_t first = file.length;
    char where[64];
    nib_buffer_text(&file, "garbage");
    snprintf(where, sizeof where, "byte %zu: found 67 61 72 62, expected the start of a zstd frame", first);
    expect_error(file.data, file.length, where);
    snprintf(where, sizeof where, "byte %zu: 3 bytes are left, too few for a zstd frame", first);
    expect_error(file.data, first + 3, where);
    file.length = first;
    file.data[first - 1] ^= 1; /* the checksum ends the frame */
    expect_error(file.data, first, "begins at byte 0 is corrupt");
    /* A header alone, of an empty last block: windows of 128 MiB and of 256 MiB. */
    static const char window[] = "\x28\xb5\x2f\xfd\x00\x88\x01\x00\x00",
                      wide[] = "\x28\xb5\x2f\xfd\x00\x90\x01\x00\x00";
    assert_int_equal(read_rows(window, sizeof window - 1, &text), NIB_OK);
    expect_error(wide, sizeof wide - 1, "the zstd frame that begins at byte 0 looks back further than 128 MiB");
    nib_buffer_clear(&text);
    for (size_t i = 0; i < ((size_t)64 << 20) + 1; i++) nib_buffer_char(&text, 'a');
    expect_error(text.data, text.length, "rows.jsonl:1: the line that begins at byte 0 is longer than 67108864 bytes");
    nib_buffer_clear(&file);
    append_frame(&file, text.data, text.length);
    expect_error(file.data, file.length, "the line that begins at byte 0 is longer than 67108864 bytes");
    nib_buffer_free(&file);
    nib_buffer_free(&text);
}

static void sample(nib_buffer *file)
{
    nib_buffer text = {0};
    for (int i = 0; i < 40; i++)
        nib_buffer_format(&text, "{\"prompt\": \"number %d\", \"completion\": \"%d\"}\n", i, i * i);
    append_frame(file, text.data, text.length);
    nib_buffer_free(&text);
}

/* Cut anywhere inside its frame, a compressed file is refused. (An uncompressed one, or a cut between frames, cannot
 * be told from a shorter file.) */
static void every_truncation_is_noticed(void **state)
{
    (void)state;
    nib_buffer file = {0}, all = {0};
    sample(&file);
    snprintf(path, sizeof path, "%s/rows.jsonl.zst", folder);
    for (size_t n = 0; n < file.length; n++)
        if (read_rows(file.data, n, &all) != NIB_ERROR_DATA) fail_msg("cut to %zu bytes it is accepted", n);
    assert_int_equal(read_rows(file.data, file.length, &all), NIB_OK);
    nib_buffer_free(&file);
    nib_buffer_free(&all);
}

/* 10,000 flips of one bit: refused, or the very same text (a bit of the frame header that means nothing). */
static void no_bit_flip_is_silent(void **state)
{
    (void)state;
    nib_buffer file = {0}, want = {0}, all = {0};
    sample(&file);
    snprintf(path, sizeof path, "%s/rows.jsonl.zst", folder);
    assert_int_equal(read_rows(file.data, file.length, &want), NIB_OK);
    for (size_t i = 0; i < 10000; i++) {
        size_t bit = i * 7919 % (file.length * 8);
        file.data[bit / 8] ^= (char)(1 << bit % 8);
        if (read_rows(file.data, file.length, &all) == NIB_OK &&
            (all.length != want.length || memcmp(all.data, want.data, want.length) != 0))
            fail_msg("flipping bit %zu gives other rows", bit);
        file.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    nib_buffer_free(&file);
    nib_buffer_free(&want);
    nib_buffer_free(&all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_come_as_written),       cmocka_unit_test(frames_are_joined),
        cmocka_unit_test(long_lines_are_whole),        cmocka_unit_test(errors_say_where),
        cmocka_unit_test(every_truncation_is_noticed), cmocka_unit_test(no_bit_flip_is_silent),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
