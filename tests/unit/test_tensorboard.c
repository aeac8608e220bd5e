/* TensorBoard's event files against records that the tensorboard package 2.21.0 wrote (RecordWriter over Event messages
 * serialised by protobuf); tests/peers/tensorboard_read.py reads a whole run with its EventAccumulator. */
#include "check.h"
#include "folder.h"

#include "base/file.h"
#include "base/memory.h"
#include "tensorboard.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One Event a scalar: wall_time, step, tag and simple_value are those of the first two lines below. */
static const char step_records[] =
    "1e00000000000000d9dc12320900004040fc54d9412a130a110a0a747261696e2f6c6f737315000050403feab8b123000000"
    "00000000b09f77430900004040fc54d9412a180a160a0f747261696e2f677261645f6e6f726d15495c363f824d8ab9270000"
    "0000000000bbe1b1460900004040fc54d9412a1c0a1a0a13747261696e2f6c6561726e696e675f726174651517b75139a736"
    "3fc82b00000000000000861bc34b0900004040fc54d9412a200a1e0a17747261696e2f746f6b656e735f7065725f7365636f"
    "6e64150020004405bd2576";
static const char eval_records[] =
    "200000000000000029eda9500900008040fc54d94110ac022a120a100a096576616c2f6c6f737315549f8c3fc5c13eed2600"
    "000000000000734fe3000900008040fc54d94110ac022a180a160a0f6576616c2f706572706c6578697479150000404065d1"
    "e6922700000000000000bbe1b1460900008040fc54d94110ac022a190a170a106576616c2f65786163745f6d61746368159a"
    "99193fa82d9e2e";
static const char *const lines[] = {
    "{\"event\":\"step\",\"step\":0,\"loss\":3.25,\"grad_norm\":0.7123456789,\"learning_rate\":0.0002,\"supervised_"
    "tokens\":7,\"tokens_per_second\":512.5,\"seconds\":1.5,\"time\":1700000001}",
    "{\"event\":\"eval\",\"step\":300,\"loss\":1.0986122886681098,\"perplexity\":3.0,\"exact_match\":0.6,\"best\":true,"
    "\"time\":1700000002}",
    "{\"event\":\"checkpoint\",\"step\":300}",
    "{\"event\":\"step\",\"step\":300,\"loss\":null,\"grad_norm\":null,\"time\":1700000003}",
};
enum { HEAD_BYTES = 40 + 29 }; /* the version's record and the session's start; their time is now */

static char metrics[64];

/* The folder's event file and its name, which must be the only one. */
static size_t read_events(char name[300], char **bytes)
{
    int files = 0;
    DIR *directory = opendir(folder);
    assert_non_null(directory);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strncmp(entry->d_name, "events", 6) == 0 && ++files > 0) snprintf(name, 300, "%s", entry->d_name);
    closedir(directory);
    assert_int_equal(files, 1);
    char *path = nib_path_join(folder, name);
    size_t length;
    assert_int_equal(nib_file_read(path, 1 << 20, bytes, &length), NIB_OK);
    nib_free(path);
    return length;
}

static size_t from_hex(const char *hex, uint8_t *bytes)
{
    size_t count = strlen(hex) / 2;
    for (size_t i = 0; i < count; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        bytes[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return count;
}

static void assert_scalars(const char *bytes, size_t length)
{
    uint8_t want[1024];
    size_t count = from_hex(step_records, want);
    count += from_hex(eval_records, want + count);
    assert_int_equal(length, HEAD_BYTES + count);
    assert_memory_equal(bytes + HEAD_BYTES, want, count);
}

static void write_lines(nib_tensorboard *writer)
{
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        assert_int_equal(nib_tensorboard_line(writer, lines[i], strlen(lines[i])), NIB_OK);
}

static void records_are_those_of_tensorboard(void **state)
{
    (void)state;
    nib_tensorboard writer;
    char name[300], *bytes;
    assert_int_equal(nib_file_replace(metrics, "", 0), NIB_OK);
    assert_int_equal(nib_tensorboard_open(folder, metrics, &writer), NIB_OK);
    write_lines(&writer);
    nib_tensorboard_close(&writer);
    size_t length = read_events(name, &bytes);
    assert_scalars(bytes, length);

    /* Length, its masked CRC and the payload around the time, which is not fixed, of the two records before them. */
    uint8_t version[40], start[29];
    from_hex("1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d", version);
    from_hex("0d000000000000003c37b8340900000040fc54d9413a020801b7a36b29", start);
    assert_memory_equal(bytes, version, 13);
    assert_memory_equal(bytes + 21, version + 21, 15);
    assert_memory_equal(bytes + 40, start, 13);
    assert_memory_equal(bytes + 61, start + 21, 4);
    nib_free(bytes);
}

/* As after a crash: events of steps that the resumed run takes again must not be there twice. */
static void a_resumed_run_has_every_step_once(void **state)
{
    (void)state;
    nib_tensorboard writer;
    char first[300], second[300], *bytes;
    nib_buffer text = {0};
    read_events(first, &bytes);
    nib_free(bytes);
    nib_buffer_format(&text, "%s\n", lines[0]);
    assert_int_equal(nib_file_replace(metrics, text.data, text.length), NIB_OK);
    nib_buffer_free(&text);
    assert_int_equal(nib_tensorboard_open(folder, metrics, &writer), NIB_OK);
    for (size_t i = 1; i < sizeof lines / sizeof *lines; i++)
        assert_int_equal(nib_tensorboard_line(&writer, lines[i], strlen(lines[i])), NIB_OK);
    nib_tensorboard_close(&writer);
    size_t length = read_events(second, &bytes);
    assert_scalars(bytes, length);
    nib_free(bytes);
    assert_true(strcmp(second, first) > 0); /* also within one second */
}

static void a_line_that_is_none_is_refused(void **state)
{
    (void)state;
    nib_tensorboard writer;
    assert_int_equal(nib_file_replace(metrics, "{\"event\":\n", 10), NIB_OK);
    assert_int_equal(nib_tensorboard_open(folder, metrics, &writer), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "metrics.jsonl"));
}

static int set_up(void **state)
{
    if (make_folder(state) != 0) return -1;
    snprintf(metrics, sizeof metrics, "%s/metrics.jsonl", folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_those_of_tensorboard),
        cmocka_unit_test(a_resumed_run_has_every_step_once),
        cmocka_unit_test(a_line_that_is_none_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
