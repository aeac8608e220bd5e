/* Hostile tokenizer files and texts: refused with the facts, or read without harm. And what no golden case holds: the
 * flags of added tokens, long words, special tokens as plain text. */
#include "check.h"
#include "folder.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/memory.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static nib_status open_text(const char *text, size_t length, nib_tokenizer **tokenizer)
{
    unlink(path); /* some file systems flush a file that is truncated and written again, never a new one */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, length, file), length);
    fclose(file);
    return nib_tokenizer_open(path, tokenizer);
}

#define VOCAB "{\"a\":0,\"b\":1,\"ab\":2,\"c\":3,\"abc\":4}"
#define STEPS                                                                                                          \
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"}"
#define SINGLE "\"single_word\":false,\"lstrip\":false,\"rstrip\":false"
/* An added token, with flags as `true` or `false`. */
#define ADDED(id, content, special, normalized)                                                                        \
    "{\"id\":" #id ",\"content\":\"" content "\",\"special\":" #special ",\"normalized\":" #normalized "," SINGLE "}"
#define FILE_OF(added, vocab, merges)                                                                                  \
    "{\"added_tokens\":[" added "]," STEPS ",\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":[" merges "]}" \
    "}"

#define SPLIT(pattern, rest)                                                                                           \
    "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern "\"}," rest "},\"model\":{}}"

static void refused(const char *text, const char *message)
{
    nib_tokenizer *tokenizer;
    assert_int_equal(open_text(text, strlen(text), &tokenizer), NIB_ERROR_DATA);
    assert_null(tokenizer);
    if (strstr(nib_error_message(), message) == NULL || strstr(nib_error_message(), path) == NULL)
        fail_msg("message \"%s\" lacks \"%s\" or the file", nib_error_message(), message);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    refused(FILE_OF("", VOCAB, "\"a x\""), "merge 0");
    refused(FILE_OF("", VOCAB, "\"a c\""), "join to a third");
    refused(FILE_OF("", VOCAB, "\"a  b\""), "merge 0");
    refused(FILE_OF("", VOCAB, "[\"a\",\"b\",\"c\"]"), "merge 0");
    refused(FILE_OF("", VOCAB, "\"a b\",\"a b\""), "merge 0 again");
    refused(FILE_OF("", "{\"a\":0,\"b\":0}", ""), "id 0 is given to");
    refused(FILE_OF("", "{\"a\":0,\"a\":1}", ""), "duplicate key");
    refused(FILE_OF("", "{\"a\":-1}", ""), "has id -1");
    refused(FILE_OF("", "{\"a\":99999999}", ""), "has id 99999999");
    refused(FILE_OF("", "{\"a\":0.5}", ""), "no integer");
    refused(FILE_OF(ADDED(0, "zz", false, true), VOCAB, ""), "id 0 is given to");
    refused(FILE_OF("{\"id\":9}", VOCAB, ""), "without id or content");
    refused("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "Unigram");
    refused("[]", "an array");
    refused("{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"model\":{}}", "cannot be left out");
    refused("{\"normalizer\":{\"type\":\"Lowercase\"},\"model\":{}}", "cannot be left out");
    refused(SPLIT("(a", "\"behavior\":\"Isolated\",\"invert\":false"), "does not compile");
    refused(SPLIT("\\\\h", "\"behavior\":\"Isolated\",\"invert\":false"), "not supported");
    /* What Hugging Face's tokenizers 0.23.3 refuses too: a part that is no part, a flag that is not there. */
    refused("{\"dekoder\":null,\"model\":{}}", "\"dekoder\" is no part of a tokenizer");
    refused(FILE_OF("{\"id\":9,\"content\":\"z\",\"special\":true,\"normalised\":false," SINGLE "}", VOCAB, ""),
            "\"normalized\" is missing");
    refused(FILE_OF("{\"id\":9,\"content\":\"z\",\"normalized\":true," SINGLE "}", VOCAB, ""),
            "\"special\" is missing");
    refused(SPLIT("a", "\"behavior\":\"Isolated\",\"invert\":1"), "\"invert\" is missing, or neither true nor false");
    refused(SPLIT("a", "\"invert\":false"), "the behavior \"\" is not supported");
    refused("{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{}}", "\"add_prefix_space\" is missing");
    refused("{\"pre_tokenizer\":{\"type\":\"Digits\"},\"model\":{}}", "\"individual_digits\" is missing");
    refused("{" STEPS ",\"model\":{\"vocab\":" VOCAB
            ",\"merges\":[]},\"post_processor\":{\"type\":\"TemplateProcessing\","
            "\"single\":[{\"SpeclalToken\":{\"id\":\"a\"}},{\"Sequence\":{\"id\":\"A\"}}]}}",
            "neither \"SpecialToken\" nor");
    nib_tokenizer *tokenizer;
    assert_int_equal(nib_tokenizer_open("/nonexistent/tokenizer.json", &tokenizer), NIB_ERROR_DATA);
}

static void encodes(const nib_tokenizer *tokenizer, const char *text, bool parse_special, const char *expected)
{
    nib_token_list list = {0};
    nib_buffer got = {0};
    nib_encode_options options = {.parse_special = parse_special};
    assert_int_equal(nib_tokenizer_encode(tokenizer, text, strlen(text), options, &list), NIB_OK);
    for (size_t i = 0; i < list.count; i++) nib_buffer_format(&got, i > 0 ? " %d" : "%d", list.ids[i]);
    assert_string_equal(got.data != NULL ? got.data : "", expected);
    nib_buffer_free(&got);
    nib_token_list_free(&list);
}

/* Ids by hand from the rule: lowest rank first, leftmost among equals. */
static void merges_and_special_tokens_follow_the_rules(void **state)
{
    (void)state;
    static const char text[] =
        FILE_OF(ADDED(7, "cc", true, false) "," ADDED(8, "ccc", false, true), VOCAB, "\"a b\",\"ab c\"");
    nib_tokenizer *tokenizer;
    assert_int_equal(open_text(text, strlen(text), &tokenizer), NIB_OK);
    encodes(tokenizer, "abcab", true, "4 2");
    encodes(tokenizer, "accb", true, "0 7 1");
    encodes(tokenizer, "accb", false, "0 3 3 1"); /* special as plain text */
    encodes(tokenizer, "acccb", false, "0 8 1");  /* longest; not special, so found all the same */
    encodes(tokenizer, "", true, "");
    assert_int_equal(nib_tokenizer_vocabulary(tokenizer), 9);
    assert_int_equal(nib_tokenizer_id(tokenizer, "ab"), 2);
    assert_int_equal(nib_tokenizer_id(tokenizer, "zz"), -1);
    assert_null(nib_tokenizer_text(tokenizer, 5));
    assert_true(nib_tokenizer_is_special(tokenizer, 7) && !nib_tokenizer_is_special(tokenizer, 8));
    nib_buffer out = {0};
    int32_t hole = 5;
    assert_int_equal(nib_tokenizer_decode(tokenizer, &hole, 1, false, &out), NIB_ERROR_DATA);
    nib_token_list list = {0};
    nib_encode_options plain = {.add_special = false};
    assert_int_equal(nib_tokenizer_encode(tokenizer, "a\xff", 2, plain, &list), NIB_ERROR_DATA);
    nib_buffer_free(&out);
    nib_tokenizer_free(tokenizer);
}

static void decodes(const nib_tokenizer *tokenizer, int32_t id, bool skip_special, const char *expected)
{
    nib_buffer text = {0};
    int32_t ids[] = {0, id};
    assert_int_equal(nib_tokenizer_decode(tokenizer, ids, 2, skip_special, &text), NIB_OK);
    nib_buffer_char(&text, 0);
    assert_string_equal(text.data, expected);
    nib_buffer_free(&text);
}

#define COMPOSED                                                                                                       \
    ADDED(5, "e\\u0301x", false, true)                                                                                 \
    "," ADDED(6, "e\\u0301x.", false, false) "," ADDED(7, "\\u00e9", false, false) "," ADDED(                          \
        8, "\\u0120x", false, true) "," ADDED(9, "\\u0120\\u65e5", false, true)
#define PREPENDED ADDED(5, "x", false, true) "," ADDED(6, "y", false, false)
#define MODEL     ",\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB ",\"merges\":[]}"

/* Added tokens go through the decoder as all others do, as what they are looked for. Texts are those of Hugging Face's
 * tokenizers 0.23.3. */
static void added_tokens_are_decoded_as_by_others(void **state)
{
    (void)state;
    static const char bytes[] = "{\"normalizer\":{\"type\":\"NFC\"},\"added_tokens\":[" COMPOSED "]," STEPS MODEL "}";
    static const char pieces[] =
        "{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},\"added_tokens\":[" PREPENDED "],"
        "\"decoder\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\\u2581\"},\"content\":\" \"}" MODEL "}";
    nib_tokenizer *tokenizer;
    assert_int_equal(open_text(bytes, strlen(bytes), &tokenizer), NIB_OK);
    decodes(tokenizer, 5, false, "a\xef\xbf\xbdx"); /* composed, and then a letter of the byte alphabet: 0xe9 */
    decodes(tokenizer, 6, false, "ae\xcc\x81x.");   /* the accent alone is none: as it stands */
    decodes(tokenizer, 7, false, "a\xef\xbf\xbd");
    decodes(tokenizer, 8, false, "a x");
    decodes(tokenizer, 9, false, "a\xc4\xa0\xe6\x97\xa5");
    assert_string_equal(nib_tokenizer_text(tokenizer, 5), "e\xcc\x81x");
    nib_tokenizer_free(tokenizer);
    assert_int_equal(open_text(pieces, strlen(pieces), &tokenizer), NIB_OK);
    decodes(tokenizer, 5, false, "a x");
    decodes(tokenizer, 6, false, "ay");
    nib_tokenizer_free(tokenizer);
}

/* Whether one is left out is asked of the text that is decoded. Texts are those of Hugging Face's tokenizers 0.23.3. */
static void special_tokens_are_left_out_as_by_others(void **state)
{
    (void)state;
    static const char pieces[] =
        "{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},\"added_tokens\":[" ADDED(
            6, "x", true,
            true) "," ADDED(7, "y", true,
                            false) "," ADDED(8, "z", false,
                                             true) "," ADDED(9, "\\u2581z", true,
                                                             false) "],"
                                                                    "\"decoder\":{\"type\":\"Replace\",\"pattern\":{"
                                                                    "\"String\":\"\\u2581\"},\"content\":\" \"},"
                                                                    "\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB
                                                                    ",\"merges\":[]}}";
    nib_tokenizer *tokenizer;
    assert_int_equal(open_text(pieces, strlen(pieces), &tokenizer), NIB_OK);
    decodes(tokenizer, 6, false, "a x");
    decodes(tokenizer, 6, true, "a x"); /* reads as no special token */
    decodes(tokenizer, 7, true, "a");
    decodes(tokenizer, 8, false, "a z");
    decodes(tokenizer, 8, true, "a"); /* reads as number 9 */
    decodes(tokenizer, 9, true, "a");
    nib_tokenizer_free(tokenizer);
}

/* White space that one added token takes with it, and that others begin with. Ids are those of Hugging Face's
 * tokenizers 0.23.3. */
static void white_space_is_taken_as_by_others(void **state)
{
    (void)state;
#define SPACES(id, content, left, right)                                                                               \
    "{\"id\":" #id ",\"content\":\"" content                                                                           \
    "\",\"special\":false,\"normalized\":false,\"single_word\":false,\"lstrip\":" #left ",\"rstrip\":" #right "}"
#define SPACE_VOCAB "{\"a\":0,\"b\":1,\"ab\":2,\"c\":3,\"abc\":4,\"\\u0120\":5}"
    static const char text[] = FILE_OF(SPACES(6, "x", false, true) "," SPACES(7, "  ", false, false) "," SPACES(
                                           8, "\\n", true, true) "," SPACES(9, " c", false, false),
                                       SPACE_VOCAB, "");
    static const char *const cases[][2] = {{"x  a", "6 7 0"},     {"x   a", "6 7 5 0"}, {"x    a", "6 7 7 0"},
                                           {"x ca", "6 9 0"},     {"x\na", "6 0"},      {"a\n\nb", "0 8 1"},
                                           {"a \n \nb", "0 8 1"}, {"\n   b", "8 7 5 1"}};
    nib_tokenizer *tokenizer;
    assert_int_equal(open_text(text, strlen(text), &tokenizer), NIB_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) encodes(tokenizer, cases[i][0], true, cases[i][1]);
    nib_tokenizer_free(tokenizer);
}

/* The heap of long words against the scan of short ones: the text of a long word is cut where no merge crosses. */
static void long_words_merge_as_short_ones(void **state)
{
    (void)state;
    static const char text[] = FILE_OF("", VOCAB, "\"a b\",\"ab c\"");
    static const int32_t expected[] = {4, 1, 2};
    enum { REPEATS = 50000 };
    nib_tokenizer *tokenizer;
    nib_token_list list = {0};
    nib_encode_options plain = {.add_special = false};
    assert_int_equal(open_text(text, strlen(text), &tokenizer), NIB_OK);
    char *word = malloc(REPEATS * 6);
    for (int i = 0; i < REPEATS; i++) memcpy(word + 6 * i, "abcbab", 6);
    assert_int_equal(nib_tokenizer_encode(tokenizer, word, REPEATS * 6, plain, &list), NIB_OK);
    assert_int_equal(list.count, REPEATS * 3);
    for (size_t i = 0; i < list.count; i++) assert_int_equal(list.ids[i], expected[i % 3]);
    free(word);
    nib_token_list_free(&list);
    nib_tokenizer_free(tokenizer);
}

/* A damaged file is refused with NIB_ERROR_DATA, or, where the damage is in a text or a number, read as another valid
 * vocabulary: then it must encode without harm (the sanitizers look on). */
static void try_damaged(const char *text, size_t length)
{
    nib_tokenizer *tokenizer;
    nib_token_list list = {0};
    nib_status status = open_text(text, length, &tokenizer);
    if (status != NIB_OK) {
        assert_int_equal(status, NIB_ERROR_DATA);
        return;
    }
    static const char sample[] = "Hello w\xc3\xb6rld 123 <mask> SOLO <tool> \xf0\x9f\x98\x80";
    status = nib_tokenizer_encode(tokenizer, sample, strlen(sample),
                                  (nib_encode_options){.add_special = true, .parse_special = true}, &list);
    assert_true(status == NIB_OK || status == NIB_ERROR_DATA);
    nib_token_list_free(&list);
    nib_tokenizer_free(tokenizer);
}

static void damaged_files_do_no_harm(void **state)
{
    const char *name = *state;
    char source[512], *text;
    size_t length;
    unsigned seed = 1;
    snprintf(source, sizeof source, "%s/tokenizers/%s/tokenizer.json", NIB_TEST_DATA, name);
    assert_int_equal(nib_file_read(source, 1 << 20, &text, &length), NIB_OK);
    for (size_t cut = 0; cut < length; cut += 37) {
        nib_tokenizer *tokenizer;
        assert_int_equal(open_text(text, cut, &tokenizer), NIB_ERROR_DATA); /* no proper prefix is JSON */
    }
    for (int i = 0; i < 1000; i++) {
        seed = seed * 1103515245u + 12345u;
        size_t at = (seed >> 8) % length;
        text[at] ^= (char)(1 << (seed % 8));
        try_damaged(text, length);
        text[at] ^= (char)(1 << (seed % 8));
    }
    nib_free(text);
}

static int set_up(void **state)
{
    if (make_folder(state) != 0) return -1;
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(merges_and_special_tokens_follow_the_rules),
        cmocka_unit_test(added_tokens_are_decoded_as_by_others),
        cmocka_unit_test(special_tokens_are_left_out_as_by_others),
        cmocka_unit_test(white_space_is_taken_as_by_others),
        cmocka_unit_test(long_words_merge_as_short_ones),
        {"damaged llama3", damaged_files_do_no_harm, NULL, NULL, (void *)"llama3"},
        {"damaged mistral_metaspace", damaged_files_do_no_harm, NULL, NULL, (void *)"mistral_metaspace"},
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
