#include "tokenizer/normalizer.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

void nib_normalizer_free(nib_normalizer *normalizer)
{
    for (size_t i = 0; i < normalizer->count; i++) {
        nib_free(normalizer->steps[i].pattern);
        nib_free(normalizer->steps[i].content);
    }
    normalizer->count = 0;
}

void nib_replace(nib_buffer *out, const char *text, size_t length, const char *pattern, const char *content)
{
    size_t n = strlen(pattern);
    const char *end = text + length;
    for (const char *match; (match = memmem(text, (size_t)(end - text), pattern, n)) != NULL; text = match + n) {
        nib_buffer_append(out, text, (size_t)(match - text));
        nib_buffer_text(out, content);
    }
    nib_buffer_append(out, text, (size_t)(end - text));
}

/* All text below U+0300, the first combining mark, is in NFC already; in UTF-8 its bytes are below 0xcc. */
static bool is_surely_nfc(const char *text, size_t length)
{
    unsigned char highest = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte > highest) highest = byte;
    }
    return highest < 0xcc;
}

static nib_status compose(nib_buffer *out, const char *text, size_t length)
{
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &composed,
                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0)
        return NIB_FAIL(n == UTF8PROC_ERROR_NOMEM ? NIB_ERROR_MEMORY : NIB_ERROR_DATA, "NFC of a text of %zu bytes: %s",
                        length, utf8proc_errmsg(n));
    nib_buffer_append(out, composed, (size_t)n);
    free(composed);
    return NIB_OK;
}

nib_status nib_normalize(const nib_normalizer *normalizer, nib_buffer buffers[2], const char *text, size_t length,
                         const char **result, size_t *result_length)
{
    int use = 0;
    for (size_t i = 0; i < normalizer->count && length > 0; i++) {
        const nib_normalizer_step *step = &normalizer->steps[i];
        if (step->kind == NIB_NORMALIZE_NFC && is_surely_nfc(text, length)) continue;
        nib_buffer *out = &buffers[use];
        use = 1 - use;
        nib_buffer_clear(out);
        switch (step->kind) {
        case NIB_NORMALIZE_NFC:
            NIB_TRY(compose(out, text, length));
            break;
        case NIB_NORMALIZE_PREPEND:
            nib_buffer_text(out, step->content);
            nib_buffer_append(out, text, length);
            break;
        case NIB_NORMALIZE_REPLACE:
            nib_replace(out, text, length, step->pattern, step->content);
            break;
        }
        if (out->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to normalize %zu bytes", length);
        text = out->data;
        length = out->length;
    }
    *result = text;
    *result_length = length;
    return NIB_OK;
}
