/* Files of the seekable format: zstd itself reads them, any part is read alone, and no damage goes unseen. */
#include "check.h"

#include "base/file.h"
#include "base/memory.h"
#include "formats/row_reader.h"
#include "formats/zstd_frames.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/nib_frames_XXXXXX";
static char path[64], hex[65];

static int make_folder(void **state)
{
    (void)state;
    if (mkdtemp(folder) == NULL) return -1;
    snprintf(path, sizeof path, "%s/rows.zst", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return nib_file_remove_tree(folder) == NIB_OK ? 0 : -1;
}

/* Text that compresses as rows do, different everywhere. */
static char *make_content(size_t length)
{
    char *content = malloc(length + 1);
    unsigned seed = 7;
    for (size_t i = 0; i < length; i++) {
        seed = seed * 1103515245u + 12345u;
        content[i] = i % 40 == 39 ? '\n' : (char)('a' + (seed >> 16) % 4);
    }
    return content;
}

static void write_frames(const char *content, size_t length, size_t frame_length)
{
    nib_zstd_writer writer;
    nib_buffer frame = {0};
    uint64_t file_size;
    unlink(path);
    assert_int_equal(nib_zstd_writer_open(path, &writer), NIB_OK);
    for (size_t at = 0, n; at < length; at += n) {
        n = length - at < frame_length ? length - at : frame_length;
        nib_buffer_clear(&frame);
        assert_int_equal(nib_zstd_frame_append(content + at, n, &frame), NIB_OK);
        assert_int_equal(nib_zstd_writer_add(&writer, frame.data, frame.length, n), NIB_OK);
    }
    assert_int_equal(nib_zstd_writer_finish(&writer, &file_size, hex), NIB_OK);
    nib_buffer_free(&frame);
}

static void write_bytes(const void *bytes, size_t size)
{
    unlink(path); /* some file systems flush a file that is truncated and written again, never a new one */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* All content, frame by frame; *got is NULL if it is refused. */
static nib_status read_all(char **got, size_t *length)
{
    nib_zstd_reader *reader;
    *got = NULL;
    nib_status status = nib_zstd_reader_open(path, &reader);
    if (status != NIB_OK) return status;
    *length = nib_zstd_reader_content(reader);
    *got = malloc(*length + 1);
    status = nib_zstd_reader_read(reader, 0, *got, *length);
    nib_zstd_reader_close(reader);
    if (status != NIB_OK) {
        free(*got);
        *got = NULL;
    }
    return status;
}

static void zstd_reads_what_is_written(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, 1, NIB_FRAME_CONTENT, 3 * NIB_FRAME_CONTENT + 777};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        char *content = make_content(lengths[k]), *plain, *packed, command[256], sum[80] = "", own[65];
        size_t length;
        write_frames(content, lengths[k], NIB_FRAME_CONTENT);
        snprintf(command, sizeof command, "zstd -q -t %s && zstd -q -d -f -o %s/plain %s", path, folder, path);
        assert_int_equal(system(command), 0);
        snprintf(command, sizeof command, "%s/plain", folder);
        assert_int_equal(nib_file_read(command, 16 << 20, &plain, &length), NIB_OK);
        assert_int_equal(length, lengths[k]);
        assert_memory_equal(plain, content, length);
        assert_int_equal(nib_file_read(path, 16 << 20, &packed, &length), NIB_OK);
        nib_sha256_of(packed, length, own);
        snprintf(command, sizeof command, "sha256sum %s", path);
        FILE *pipe = popen(command, "r");
        assert_non_null(fgets(sum, sizeof sum, pipe));
        pclose(pipe);
        assert_memory_equal(sum, hex, 64);
        assert_string_equal(own, hex);
        nib_free(plain);
        nib_free(packed);
        free(content);
    }
}

static void any_part_is_read_alone(void **state)
{
    (void)state;
    enum { LENGTH = 100000, FRAME = 4096 };
    char *content = make_content(LENGTH), part[3 * FRAME];
    nib_zstd_reader *reader;
    unsigned seed = 3;
    write_frames(content, LENGTH, FRAME);
    assert_int_equal(nib_zstd_reader_open(path, &reader), NIB_OK);
    assert_int_equal(nib_zstd_reader_content(reader), LENGTH);
    assert_int_equal(nib_zstd_reader_frames(reader), (LENGTH + FRAME - 1) / FRAME);
    for (int i = 0; i < 3000; i++) {
        seed = seed * 1103515245u + 12345u;
        size_t at = (seed >> 8) % LENGTH, n = (seed >> 4) % sizeof part;
        if (n > LENGTH - at) n = LENGTH - at;
        assert_int_equal(nib_zstd_reader_read(reader, at, part, n), NIB_OK);
        assert_memory_equal(part, content + at, n);
    }
    assert_int_equal(nib_zstd_reader_read(reader, LENGTH - 1, part, 2), NIB_ERROR_DATA);
    assert_int_equal(nib_zstd_reader_read(reader, UINT64_MAX, part, 2), NIB_ERROR_DATA);
    nib_zstd_reader_close(reader);
    free(content);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    char *content = make_content(900), *packed, *got;
    size_t length, ignored;
    write_frames(content, 900, 300);
    assert_int_equal(nib_file_read(path, 1 << 20, &packed, &length), NIB_OK);
    for (size_t cut = 0; cut < length; cut++) {
        write_bytes(packed, cut);
        assert_int_equal(read_all(&got, &ignored), NIB_ERROR_DATA);
        assert_non_null(strstr(nib_error_message(), path));
    }
    nib_free(packed);
    free(content);
}

/* A flip that changes nothing of the content is allowed: zstd's frame header has a bit without a meaning. */
static void no_bit_flip_changes_the_content(void **state)
{
    (void)state;
    char *content = make_content(900), *packed, *got;
    size_t length, got_length;
    int seen = 0;
    write_frames(content, 900, 300);
    assert_int_equal(nib_file_read(path, 1 << 20, &packed, &length), NIB_OK);
    for (size_t bit = 0; bit < 8 * length; bit++) {
        packed[bit / 8] ^= (char)(1 << bit % 8);
        write_bytes(packed, length);
        if (read_all(&got, &got_length) == NIB_OK) {
            assert_int_equal(got_length, 900);
            assert_memory_equal(got, content, 900);
            free(got);
        } else {
            seen++;
        }
        packed[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_true(seen >= (int)(8 * length) - 8 * 3); /* at most the header byte of each of the three frames */
    nib_free(packed);
    free(content);
}

/* What a corrupt frame's message must say; the frames beside it stay readable. */
static void a_corrupt_frame_is_named(void **state)
{
    (void)state;
    char *content = make_content(9000), *packed, part[16];
    size_t length;
    nib_zstd_reader *reader;
    write_frames(content, 9000, 3000);
    assert_int_equal(nib_file_read(path, 1 << 20, &packed, &length), NIB_OK);
    uint32_t first;
    memcpy(&first, packed + length - 9 - 3 * 12, 4); /* bytes of frame 0, where frame 1 begins */
    packed[first + 500] ^= 1;
    write_bytes(packed, length);
    assert_int_equal(nib_zstd_reader_open(path, &reader), NIB_OK);
    assert_int_equal(nib_zstd_reader_read(reader, 2990, part, 16), NIB_ERROR_DATA);
    char place[128];
    snprintf(place, sizeof place, "%s: frame 1 of 3, which begins at byte %u, is corrupt", path, first);
    assert_non_null(strstr(nib_error_message(), place));
    assert_int_equal(nib_zstd_reader_read(reader, 0, part, 16), NIB_OK);
    assert_memory_equal(part, content, 16);
    assert_int_equal(nib_zstd_reader_read(reader, 6000, part, 16), NIB_OK);
    assert_memory_equal(part, content + 6000, 16);
    nib_zstd_reader_close(reader);

    /* Both checksums of a frame, its own and the table's, are looked at. */
    packed[first + 500] ^= 1;
    packed[length - 9 - 2 * 12 + 8] ^= 1;
    write_bytes(packed, length);
    assert_int_equal(nib_zstd_reader_open(path, &reader), NIB_OK);
    assert_int_equal(nib_zstd_reader_read(reader, 3000, part, 16), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "its checksum is not the table's"));
    nib_zstd_reader_close(reader);
    nib_free(packed);
    free(content);
}

static void rows_are_streamed_from_frames(void **state)
{
    (void)state;
    char *content = make_content(4000);
    nib_row_reader *reader;
    const char *line;
    size_t length, at = 0;
    write_frames(content, 4000, 512);
    assert_int_equal(nib_row_reader_open(path, &reader), NIB_OK);
    while (nib_row_reader_next(reader, &line, &length) == NIB_OK && line != NULL) {
        assert_int_equal(length, 39);
        assert_memory_equal(line, content + at, 39);
        at += 40;
    }
    assert_int_equal(at, 4000);
    nib_row_reader_close(reader);
    free(content);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zstd_reads_what_is_written),  cmocka_unit_test(any_part_is_read_alone),
        cmocka_unit_test(every_truncation_is_refused), cmocka_unit_test(no_bit_flip_changes_the_content),
        cmocka_unit_test(a_corrupt_frame_is_named),    cmocka_unit_test(rows_are_streamed_from_frames),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
