/* Files of the reference implementation, read and written again, must come out byte for byte; what goes wrong on the
 * way must leave the old file alone. */
#include "check.h"
#include "folder.h"

#include "base/sha256.h"
#include "formats/safetensors_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64], temporary[96];

static int set_up(void **state)
{
    if (make_folder(state) != 0) return -1;
    snprintf(path, sizeof path, "%s/out.safetensors", folder);
    snprintf(temporary, sizeof temporary, "%s.tmp-%ld", path, (long)getpid());
    return 0;
}

static nib_status rewrite(const char *from, uint64_t piece, char hex[65])
{
    nib_tensor_set *set;
    nib_safetensors_writer *writer;
    assert_int_equal(nib_tensor_set_open(from, &set), NIB_OK);
    assert_int_equal(nib_safetensors_writer_begin(path, &writer), NIB_OK);
    const nib_json *format = nib_json_get(nib_tensor_set_metadata(set), "format");
    if (format != NULL) assert_int_equal(nib_safetensors_writer_metadata(writer, "format", format->string), NIB_OK);
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *t = nib_tensor_set_at(set, i);
        assert_int_equal(nib_safetensors_writer_declare(writer, t->name, t->dtype, t->rank, t->shape), NIB_OK);
    }
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *t = nib_tensor_set_at(set, i);
        for (uint64_t at = 0; at < t->bytes; at += piece) {
            uint64_t n = t->bytes - at < piece ? t->bytes - at : piece;
            assert_int_equal(nib_safetensors_writer_data(writer, t->data + at, n), NIB_OK);
        }
    }
    nib_status status = nib_safetensors_writer_finish(writer, hex);
    nib_tensor_set_close(set);
    return status;
}

static void reference_files_come_out_equal(void **state)
{
    (void)state;
    static const char *const files[] = {
        NIB_TEST_DATA "/nf4/llama_bnb_nf4_double/model.safetensors",
        NIB_TEST_DATA "/nf4/llama_bnb_nf4/model.safetensors",
        NIB_TEST_DATA "/gguf/types_expected.safetensors",
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        nib_file want, got;
        char hex[65], expected[65];
        if (rewrite(files[i], i == 0 ? 1000 : 1 << 20, hex) != NIB_OK) fail_msg("%s", nib_error_message());
        assert_int_equal(nib_file_map(&want, files[i]), NIB_OK);
        assert_int_equal(nib_file_map(&got, path), NIB_OK);
        assert_int_equal(want.size, got.size);
        if (memcmp(want.data, got.data, want.size) != 0) fail_msg("%s is not reproduced", files[i]);
        nib_sha256_of(want.data, want.size, expected);
        assert_string_equal(hex, expected);
        nib_file_unmap(&want);
        nib_file_unmap(&got);
    }
}

/* The old file's bytes, and no temporary beside it. */
static void check_untouched(void)
{
    char *text;
    size_t length;
    assert_int_equal(nib_file_read(path, 100, &text, &length), NIB_OK);
    assert_string_equal(text, "old");
    nib_free(text);
    assert_false(nib_file_exists(temporary));
}

static void failures_leave_the_old_file(void **state)
{
    (void)state;
    nib_safetensors_writer *writer;
    const int64_t shape[] = {2, 2};
    const float data[8] = {0};
    assert_int_equal(nib_file_replace(path, "old", 3), NIB_OK);

    assert_int_equal(nib_safetensors_writer_begin(path, &writer), NIB_OK);
    assert_int_equal(nib_safetensors_writer_declare(writer, "a", NIB_DTYPE_F32, 2, shape), NIB_OK);
    assert_int_equal(nib_safetensors_writer_data(writer, data, 12), NIB_OK);
    assert_int_equal(nib_safetensors_writer_finish(writer, NULL), NIB_ERROR_INTERNAL);
    assert_non_null(strstr(nib_error_message(), "12 bytes of data, 16 declared"));
    check_untouched();

    assert_int_equal(nib_safetensors_writer_begin(path, &writer), NIB_OK);
    assert_int_equal(nib_safetensors_writer_declare(writer, "a", NIB_DTYPE_F32, 2, shape), NIB_OK);
    assert_int_equal(nib_safetensors_writer_data(writer, data, 20), NIB_ERROR_INTERNAL);
    assert_non_null(strstr(nib_error_message(), "4 bytes more than the 16 declared"));
    nib_safetensors_writer_abandon(writer);
    check_untouched();

    assert_int_equal(nib_safetensors_writer_begin(path, &writer), NIB_OK);
    for (int i = 0; i < 2; i++)
        assert_int_equal(nib_safetensors_writer_declare(writer, "a", NIB_DTYPE_F32, 2, shape), NIB_OK);
    assert_int_equal(nib_safetensors_writer_data(writer, data, 32), NIB_OK);
    assert_int_equal(nib_safetensors_writer_finish(writer, NULL), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "duplicate key \"a\""));
    check_untouched();
}

/* A byte that changes on the disk between writing and reading back is noticed. */
static void a_changed_byte_is_noticed(void **state)
{
    (void)state;
    nib_safetensors_writer *writer;
    const int64_t shape[] = {4};
    const float data[4] = {1, 2, 3, 4};
    assert_int_equal(nib_file_replace(path, "old", 3), NIB_OK);
    assert_int_equal(nib_safetensors_writer_begin(path, &writer), NIB_OK);
    assert_int_equal(nib_safetensors_writer_declare(writer, "a", NIB_DTYPE_F32, 1, shape), NIB_OK);
    assert_int_equal(nib_safetensors_writer_data(writer, data, sizeof data), NIB_OK);
    FILE *disk = fopen(temporary, "r+b");
    assert_non_null(disk);
    assert_int_equal(fseek(disk, -1, SEEK_END), 0);
    assert_int_equal(fputc(0x41, disk), 0x41);
    assert_int_equal(fclose(disk), 0);
    assert_int_equal(nib_safetensors_writer_finish(writer, NULL), NIB_ERROR_IO);
    assert_non_null(strstr(nib_error_message(), "read back with SHA-256"));
    check_untouched();
}

static void an_empty_set_can_be_written(void **state)
{
    (void)state;
    nib_safetensors_writer *writer;
    nib_tensor_set *set;
    assert_int_equal(nib_safetensors_writer_begin(path, &writer), NIB_OK);
    assert_int_equal(nib_safetensors_writer_metadata(writer, "key \"1\"", "line\n"), NIB_OK);
    assert_int_equal(nib_safetensors_writer_finish(writer, NULL), NIB_OK);
    assert_int_equal(nib_tensor_set_open(path, &set), NIB_OK);
    assert_int_equal(nib_tensor_set_count(set), 0);
    assert_string_equal(nib_json_get(nib_tensor_set_metadata(set), "key \"1\"")->string, "line\n");
    nib_tensor_set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_files_come_out_equal),
        cmocka_unit_test(failures_leave_the_old_file),
        cmocka_unit_test(a_changed_byte_is_noticed),
        cmocka_unit_test(an_empty_set_can_be_written),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
