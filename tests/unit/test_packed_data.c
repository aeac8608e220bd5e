/* Packed data against the same rows in memory, and against every kind of damage. Rows are ids and texts, and the
 * tokenizer a golden one. */
#include "check.h"

#include "base/file.h"
#include "base/memory.h"
#include "data/dataset.h"
#include "data/manifest.h"
#include "data/shard_packer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROWS = 60 };

static char folder[] = "/tmp/nib_packed_XXXXXX";
static char rows_path[64], packed_path[64], manifest_path[96], index_path[96];
static nib_tokenizer *tokenizer;

static nib_data_options options(bool on_demand)
{
    return (nib_data_options){
        .max_length = 200, .on_demand = on_demand, .tokenizer = tokenizer, .bos_token = "", .eos_token = ""};
}

static int set_up(void **state)
{
    (void)state;
    nib_buffer text = {0};
    if (mkdtemp(folder) == NULL) return -1;
    snprintf(rows_path, sizeof rows_path, "%s/rows.jsonl", folder);
    snprintf(packed_path, sizeof packed_path, "%s/packed", folder);
    snprintf(manifest_path, sizeof manifest_path, "%s/manifest.json", packed_path);
    snprintf(index_path, sizeof index_path, "%s/samples.index", packed_path);
    if (nib_tokenizer_open(NIB_TEST_DATA "/tokenizers/smollm2/tokenizer.json", &tokenizer) != NIB_OK) return -1;
    for (int i = 0; i < ROWS; i++)
        if (i % 3 == 0)
            nib_buffer_format(&text, "{\"input_ids\":[%d,%d,7,9],\"labels\":[-100,-100,7,9]}\n", i / 6, 5 + i % 5);
        else
            nib_buffer_format(&text, "\n{\"text\":\"row %d of many\",\"weight\":%d}\r\n", i % 50, 1 + i % 2);
    if (nib_file_replace(rows_path, text.data, text.length) != NIB_OK) return -1;
    nib_buffer_free(&text);
    const char *const files[] = {rows_path, rows_path};
    const nib_data_options o = options(false);
    return nib_shards_pack(files, 2, packed_path, &o) == NIB_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    nib_tokenizer_free(tokenizer);
    return nib_file_remove_tree(folder) == NIB_OK ? 0 : -1;
}

static nib_status load(const char *const *paths, int count, const nib_data_options *o, nib_dataset **data)
{
    nib_data_source source[2] = {{0}};
    for (int i = 0; i < count; i++) source[i].path = paths[i];
    return nib_dataset_load(source, count, o, 100000, data);
}

static void assert_same_row(nib_row a, nib_row b)
{
    assert_int_equal(a.length, b.length);
    assert_true(a.weight == b.weight);
    assert_memory_equal(a.ids, b.ids, (size_t)a.length * sizeof *a.ids);
    assert_memory_equal(a.supervised, b.supervised, (size_t)a.length);
}

static void samples_are_those_of_the_rows(void **state)
{
    (void)state;
    const char *plain[] = {rows_path, rows_path}, *packed[] = {packed_path};
    nib_data_options memory = options(false), demand = options(true);
    nib_dataset *want, *data[2];
    assert_int_equal(load(plain, 2, &memory, &want), NIB_OK);
    assert_int_equal(load(packed, 1, &demand, &data[0]), NIB_OK);
    assert_int_equal(load(packed, 1, &memory, &data[1]), NIB_OK);
    for (int k = 0; k < 2; k++) {
        nib_source_report whole = {0};
        const nib_source_report *r = nib_dataset_report(data[k], 0);
        for (int s = 0; s < 2; s++) {
            const nib_source_report *part = nib_dataset_report(want, s);
            whole.rows += part->rows;
            whole.tokens += part->tokens;
            whole.supervised_tokens += part->supervised_tokens;
            whole.duplicates += part->duplicates;
        }
        assert_int_equal(nib_dataset_size(data[k]), nib_dataset_size(want));
        assert_int_equal(r->rows, whole.rows);
        assert_int_equal(r->tokens, whole.tokens);
        assert_int_equal(r->supervised_tokens, whole.supervised_tokens);
        assert_int_equal(r->duplicates, whole.duplicates);
        assert_int_equal(nib_dataset_longest(data[k]), nib_dataset_longest(want));
        for (int64_t i = nib_dataset_size(want) - 1; i >= 0; i -= 2) { /* any order */
            int64_t tokens, supervised, index[] = {i, 3, i};
            nib_rows rows;
            assert_int_equal(nib_dataset_rows(data[k], index, 3, &rows), NIB_OK);
            assert_same_row(rows.row[0], nib_dataset_row(want, i));
            assert_same_row(rows.row[1], nib_dataset_row(want, 3));
            assert_same_row(rows.row[2], nib_dataset_row(want, i));
            assert_int_equal(nib_dataset_counts(data[k], i, &tokens, &supervised), NIB_OK);
            assert_int_equal(tokens, rows.row[0].length);
            nib_rows_free(&rows);
        }
        int64_t line;
        assert_non_null(strstr(nib_dataset_file(data[k], 40, &line), "packed/shard-00000.jsonl.zst"));
        assert_int_equal(line, 41); /* empty lines are not packed */
    }
    assert_int_equal(nib_dataset_verify(data[0]), NIB_OK);
    int64_t *leak[2], leaks[2];
    for (int k = 0; k < 2; k++) assert_int_equal(nib_dataset_leaks(data[k], want, &leak[k], &leaks[k]), NIB_OK);
    assert_int_equal(leaks[0], nib_dataset_size(want));
    assert_int_equal(leaks[1], leaks[0]);
    for (int k = 0; k < 2; k++) nib_free(leak[k]);
    for (int k = 0; k < 2; k++) nib_dataset_free(data[k]);
    nib_dataset_free(want);
}

/* Both sources in one data set: one in memory, one on demand. */
static void packed_and_plain_sources_mix(void **state)
{
    (void)state;
    const char *both[] = {packed_path, rows_path}, *other[] = {rows_path, packed_path};
    nib_data_options demand = options(true);
    nib_dataset *a, *b;
    assert_int_equal(load(both, 2, &demand, &a), NIB_OK);
    assert_int_equal(load(other, 2, &demand, &b), NIB_OK);
    assert_int_equal(nib_dataset_size(a), nib_dataset_size(b));
    assert_string_not_equal(nib_dataset_hash(a), "");
    int64_t split = nib_dataset_report(a, 0)->samples, index[] = {0, split, split - 1, nib_dataset_size(a) - 1};
    nib_rows rows;
    assert_int_equal(nib_dataset_rows(a, index, 4, &rows), NIB_OK);
    assert_same_row(rows.row[0], rows.row[1]); /* the packed rows begin with the plain ones */
    assert_same_row(rows.row[2], rows.row[3]); /* and end with them */
    assert_int_equal(nib_dataset_source(a, split - 1), 0);
    assert_int_equal(nib_dataset_source(a, split), 1);
    nib_rows_free(&rows);
    nib_dataset_free(a);
    nib_dataset_free(b);
}

static void overwrite(const char *path, const char *bytes, size_t length)
{
    unlink(path); /* some file systems flush a file that is truncated and written again, never a new one */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* Reads all samples on demand. */
static nib_status read_all(void)
{
    const char *packed[] = {packed_path};
    nib_data_options demand = options(true);
    nib_dataset *data;
    nib_status status = load(packed, 1, &demand, &data);
    if (status != NIB_OK) return status;
    for (int64_t i = 0; i < nib_dataset_size(data) && status == NIB_OK; i++) {
        nib_rows rows;
        status = nib_dataset_rows(data, &i, 1, &rows);
        if (status == NIB_OK) nib_rows_free(&rows);
    }
    nib_dataset_free(data);
    return status;
}

/* Whatever a bit of the index becomes, no other row is given out: the index says what its row must be. Only the line's
 * number is for people. */
static void every_bit_of_the_index_matters(void **state)
{
    (void)state;
    char *bytes;
    size_t length;
    assert_int_equal(nib_file_read(index_path, 1 << 20, &bytes, &length), NIB_OK);
    for (size_t bit = 0; bit < 8 * 40; bit++) { /* of the entry of sample 1 */
        size_t at = 40 + bit / 8;
        bytes[at] ^= (char)(1 << bit % 8);
        overwrite(index_path, bytes, length);
        nib_status status = read_all();
        if (bit / 8 < 24 || bit / 8 >= 28)
            assert_int_equal(status, NIB_ERROR_DATA);
        else
            assert_int_equal(status, NIB_OK);
        bytes[at] ^= (char)(1 << bit % 8);
    }
    for (size_t cut = 1; cut < length; cut += 7) {
        overwrite(index_path, bytes, length - cut);
        assert_int_equal(read_all(), NIB_ERROR_DATA);
    }
    overwrite(index_path, bytes, length);
    assert_int_equal(read_all(), NIB_OK);
    nib_free(bytes);
}

static void a_cut_or_changed_manifest_is_refused_or_harmless(void **state)
{
    (void)state;
    char *bytes;
    size_t length, text = 0;
    assert_int_equal(nib_file_read(manifest_path, 1 << 20, &bytes, &length), NIB_OK);
    for (size_t cut = 0; cut + 2 < length; cut++) { /* behind the last brace is a line end */
        overwrite(manifest_path, bytes, cut);
        assert_int_equal(read_all(), NIB_ERROR_DATA);
        assert_non_null(strstr(nib_error_message(), "manifest.json"));
    }
    for (size_t at = 0; at < length; at += 3) { /* names and counts that are shown, not used, may change */
        bytes[at] ^= 1;
        overwrite(manifest_path, bytes, length);
        text += read_all() == NIB_OK;
        bytes[at] ^= 1;
    }
    assert_true(text < length / 3);
    overwrite(manifest_path, bytes, length);
    assert_int_equal(read_all(), NIB_OK);

    nib_manifest m;
    nib_buffer again = {0};
    assert_int_equal(nib_manifest_read(packed_path, &m), NIB_OK);
    nib_manifest_write(&m, &again);
    assert_int_equal(again.length, length);
    assert_memory_equal(again.data, bytes, length);
    nib_buffer_free(&again);
    nib_manifest_free(&m);
    nib_free(bytes);
}

/* A corrupt frame is named where all is read, too. */
static void verification_names_the_frame(void **state)
{
    (void)state;
    char path[128], *bytes;
    size_t length;
    snprintf(path, sizeof path, "%s/shard-00000.jsonl.zst", packed_path);
    assert_int_equal(nib_file_read(path, 1 << 20, &bytes, &length), NIB_OK);
    bytes[100] ^= 1;
    overwrite(path, bytes, length);
    const char *packed[] = {packed_path};
    nib_data_options memory = options(false), demand = options(true);
    nib_dataset *data;
    assert_int_equal(load(packed, 1, &memory, &data), NIB_ERROR_DATA);
    assert_non_null(
        strstr(nib_error_message(), "shard-00000.jsonl.zst: frame 0 of 1, which begins at byte 0, is corrupt"));
    assert_int_equal(load(packed, 1, &demand, &data), NIB_OK);
    assert_int_equal(nib_dataset_verify(data), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "frame 0 of 1"));
    nib_dataset_free(data);
    bytes[100] ^= 1;
    overwrite(path, bytes, length);
    assert_int_equal(read_all(), NIB_OK);
    nib_free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_are_those_of_the_rows),
        cmocka_unit_test(packed_and_plain_sources_mix),
        cmocka_unit_test(every_bit_of_the_index_matters),
        cmocka_unit_test(a_cut_or_changed_manifest_is_refused_or_harmless),
        cmocka_unit_test(verification_names_the_frame),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
