/* One tokenizer, several threads, for ThreadSanitizer: loading is over before the threads start, and encoding changes
 * nothing that they share but the list of idle workers, under its lock. */
#include "check.h"

#include "base/buffer.h"
#include "tokenizer/tokenizer.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { THREADS = 4, ROUNDS = 60 };

static nib_tokenizer *tokenizer;
static nib_token_list expected[2];

static const char *const texts[2] = {
    "The quick brown fox, 1234 times: don't jump over <|im_end|> w\xc3\xb6rld\n\n  twice \xf0\x9f\x98\x80",
    "A second text, of other words; 98765432 and more \xd0\xbf\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82"};

static nib_status encode(const char *text, nib_token_list *ids)
{
    nib_encode_options options = {.add_special = true, .parse_special = true};
    return nib_tokenizer_encode(tokenizer, text, strlen(text), options, ids);
}

/* How many results differ from those of a single thread. */
static void *work(void *argument)
{
    size_t *wrong = argument;
    for (int round = 0; round < ROUNDS; round++) {
        for (int t = 0; t < 2; t++) {
            nib_token_list ids = {0};
            nib_buffer text = {0};
            bool same = encode(texts[t], &ids) == NIB_OK && ids.count == expected[t].count &&
                        memcmp(ids.ids, expected[t].ids, ids.count * sizeof *ids.ids) == 0;
            same = same && nib_tokenizer_decode(tokenizer, ids.ids, ids.count, false, &text) == NIB_OK;
            *wrong += !same;
            nib_token_list_free(&ids);
            nib_buffer_free(&text);
        }
    }
    return NULL;
}

static void threads_share_a_tokenizer(void **state)
{
    pthread_t threads[THREADS];
    size_t wrong[THREADS] = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/tokenizers/%s/tokenizer.json", NIB_TEST_DATA, (const char *)*state);
    assert_int_equal(nib_tokenizer_open(path, &tokenizer), NIB_OK);
    for (int t = 0; t < 2; t++) assert_int_equal(encode(texts[t], &expected[t]), NIB_OK);
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&threads[i], NULL, work, &wrong[i]), 0);
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < THREADS; i++) assert_int_equal(wrong[i], 0);
    for (int t = 0; t < 2; t++) nib_token_list_free(&expected[t]);
    nib_tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"byte-level BPE", threads_share_a_tokenizer, NULL, NULL, (void *)"smollm2"},
        {"SentencePiece BPE", threads_share_a_tokenizer, NULL, NULL, (void *)"mistral_spm"},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
