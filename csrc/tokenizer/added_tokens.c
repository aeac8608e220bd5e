#include "tokenizer/added_tokens.h"

#include "base/memory.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

bool nib_added_tokens_append(nib_added_tokens *added, nib_added_token token)
{
    if (!nib_grow(&added->tokens, &added->capacity, added->count + 1, sizeof *added->tokens)) return false;
    added->tokens[added->count++] = token;
    return true;
}

static int order(const void *left, const void *right)
{
    const nib_added_token *a = left, *b = right;
    int byte = (int)(unsigned char)a->text[0] - (int)(unsigned char)b->text[0];
    if (byte != 0) return byte;
    return (a->length < b->length) - (a->length > b->length);
}

void nib_added_tokens_sort(nib_added_tokens *added)
{
    if (added->count > 0) qsort(added->tokens, added->count, sizeof *added->tokens, order);
    size_t at = 0;
    for (int byte = 0; byte < 256; byte++) {
        added->first[byte] = at;
        while (at < added->count && (unsigned char)added->tokens[at].text[0] == byte) at++;
    }
    added->first[256] = at;
}

void nib_added_tokens_free(nib_added_tokens *added)
{
    for (size_t i = 0; i < added->count; i++) nib_free(added->tokens[i].text);
    nib_free(added->tokens);
    memset(added, 0, sizeof *added);
}

static bool is_space(uint32_t c)
{
    return (c >= '\t' && c <= '\r') || c == 0x85 || utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ZS ||
           c == 0x2028 || c == 0x2029;
}

/* \w: letters, marks, decimal digits, connecting punctuation and letter-like numbers. */
static bool is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return c == 0x200c || c == 0x200d; /* Join_Control */
    }
}

/* The code point that ends at `end` (> 0); *start is where it begins. */
static uint32_t codepoint_before(const char *text, size_t end, size_t *start)
{
    uint32_t codepoint;
    *start = end - 1;
    while (*start > 0 && ((unsigned char)text[*start] & 0xc0) == 0x80) (*start)--;
    nib_utf8_decode(text + *start, end - *start, &codepoint);
    return codepoint;
}

static bool stands_alone(const char *text, size_t length, size_t start, size_t end)
{
    uint32_t codepoint;
    size_t before;
    if (start > 0 && is_word(codepoint_before(text, start, &before))) return false;
    if (end == length) return true;
    nib_utf8_decode(text + end, length - end, &codepoint);
    return !is_word(codepoint);
}

static const nib_added_token *token_at(const nib_added_tokens *added, const char *text, size_t length)
{
    size_t byte = (unsigned char)text[0];
    for (size_t i = added->first[byte]; i < added->first[byte + 1]; i++) {
        const nib_added_token *token = &added->tokens[i];
        if (token->length <= length && memcmp(token->text, text, token->length) == 0) return token;
    }
    return NULL;
}

nib_status nib_added_tokens_split(const nib_added_tokens *added, bool parse_special, const char *text, size_t length,
                                  nib_text_function rest, nib_token_function token_function, void *context)
{
    size_t done = 0;
    for (size_t at = 0; added->count > 0 && at < length;) {
        const nib_added_token *token = token_at(added, text + at, length - at);
        if (token == NULL) {
            at++;
            continue;
        }
        size_t start = at, end = at + token->length, before;
        at = end;
        if (token->special && !parse_special) continue;
        if (token->single_word && !stands_alone(text, length, start, end)) continue;
        if (token->lstrip) {
            while (start > done && is_space(codepoint_before(text, start, &before))) start = before;
            if (start < done) start = done;
        }
        if (token->rstrip)
            while (end < length) {
                uint32_t codepoint;
                size_t step = nib_utf8_decode(text + end, length - end, &codepoint);
                if (!is_space(codepoint)) break;
                end += step;
            }
        if (start >= end) continue; /* white space that the token before has taken */
        if (start > done) NIB_TRY(rest(context, text + done, start - done));
        NIB_TRY(token_function(context, token->id));
        done = end; /* the search goes on at `at`: a token of white space is found in what rstrip has taken */
    }
    return done < length ? rest(context, text + done, length - done) : NIB_OK;
}
