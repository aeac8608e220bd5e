/* libFuzzer: any bytes as a tokenizer.json; what is accepted must encode and decode without harm. */
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static const char sample[] = "Hello  w\xc3\xb6rld\n 123 <s> <tool> SOLO e\xcc\x81 \xe2\x96\x81x \xf0\x9f\x98\x80";
    static int descriptor = -1;
    static char path[64];
    if (descriptor < 0) {
        descriptor = memfd_create("tokenizer.json", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    }
    if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, bytes, length, 0) != (ssize_t)length) abort();
    nib_tokenizer *tokenizer;
    if (nib_tokenizer_open(path, &tokenizer) != NIB_OK) return 0;
    nib_token_list list = {0};
    nib_buffer text = {0};
    nib_encode_options options = {.add_special = true, .parse_special = true};
    if (nib_tokenizer_encode(tokenizer, sample, strlen(sample), options, &list) == NIB_OK)
        nib_tokenizer_decode(tokenizer, list.ids, list.count, true, &text);
    nib_buffer_free(&text);
    nib_token_list_free(&list);
    nib_tokenizer_free(tokenizer);
    return 0;
}
