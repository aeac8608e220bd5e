#include "eval/text_metrics.h"
#include "base/buffer.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Words of a text, as slices of one normalised string. */
typedef struct {
    const char *text;
    size_t length;
} word;
typedef struct {
    nib_buffer text;
    word *words;
    size_t count, capacity;
} word_list;

static void free_words(word_list *list)
{
    nib_buffer_free(&list->text);
    nib_free(list->words);
}

/* What Python's str.split and str.strip call white space. */
static bool is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static bool is_cased(uint32_t c)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

static uint32_t code_at(const char *text, size_t length, size_t at)
{
    uint32_t c = 0;
    if (at < length) nib_utf8_decode(text + at, length - at, &c);
    return c;
}

/* Full lower case: two code points are not mapped one to one, or not always alike: dotted I and sigma at a word's end.
 */
static void lower_case(const char *text, nib_buffer *out)
{
    enum { DOTTED_I = 0x130, DOT_ABOVE = 0x307, SIGMA = 0x3a3, FINAL_SIGMA = 0x3c2 };
    size_t length = strlen(text);
    uint32_t before = 0, c;
    for (size_t at = 0; at < length; before = c) {
        at += nib_utf8_decode(text + at, length - at, &c);
        if (c == DOTTED_I) {
            nib_buffer_char(out, 'i');
            nib_buffer_codepoint(out, DOT_ABOVE);
        } else if (c == SIGMA && is_cased(before) && !is_cased(code_at(text, length, at))) {
            nib_buffer_codepoint(out, FINAL_SIGMA);
        } else {
            nib_buffer_codepoint(out, (unsigned)utf8proc_tolower((utf8proc_int32_t)c));
        }
    }
}

static nib_status add_word(word_list *list, size_t first, size_t end)
{
    if (!nib_grow(&list->words, &list->capacity, list->count + 1, sizeof *list->words))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the words of an answer");
    list->words[list->count++] = (word){list->text.data + first, end - first};
    return NIB_OK;
}

/* A letter, digit or number of any script: what borders a word in the script's regular expression. */
static bool is_word_character(uint32_t c)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
           (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

static bool is_article(const char *text, size_t length)
{
    return (length == 1 && text[0] == 'a') || (length == 2 && memcmp(text, "an", 2) == 0) ||
           (length == 3 && memcmp(text, "the", 3) == 0);
}

static void drop_punctuation(nib_buffer *text)
{
    size_t kept = 0;
    for (size_t i = 0; i < text->length; i++)
        if ((unsigned char)text->data[i] >= 0x80 || !ispunct((unsigned char)text->data[i]))
            text->data[kept++] = text->data[i];
    text->length = kept;
}

/* Blanks out every run of word characters that is an article. */
static void drop_articles(nib_buffer *text)
{
    for (size_t at = 0, first = 0, next; at <= text->length; at = next) {
        uint32_t c = code_at(text->data, text->length, at);
        uint32_t ignored;
        next = at < text->length ? at + nib_utf8_decode(text->data + at, text->length - at, &ignored) : at + 1;
        if (at < text->length && is_word_character(c)) continue;
        if (is_article(text->data + first, at - first)) memset(text->data + first, ' ', at - first);
        first = next;
    }
}

static nib_status squad_words(const char *text, word_list *list)
{
    lower_case(text, &list->text);
    if (list->text.failed)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compare an answer of %zu bytes", strlen(text));
    if (list->text.length == 0) return NIB_OK;
    drop_punctuation(&list->text);
    drop_articles(&list->text);
    size_t first = 0, at = 0;
    while (at < list->text.length) {
        uint32_t c;
        size_t size = nib_utf8_decode(list->text.data + at, list->text.length - at, &c);
        if (is_space(c)) {
            if (at > first) NIB_TRY(add_word(list, first, at));
            first = at + size;
        }
        at += size;
    }
    return at > first ? add_word(list, first, at) : NIB_OK;
}

static nib_status rouge_words(const char *text, word_list *list)
{
    lower_case(text, &list->text);
    if (list->text.failed)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compare an answer of %zu bytes", strlen(text));
    size_t first = 0;
    for (size_t at = 0; at <= list->text.length; at++) {
        char c = at < list->text.length ? list->text.data[at] : ' ';
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) continue;
        if (at > first) NIB_TRY(add_word(list, first, at));
        first = at + 1;
    }
    return NIB_OK;
}

static int compare_words(const void *left, const void *right)
{
    const word *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->length < b->length ? a->length : b->length);
    return order != 0 ? order : (a->length > b->length) - (a->length < b->length);
}

/* Size of the intersection of two bags; sorts both. */
static size_t common_words(word_list *a, word_list *b)
{
    size_t common = 0;
    qsort(a->words, a->count, sizeof *a->words, compare_words);
    qsort(b->words, b->count, sizeof *b->words, compare_words);
    for (size_t i = 0, j = 0; i < a->count && j < b->count;) {
        int order = compare_words(&a->words[i], &b->words[j]);
        common += order == 0;
        i += order <= 0;
        j += order >= 0;
    }
    return common;
}

static double f_measure(size_t common, size_t predicted, size_t expected)
{
    if (common == 0) return 0.0;
    double precision = (double)common / (double)predicted, recall = (double)common / (double)expected;
    return 2.0 * precision * recall / (precision + recall);
}

nib_status nib_token_f1(const char *prediction, const char *reference, double *f1)
{
    word_list a = {0}, b = {0};
    nib_status status;
    NIB_TRY_GOTO(squad_words(prediction, &a), done);
    NIB_TRY_GOTO(squad_words(reference, &b), done);
    if (a.count == 0 || b.count == 0)
        *f1 = a.count == b.count ? 1.0 : 0.0;
    else
        *f1 = f_measure(common_words(&a, &b), a.count, b.count);
done:
    free_words(&a);
    free_words(&b);
    return status;
}

/* Length of the longest common subsequence, by one row of the usual table. row [b->count + 1], zero. */
static size_t longest_common(const word_list *a, const word_list *b, uint32_t *row)
{
    for (size_t i = 0; i < a->count; i++) {
        uint32_t diagonal = 0;
        for (size_t j = 0; j < b->count; j++) {
            uint32_t above = row[j + 1];
            if (compare_words(&a->words[i], &b->words[j]) == 0)
                row[j + 1] = diagonal + 1;
            else if (row[j] > above)
                row[j + 1] = row[j];
            diagonal = above;
        }
    }
    return row[b->count];
}

nib_status nib_rouge_l(const char *prediction, const char *reference, double *rouge_l)
{
    word_list a = {0}, b = {0};
    uint32_t *row = NULL;
    nib_status status;
    *rouge_l = 0.0;
    NIB_TRY_GOTO(rouge_words(prediction, &a), done);
    NIB_TRY_GOTO(rouge_words(reference, &b), done);
    if (a.count == 0 || b.count == 0) goto done;
    const word_list *shorter = a.count < b.count ? &a : &b, *longer = a.count < b.count ? &b : &a;
    row = nib_calloc(shorter->count + 1, sizeof *row);
    if (row == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compare answers of %zu words", shorter->count);
        goto done;
    }
    *rouge_l = f_measure(longest_common(longer, shorter, row), a.count, b.count);
done:
    nib_free(row);
    free_words(&a);
    free_words(&b);
    return status;
}

/* First and last byte (exclusive) of a text without the white space at its ends. */
static void trim(const char *text, size_t *first, size_t *end)
{
    size_t length = strlen(text);
    *first = *end = 0;
    bool inside = false;
    for (size_t at = 0; at < length;) {
        uint32_t c;
        size_t size = nib_utf8_decode(text + at, length - at, &c);
        if (!is_space(c)) {
            if (!inside) *first = at;
            inside = true;
            *end = at + size;
        }
        at += size;
    }
}

bool nib_exact_match(const char *prediction, const char *reference)
{
    size_t a, a_end, b, b_end;
    trim(prediction, &a, &a_end);
    trim(reference, &b, &b_end);
    return a_end - a == b_end - b && memcmp(prediction + a, reference + b, a_end - a) == 0;
}
