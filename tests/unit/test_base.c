/* Base: hashes and generators against published vectors, the JSON reader against its rules, bf16/f16 against the
 * definition of rounding. */
#include "check.h"

#include "base/bf16.h"
#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "base/random.h"
#include "base/sha256.h"
#include "base/utf8.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* FIPS 180-4 examples, and one of each length around the padding's borders hashed in pieces. */
static void sha256_meets_published_vectors(void **state)
{
    (void)state;
    char hex[65], split[65];
    nib_sha256_of("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    nib_sha256_of("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    nib_sha256_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char text[200];
    memset(text, 'x', sizeof text);
    for (size_t n = 0; n <= sizeof text; n++) {
        nib_sha256 hash;
        uint8_t digest[32];
        nib_sha256_begin(&hash);
        nib_sha256_update(&hash, text, n / 3);
        nib_sha256_update(&hash, text, n - n / 3);
        nib_sha256_end(&hash, digest);
        nib_sha256_hex(digest, split);
        nib_sha256_of(text, n, hex);
        assert_string_equal(hex, split);
    }
}

/* Known answers of Random123 1.09, kat_vectors, philox4x32 10. */
static void philox_meets_published_vectors(void **state)
{
    (void)state;
    uint32_t out[4];
    nib_philox(0, 0, 0, out);
    assert_int_equal(out[0], 0x6627e8d5u);
    assert_int_equal(out[1], 0xe169c58du);
    assert_int_equal(out[2], 0xbc57ac4cu);
    assert_int_equal(out[3], 0x9b00dbd8u);
    nib_philox(~0ull, ~0ull, ~0ull, out);
    assert_int_equal(out[0], 0x408f276du);
    assert_int_equal(out[1], 0x41c83b0eu);
    assert_int_equal(out[2], 0xa20bc7c6u);
    assert_int_equal(out[3], 0x6d5451fdu);
}

static void f16_round_trips_and_rounds_to_even(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float x = nib_f16_to_float((nib_f16){(uint16_t)bits});
        if (!isnan(x)) assert_int_equal(nib_f16_from_float(x).bits, bits);
        /* Halfway to the next value goes to the even one of the two. */
        if ((bits & 0x7fff) < 0x7bff) {
            float next = nib_f16_to_float((nib_f16){(uint16_t)(bits + 1)});
            assert_int_equal(nib_f16_from_float((x + next) / 2).bits, bits & 1 ? bits + 1 : bits);
        }
    }
    assert_int_equal(nib_f16_from_float(65520.0f).bits, 0x7c00);
    assert_int_equal(nib_bf16_from_float(1.00390625f).bits, 0x3f80); /* 1 + 2^-8: tie, down to even */
    assert_int_equal(nib_bf16_from_float(1.01171875f).bits, 0x3f82); /* 1 + 3 * 2^-8: tie, up to even */
}

static void parse(const char *text, nib_json_options options, nib_status expected, const char *message)
{
    nib_pool pool = {0};
    nib_json *root;
    assert_int_equal(nib_json_parse("t", text, strlen(text), options, &pool, &root), expected);
    if (message != NULL && strstr(nib_error_message(), message) == NULL)
        fail_msg("message \"%s\" lacks \"%s\"", nib_error_message(), message);
    nib_pool_free(&pool);
}

static void json_refuses_what_is_not_strict(void **state)
{
    (void)state;
    nib_json_options plain = {0}, comments = {.comments = true};
    parse("{\"a\":1,\n\"a\":2}", plain, NIB_ERROR_DATA, "t:2: duplicate key \"a\"");
    parse("{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"b\":1}", plain, NIB_ERROR_DATA,
          "duplicate key \"b\"");
    parse("1 2", plain, NIB_ERROR_DATA, "text after the end");
    parse("\"\\ud800\"", plain, NIB_ERROR_DATA, "lone high surrogate");
    parse("\"\\udc00\"", plain, NIB_ERROR_DATA, "lone low surrogate");
    parse("\"\\u0000\"", plain, NIB_ERROR_DATA, "\\u0000");
    parse("\"\xc0\x80\"", plain, NIB_ERROR_DATA, "invalid UTF-8 at byte 1");
    parse("\"a\nb\"", plain, NIB_ERROR_DATA, "control character");
    parse("01", plain, NIB_ERROR_DATA, "leading zero");
    parse("1.", plain, NIB_ERROR_DATA, "decimal point");
    parse("1e999", plain, NIB_ERROR_DATA, "range of a double");
    parse("[1,]", plain, NIB_ERROR_DATA, "a value was expected");
    parse("{\"a\":1", plain, NIB_ERROR_DATA, "',' or '}'");
    parse("[1] // x", plain, NIB_ERROR_DATA, "text after the end");
    parse("// x\n[1, // y\n 2] // z", comments, NIB_OK, NULL);
    char deep[300];
    memset(deep, '[', 129);
    memset(deep + 129, ']', 129);
    deep[258] = 0;
    parse(deep, plain, NIB_ERROR_DATA, "nested too deeply");
    parse("\"\\u00e9\\ud83d\\ude00\"", plain, NIB_OK, NULL);
}

static void json_keeps_64_bit_integers(void **state)
{
    (void)state;
    nib_pool pool = {0};
    nib_json *root;
    const char *text = "[9007199254740993, -9223372036854775808, 1.5, 9223372036854775808]";
    assert_int_equal(nib_json_parse("t", text, strlen(text), (nib_json_options){0}, &pool, &root), NIB_OK);
    const nib_json *item = root->first;
    assert_true(item->is_integer && item->integer == 9007199254740993ll);
    item = item->next;
    assert_true(item->is_integer && item->integer == INT64_MIN);
    assert_false(item->next->is_integer);
    assert_false(item->next->next->is_integer);
    nib_pool_free(&pool);
}

static void json_string_writer_is_read_back(void **state)
{
    (void)state;
    const char *text = "quote \" slash \\ tab \t bell \x07 é 😀";
    for (int ascii = 0; ascii < 2; ascii++) {
        nib_buffer buffer = {0};
        nib_pool pool = {0};
        nib_json *root;
        nib_buffer_json_string(&buffer, text, strlen(text), ascii);
        assert_int_equal(nib_json_parse("t", buffer.data, buffer.length, (nib_json_options){0}, &pool, &root), NIB_OK);
        assert_string_equal(root->string, text);
        if (ascii) assert_int_equal(nib_utf8_invalid_at(buffer.data, buffer.length), buffer.length);
        nib_buffer_free(&buffer);
        nib_pool_free(&pool);
    }
}

static void printed_text_cannot_steer_a_terminal(void **state)
{
    (void)state;
    static const char text[] =
        "a\n\tb\0 \x1b[2J \x7f \xc2\x9b \x9b \xc3 \xe2\x80\xae \xe2\x81\xa6 \xc3\xbc \xf0\x9f\x98\x80";
    static const char expected[] =
        "a\n\tb\\u{0000} \\u{001b}[2J \\u{007f} \\u{009b} \\x9b \\xc3 \\u{202e} \\u{2066} \xc3\xbc "
        "\xf0\x9f\x98\x80";
    char *printed = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&printed, &length);
    assert_non_null(out);
    nib_utf8_print(out, text, sizeof text - 1);
    assert_int_equal(fclose(out), 0);
    assert_string_equal(printed, expected);
    free(printed);
}

/* A text of small values takes many times its size when parsed: the pool's limit is a fault of the text. */
static void json_stops_at_the_pool_limit(void **state)
{
    (void)state;
    nib_buffer text = {0};
    nib_pool pool = {.limit = 1 << 20};
    nib_json *root;
    nib_buffer_char(&text, '[');
    for (int i = 0; i < 100000; i++) nib_buffer_text(&text, "0,");
    nib_buffer_text(&text, "0]");
    assert_int_equal(nib_json_parse("t", text.data, text.length, (nib_json_options){0}, &pool, &root), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "t:1: the JSON needs more than 1 MiB"));
    assert_true(pool.total <= pool.limit);
    nib_pool_free(&pool);
    nib_buffer_free(&text);
}

/* Were the pipe replaced by a file, nothing would arrive at its other end. */
static void a_pipe_is_written_to_in_place(void **state)
{
    (void)state;
    char folder[] = "/tmp/nib_pipe_XXXXXX", path[64], got[4] = "";
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/pipe", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    assert_true(fd >= 0);
    assert_int_equal(nib_file_replace(path, "abc", 3), NIB_OK);
    assert_int_equal(read(fd, got, 3), 3);
    assert_string_equal(got, "abc");
    close(fd);
    assert_int_equal(nib_file_remove_tree(folder), NIB_OK);
}

static void replace_leaves_the_old_file_when_it_fails(void **state)
{
    (void)state;
    char path[] = "/tmp/nib_base_XXXXXX";
    assert_non_null(mkdtemp(path));
    char *file = nib_path_join(path, "a/b/c");
    char *folder = nib_path_folder(file);
    assert_int_equal(nib_file_replace(file, "x", 1), NIB_ERROR_IO);
    assert_int_equal(nib_file_make_folders(folder), NIB_OK);
    assert_int_equal(nib_file_replace(file, "one", 3), NIB_OK);
    assert_int_equal(nib_file_replace(file, "two", 3), NIB_OK);
    char *text;
    size_t length;
    assert_int_equal(nib_file_read(file, 2, &text, &length), NIB_ERROR_DATA);
    assert_int_equal(nib_file_read(file, 3, &text, &length), NIB_OK);
    assert_string_equal(text, "two");
    nib_free(text);
    nib_free(file);
    nib_free(folder);
    assert_int_equal(nib_file_remove_tree(path), NIB_OK);
    assert_false(nib_file_exists(path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_meets_published_vectors),
        cmocka_unit_test(philox_meets_published_vectors),
        cmocka_unit_test(f16_round_trips_and_rounds_to_even),
        cmocka_unit_test(json_refuses_what_is_not_strict),
        cmocka_unit_test(json_keeps_64_bit_integers),
        cmocka_unit_test(json_string_writer_is_read_back),
        cmocka_unit_test(printed_text_cannot_steer_a_terminal),
        cmocka_unit_test(json_stops_at_the_pool_limit),
        cmocka_unit_test(a_pipe_is_written_to_in_place),
        cmocka_unit_test(replace_leaves_the_old_file_when_it_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
