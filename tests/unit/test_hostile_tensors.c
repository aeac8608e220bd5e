/* Damaged and malicious safetensors and GGUF files: each rule of the formats broken once, every truncation, and 10,000
 * flips of one bit. The intact files were written by Python's struct module, not by our writer. */
#include "check.h"
#include "folder.h"

#include "base/buffer.h"
#include "formats/bnb_nf4.h"
#include "formats/gguf.h"
#include "formats/tensor_set.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CORPUS NIB_TEST_DATA "/../../fuzz/corpus/"

static char path[64];

static int set_up(void **state)
{
    if (make_folder(state) != 0) return -1;
    snprintf(path, sizeof path, "%s/input", folder);
    return 0;
}

static void write_file(const char *name, const void *bytes, size_t length)
{
    unlink(name); /* some file systems flush a file that is truncated and written again, never a new one */
    FILE *file = fopen(name, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* Opens it and reads whatever is accepted. */
static nib_status open_and_read(const void *bytes, size_t length)
{
    nib_tensor_set *set;
    write_file(path, bytes, length);
    nib_status status = nib_tensor_set_open(path, &set);
    if (status != NIB_OK) {
        assert_null(set);
        return status;
    }
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(set, i);
        float *values = malloc((size_t)tensor->count * sizeof *values + 1);
        assert_non_null(values);
        (void)nib_tensor_read_float(tensor, 0, tensor->count, values);
        if (tensor->dtype == NIB_DTYPE_U8) (void)nib_bnb_nf4_find(set, tensor->name, &(nib_bnb_nf4){0});
        free(values);
    }
    nib_tensor_set_close(set);
    return NIB_OK;
}

static void expect_error(const void *bytes, size_t length, const char *part)
{
    if (open_and_read(bytes, length) != NIB_ERROR_DATA) fail_msg("accepted; expected \"%s\"", part);
    if (strstr(nib_error_message(), part) == NULL) fail_msg("\"%s\" is not in \"%s\"", part, nib_error_message());
}

/* A header with `data` bytes behind it. */
static void expect_header_error(const char *header, size_t data, const char *part)
{
    nib_buffer file = {0};
    uint64_t length = strlen(header);
    nib_buffer_append(&file, &length, 8);
    nib_buffer_text(&file, header);
    for (size_t i = 0; i < data; i++) nib_buffer_char(&file, 0);
    expect_error(file.data, file.length, part);
    nib_buffer_free(&file);
}

#define A(dtype, shape, from, to)                                                                                      \
    "\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"
#define B(from, to) "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" #from "," #to "]}"

static void safetensors_rules(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *part;
    } cases[] = {
        {"[]", 0, "the header does not start with '{'"},
        {" {}", 0, "the header does not start with '{'"},
        {"{", 0, "does not start with '{'"},
        {"{}x", 0, "text after the end of the value"},
        {"{" A("F32", "[1]", 0, 4) "," A("F32", "[1]", 4, 8) "}", 8, "duplicate key \"a\""},
        {"{" A("F33", "[1]", 0, 4) "}", 4, "tensor \"a\" has dtype F33, expected one of F32 F16"},
        {"{" A("Q4_0", "[32]", 0, 18) "}", 18, "tensor \"a\" has dtype Q4_0"},
        {"{" A("F32", "[1]", 0, 4) "}", 3, "data_offsets [0, 4] do not lie in the 3 bytes of data"},
        {"{" A("F32", "[1]", 0, 4) "}", 5, "the tensors end at byte"},
        {"{" A("F32", "[2]", 0, 4) "}", 4, "4 bytes of data, expected 2 elements of F32"},
        {"{" A("F32", "[1]", 4, 0) "}", 4, "data_offsets [4, 0] do not lie"},
        {"{" A("F32", "[1]", -4, 0) "}", 4, "data_offsets [-4, 0] do not lie"},
        {"{" A("F32", "[0.5]", 0, 2) "}", 2, "its shape is negative or overflows"},
        {"{" A("F32", "[-1]", 0, 0) "}", 0, "its shape is negative or overflows"},
        {"{" A("F32", "[4294967296,4294967296]", 0, 0) "}", 0, "its shape is negative or overflows"},
        {"{" A("F64", "[2305843009213693952]", 0, 0) "}", 0, "0 bytes of data, expected 2305843009213693952"},
        {"{" A("U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, "has 9 dimensions, at most 8"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "needs exactly dtype, shape and two data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "needs exactly dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "needs exactly dtype"},
        {"{\"a\":7}", 0, "needs exactly dtype"},
        {"{" A("U8", "[4]", 0, 4) "," B(5, 9) "}", 9, "tensor \"b\" begins at byte"},
        {"{" A("U8", "[4]", 0, 4) "," B(5, 9) "}", 9, "bytes between tensors"},
        {"{" A("U8", "[4]", 0, 4) "," B(2, 6) "}", 6, "tensors overlap"},
        {"{" A("U8", "[4]", 0, 4) "," B(0, 4) "}", 4, "tensors overlap"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is an array, expected an object"},
        {"{\"__metadata__\":{\"format\":1}}", 0, "__metadata__: \"format\" is a number, expected a string"},
        {"{\"\\u0000\":{}}", 0, "\\u0000 inside a string"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_header_error(cases[i].header, cases[i].data, cases[i].part);
    expect_error("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "truncated, or no safetensors file");
    expect_error("\x64\0\0\0\0\0\0\0{}", 10, "header of 100 bytes in a file of 10");
}

/* Files "one" with tensor a, "other" with the same, "two" with b and c, "empty". Their bytes are x, and y of c. */
static void write_shards(void)
{
    static const char empty[] = "\x02\0\0\0\0\0\0\0{}";
    static const char one[] = "\x38\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}   x";
    static const char two[] = "\x6e\0\0\0\0\0\0\0{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                              "\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}     xy";
    const struct {
        const char *name, *bytes;
        size_t length;
    } files[] = {{"empty", empty, sizeof empty - 1},
                 {"one", one, sizeof one - 1},
                 {"other", one, sizeof one - 1},
                 {"two", two, sizeof two - 1}};
    char file[96];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(file, sizeof file, "%s/%s", folder, files[i].name);
        write_file(file, files[i].bytes, files[i].length);
    }
}

/* An index may only name files of its own folder, and must tell the truth about them. */
static void index_rules(void **state)
{
    (void)state;
    static const struct {
        const char *map, *part;
    } cases[] = {
        {"{\"a\":\"../input\"}", "1: tensor \"a\": found \"../input\", expected the name of a file of this folder"},
        {"{\"a\":\"/etc/passwd\"}", "found \"/etc/passwd\", expected the name of a file of this folder"},
        {"{\"a\":\"..\"}", "found \"..\", expected the name of a file of this folder"},
        {"{\"a\":\"\"}", "found \"\", expected the name of a file of this folder"},
        {"{\"a\":1}", "found \"a number\", expected the name of a file of this folder"},
        {"{\"a\":\"absent\"}", "1: tensor \"a\" is expected in "},
        {"{\"a\":\"absent\"}", "absent, which is missing; is the checkpoint complete?"},
        {"{\"a\":\"pipe\"}", "pipe: found a pipe, expected a regular file"},
        {"[]", "no object \"weight_map\""},
        {"{\"a\":\"empty\"}", "1: tensor \"a\" is in none of the folder's files, expected in empty"},
        {"{\"b\":\"one\"}", "tensor \"b\" is in none of the folder's files, expected in one"},
        {"{\"a\":\"empty\",\"b\":\"one\"}", "tensor \"a\" is in one, expected in empty"},
        {"{\"a\":\"one\",\"b\":\"other\"}", "other: tensor \"a\" occurs twice (also in "},
        {"{\"b\":\"two\"}", "tensor \"c\" of "},
        {"{\"b\":\"two\"}", "two is not listed"},
    };
    char index[96], file[96];
    nib_tensor_set *set;
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", folder);
    write_shards();
    snprintf(file, sizeof file, "%s/pipe", folder);
    assert_int_equal(mkfifo(file, 0600), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nib_buffer text = {0};
        nib_buffer_format(&text, "{\"weight_map\":%s}", cases[i].map);
        write_file(index, text.data, text.length);
        assert_int_equal(nib_tensor_set_open(folder, &set), NIB_ERROR_DATA);
        if (strstr(nib_error_message(), cases[i].part) == NULL)
            fail_msg("\"%s\" is not in \"%s\"", cases[i].part, nib_error_message());
        nib_buffer_free(&text);
    }
    write_file(index, "{\"weight_map\":{\"a\":\"one\"}}", 26);
    if (nib_tensor_set_open(folder, &set) != NIB_OK) fail_msg("%s", nib_error_message());
    assert_non_null(nib_tensor_set_find(set, "a"));
    nib_tensor_set_close(set);
    assert_int_equal(unlink(index), 0);
}

static void append_u32(nib_buffer *file, uint32_t x) { nib_buffer_append(file, &x, 4); }
static void append_u64(nib_buffer *file, uint64_t x) { nib_buffer_append(file, &x, 8); }
static void append_string(nib_buffer *file, const char *text)
{
    append_u64(file, strlen(text));
    nib_buffer_text(file, text);
}

static nib_buffer gguf_header(uint32_t version, uint64_t tensors, uint64_t keys)
{
    nib_buffer file = {0};
    nib_buffer_text(&file, "GGUF");
    append_u32(&file, version);
    append_u64(&file, tensors);
    append_u64(&file, keys);
    return file;
}

/* One key of this type with these bytes as its value. */
static void expect_key_error(const char *key, uint32_t type, const void *value, size_t length, const char *part)
{
    nib_buffer file = gguf_header(3, 0, 1);
    append_string(&file, key);
    append_u32(&file, type);
    nib_buffer_append(&file, value, length);
    expect_error(file.data, file.length, part);
    nib_buffer_free(&file);
}

static void append_tensor(nib_buffer *file, const char *name, uint32_t rank, const uint64_t *sizes, uint32_t type,
                          uint64_t offset)
{
    append_string(file, name);
    append_u32(file, rank);
    for (uint32_t i = 0; i < rank; i++) append_u64(file, sizes[i]);
    append_u32(file, type);
    append_u64(file, offset);
}

static void expect_tensor_error(uint32_t rank, const uint64_t *sizes, uint32_t type, uint64_t offset, const char *part)
{
    nib_buffer file = gguf_header(3, 1, 0);
    append_tensor(&file, "a", rank, sizes, type, offset);
    for (int i = 0; i < 128; i++) nib_buffer_char(&file, 0);
    expect_error(file.data, file.length, part);
    nib_buffer_free(&file);
}

static void gguf_header_rules(void **state)
{
    (void)state;
    static const struct {
        uint32_t version;
        uint64_t tensors, keys;
        const char *part;
    } cases[] = {
        {1, 0, 0, "GGUF version 1, expected 2 or 3"},
        {0x03000000, 0, 0, "a big-endian file"},
        {3, UINT64_MAX, 0, "18446744073709551615 tensors do not fit a file of 24 bytes"},
        {3, 0, UINT64_MAX, "18446744073709551615 metadata keys and 0 tensors do not fit"},
        {3, 2, 0, "2 tensors do not fit a file of 24 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nib_buffer file = gguf_header(cases[i].version, cases[i].tensors, cases[i].keys);
        expect_error(file.data, file.length, cases[i].part);
        nib_buffer_free(&file);
    }
}

static void gguf_metadata_rules(void **state)
{
    (void)state;
    static const char long_string[] = "\xff\xff\xff\xff\xff\xff\xff\x7f";
    static const char unknown[] = "\x0d\0\0\0\x01\0\0\0\0\0\0\0";
    static const char huge_array[] = "\x0c\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
    static const char large_array[] = "\x00\0\0\0\xff\xff\0\0\0\0\0\0";
    expect_key_error("k", 13, "", 0, "key \"k\" has type 13, expected 0 to 12");
    expect_key_error("", 4, "abcd", 4, "a metadata key is empty, too long or holds a NUL");
    expect_key_error("k", 7, "\2", 1, "key \"k\" is a bool of value 2, expected 0 or 1");
    expect_key_error("k", 8, long_string, 8, "k needs 9223372036854775807 bytes, 0 are left");
    expect_key_error("k", 9, unknown, 12, "array \"k\" has elements of type 13, expected 0 to 12");
    expect_key_error("k", 9, huge_array, 12, "array \"k\" overflows");
    expect_key_error("k", 9, large_array, 12, "k needs 65535 bytes, 0 are left");
    expect_key_error("general.alignment", 4, "\x03\0\0\0", 4, "general.alignment is no power of two");
    expect_key_error("general.alignment", 4, "\0\0\0\0", 4, "general.alignment is no power of two");
    expect_key_error("general.alignment", 6, "\0\0\0\0", 4, "general.alignment is no power of two");
    nib_buffer twice = gguf_header(3, 0, 2);
    for (int i = 0; i < 2; i++) {
        append_string(&twice, "k");
        append_u32(&twice, 4);
        append_u32(&twice, 1);
    }
    expect_error(twice.data, twice.length, "key \"k\" occurs twice");
    nib_buffer_free(&twice);
}

/* An array of one array of one array ..., `depth` of them, and what the innermost says of itself. */
static void expect_nested_error(int depth, uint32_t type, uint64_t count, const char *part)
{
    nib_buffer value = {0};
    for (int i = 1; i < depth; i++) {
        append_u32(&value, 9);
        append_u64(&value, 1);
    }
    append_u32(&value, type);
    append_u64(&value, count);
    expect_key_error("k", 9, value.data, value.length, part);
    nib_buffer_free(&value);
}

static void gguf_nested_arrays(void **state)
{
    (void)state;
    nib_tensor_set *set;
    nib_gguf_type type;
    int64_t after;
    uint64_t count;
    assert_int_equal(nib_tensor_set_open(CORPUS "gguf/nested", &set), NIB_OK);
    const nib_gguf *gguf = nib_tensor_set_gguf(set);
    assert_true(nib_gguf_array(gguf, "a.nested", &type, &count) && type == NIB_GGUF_ARRAY && count == 3);
    assert_true(nib_gguf_array_string(gguf, "a.nested", 0).length == 0 && nib_gguf_array_int(gguf, "a.nested", 0) == 0);
    assert_true(nib_gguf_int(gguf, "a.after", &after) && after == 513); /* what follows is found */
    nib_tensor_set_close(set);
    expect_nested_error(4, 4, 1, "k needs 4 bytes, 0 are left");
    expect_nested_error(5, 4, 1, "array \"k\" is nested more than 4 deep");
    expect_nested_error(3, 9, UINT64_MAX, "k needs 4 bytes, 0 are left");
    expect_nested_error(3, 12, UINT64_MAX, "array \"k\" overflows");
    expect_nested_error(2, 13, 1, "array \"k\" has elements of type 13, expected 0 to 12");
}

static void gguf_tensor_rules(void **state)
{
    (void)state;
    const uint64_t two[] = {32, 1}, odd[] = {33}, large[] = {1024}, five[] = {1, 1, 1, 1, 1};
    const uint64_t overflow[] = {UINT64_C(1) << 32, UINT64_C(1) << 32}, negative[] = {UINT64_MAX};
    expect_tensor_error(5, five, 0, 0, "tensor \"a\" has 5 dimensions, expected at most 4");
    expect_tensor_error(2, two, 99, 0, "tensor \"a\" has type 99, which Nibble does not read");
    expect_tensor_error(1, odd, 2, 0, "rows of 33 are no multiple of Q4_0's block of 32");
    expect_tensor_error(2, overflow, 0, 0, "the shape of tensor \"a\" overflows");
    expect_tensor_error(1, negative, 0, 0, "the shape of tensor \"a\" overflows");
    expect_tensor_error(2, two, 0, 32, "tensor \"a\" is at offset 32 of the data, expected 0");
    expect_tensor_error(1, large, 0, 0, "tensor \"a\" (4096 bytes at 64) lies beyond the end of the file");
    nib_buffer file = gguf_header(3, 2, 0);
    append_tensor(&file, "a", 2, two, 2, 0);
    append_tensor(&file, "a", 2, two, 2, 32);
    for (int i = 0; i < 128; i++) nib_buffer_char(&file, 0);
    expect_error(file.data, file.length, "tensor \"a\" occurs twice");
    nib_buffer_free(&file);
    file = gguf_header(3, 2, 0);
    append_tensor(&file, "a", 2, two, 2, 0);
    append_tensor(&file, "b", 2, two, 2, 0);
    for (int i = 0; i < 128; i++) nib_buffer_char(&file, 0);
    expect_error(file.data, file.length, "tensor \"b\" is at offset 0 of the data, expected 32");
    nib_buffer_free(&file);
}

/* surplus: bytes at the end that only pad, so that a file without them is as good. */
static void cut_everywhere(const char *name, size_t surplus)
{
    char *bytes;
    size_t length;
    assert_int_equal(nib_file_read(name, 1 << 20, &bytes, &length), NIB_OK);
    if (open_and_read(bytes, length) != NIB_OK) fail_msg("%s", nib_error_message());
    for (size_t n = 0; n < length - surplus; n++)
        if (open_and_read(bytes, n) != NIB_ERROR_DATA) fail_msg("%s is accepted when cut to %zu bytes", name, n);
    nib_free(bytes);
}

static void every_truncation_is_noticed(void **state)
{
    (void)state;
    cut_everywhere(CORPUS "safetensors/mixed", 0);
    cut_everywhere(CORPUS "safetensors/nf4", 0);
    cut_everywhere(CORPUS "gguf/mixed", 24); /* the last tensor's 136 bytes are padded to 160 */
    cut_everywhere(CORPUS "gguf/version2", 24);
    cut_everywhere(CORPUS "gguf/nested", 24);
}

/* Neither format has a checksum, so that a flip in data, a name or a number may pass; what must not happen is a crash,
 * a read outside the file (under ASan) or another kind of error. */
static void flip_bits(const char *name, size_t *refused)
{
    char *bytes;
    size_t length;
    *refused = 0;
    assert_int_equal(nib_file_read(name, 1 << 20, &bytes, &length), NIB_OK);
    for (size_t i = 0; i < 10000; i++) {
        size_t bit = i * 7919 % (length * 8);
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        nib_status status = open_and_read(bytes, length);
        if (status != NIB_OK && status != NIB_ERROR_DATA) fail_msg("bit %zu: %s", bit, nib_error_message());
        *refused += status != NIB_OK;
        bytes[bit / 8] ^= (char)(1 << bit % 8);
    }
    nib_free(bytes);
}

static void bit_flips_are_survived(void **state)
{
    (void)state;
    size_t refused;
    flip_bits(CORPUS "safetensors/mixed", &refused);
    assert_true(refused > 5000); /* the header is nine tenths of the file, and most of its bits are syntax or sizes */
    flip_bits(CORPUS "safetensors/nf4", &refused);
    assert_true(refused > 1500); /* most of it is data, or a name */
    flip_bits(CORPUS "gguf/nested", &refused);
    assert_true(refused > 1000);
    flip_bits(CORPUS "gguf/mixed", &refused);
    assert_true(refused > 1000); /* half is data; of the rest, lengths, types and offsets are a third */
}

/* A sharded folder in `folder`: what its index must lead to, whatever has become of its bytes. */
static nib_status open_sharded(bool *same)
{
    nib_tensor_set *set;
    nib_status status = nib_tensor_set_open(folder, &set);
    *same = false;
    if (status != NIB_OK) return status;
    *same = nib_tensor_set_count(set) == 3;
    for (char name[] = "a"; name[0] <= 'c'; name[0]++) {
        const nib_tensor_view *tensor = nib_tensor_set_find(set, name);
        *same = *same && tensor != NULL && tensor->data[0] == 'x' + (name[0] == 'c');
    }
    nib_tensor_set_close(set);
    return NIB_OK;
}

/* Every length of an index, and 10,000 flips of one bit: refused, or what is opened is the same tensors. */
static void a_damaged_index_leads_nowhere(void **state)
{
    (void)state;
    char text[] = "{\"metadata\":{\"total_size\":3},\"weight_map\":{\"a\":\"one\",\"b\":\"two\",\"c\":\"two\"}}";
    const size_t length = sizeof text - 1;
    char index[96];
    bool same;
    size_t refused = 0;
    write_shards();
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", folder);
    write_file(index, text, length);
    if (open_sharded(&same) != NIB_OK) fail_msg("%s", nib_error_message());
    assert_true(same);
    for (size_t n = 0; n < length; n++) {
        write_file(index, text, n);
        if (open_sharded(&same) != NIB_ERROR_DATA) fail_msg("accepted when cut to %zu bytes", n);
    }
    for (size_t i = 0; i < 10000; i++) {
        const size_t bit = i * 7919 % (length * 8);
        text[bit / 8] ^= (char)(1 << bit % 8);
        write_file(index, text, length);
        const nib_status status = open_sharded(&same);
        if (status != NIB_ERROR_DATA && !(status == NIB_OK && same))
            fail_msg("\"%s\": status %d, other tensors", text, status);
        refused += status != NIB_OK;
        text[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_true(refused > 7000); /* what is neither syntax nor used is the metadata, a third */
    assert_int_equal(unlink(index), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(safetensors_rules),
        cmocka_unit_test(index_rules),
        cmocka_unit_test(gguf_header_rules),
        cmocka_unit_test(gguf_metadata_rules),
        cmocka_unit_test(gguf_nested_arrays),
        cmocka_unit_test(gguf_tensor_rules),
        cmocka_unit_test(every_truncation_is_noticed),
        cmocka_unit_test(bit_flips_are_survived),
        cmocka_unit_test(a_damaged_index_leads_nowhere),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
