#include "tokenizer/jinja_lexer.h"

#include "base/buffer.h"
#include "base/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BRACKETS = 200 };

typedef struct {
    const char *name;
    nib_pool *pool;
    const char *source;
    size_t length, at;
    uint32_t line;
    bool line_starting;         /* nothing of the current line has been read as text */
    char closing[MAX_BRACKETS]; /* the brackets that are open inside the tag, by what closes them */
    size_t open;
    nib_jinja_token *tokens;
    size_t count, capacity;
} lexer;

bool nib_jinja_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t nib_jinja_leading_space(const char *text, size_t length)
{
    size_t at = 0;
    while (at < length) {
        uint32_t codepoint;
        size_t bytes = nib_utf8_decode(text + at, length - at, &codepoint);
        if (!nib_jinja_is_space(codepoint)) break;
        at += bytes;
    }
    return at;
}

size_t nib_jinja_trailing_space(const char *text, size_t length)
{
    size_t end = length;
    while (end > 0) {
        size_t start = end - 1;
        while (start > 0 && ((unsigned char)text[start] & 0xc0) == 0x80) start--;
        uint32_t codepoint;
        nib_utf8_decode(text + start, end - start, &codepoint);
        if (!nib_jinja_is_space(codepoint)) break;
        end = start;
    }
    return length - end;
}

static nib_status no_memory(const lexer *x)
{
    return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", x->name);
}

static nib_status add(lexer *x, nib_jinja_token token)
{
    if (x->count == x->capacity) {
        size_t capacity = x->capacity ? 2 * x->capacity : 256;
        nib_jinja_token *tokens = nib_pool_alloc(x->pool, capacity * sizeof *tokens);
        if (tokens == NULL) return no_memory(x);
        if (x->count > 0) memcpy(tokens, x->tokens, x->count * sizeof *tokens);
        x->tokens = tokens;
        x->capacity = capacity;
    }
    token.line = x->line;
    x->tokens[x->count++] = token;
    return NIB_OK;
}

static bool looking_at(const lexer *x, size_t at, const char *text)
{
    size_t length = strlen(text);
    return at <= x->length && x->length - at >= length && memcmp(x->source + at, text, length) == 0;
}

/* Moves to `to`, counting lines, and notes whether what was passed ended a line. */
static void advance(lexer *x, size_t to)
{
    for (size_t i = x->at; i < to; i++) x->line += x->source[i] == '\n';
    if (to > x->at) x->line_starting = x->source[to - 1] == '\n';
    x->at = to;
}

/* "%}", "+%}" or "-%}" at `at`, with the white space that it takes along. 0: it is not there. */
static size_t end_of_tag(const lexer *x, size_t at, const char *closer, bool trims_newline)
{
    size_t start = at;
    char sign = at < x->length ? x->source[at] : 0;
    if (sign == '-' || (sign == '+' && trims_newline)) at++;
    if (!looking_at(x, at, closer)) return 0;
    at += 2;
    if (sign == '-') return at + nib_jinja_leading_space(x->source + at, x->length - at) - start;
    if (sign != '+' && trims_newline && at < x->length && x->source[at] == '\n') at++;
    return at - start;
}

/* Start of the next tag at or after `at`, or the length. */
static size_t find_tag(const lexer *x, size_t at)
{
    for (; at + 1 < x->length; at++)
        if (x->source[at] == '{' && strchr("{%#", x->source[at + 1]) != NULL && x->source[at + 1] != 0) return at;
    return x->length;
}

/* Bytes of the text [x->at, tag) that stay before a tag: `-` strips white space, lstrip_blocks the indentation. */
static size_t kept_text(const lexer *x, size_t tag, bool is_output)
{
    const char *text = x->source + x->at;
    size_t length = tag - x->at;
    char sign = tag + 2 < x->length ? x->source[tag + 2] : 0;
    if (sign == '-') return length - nib_jinja_trailing_space(text, length);
    if (sign == '+' || is_output) return length;
    size_t line = length;
    while (line > 0 && text[line - 1] != '\n') line--;
    bool from_line_start = line > 0 || x->line_starting;
    return from_line_start && nib_jinja_leading_space(text + line, length - line) == length - line ? line : length;
}

static nib_status add_text(lexer *x, size_t kept)
{
    if (kept == 0) return NIB_OK;
    return add(x, (nib_jinja_token){.kind = NIB_JINJA_TOKEN_TEXT, .text = x->source + x->at, .length = kept});
}

/* "{%", sign, the word, then the end of the tag: bytes of all that, or 0. */
static size_t word_tag(const lexer *x, size_t at, const char *word, bool trims_newline)
{
    size_t start = at;
    if (!looking_at(x, at, "{%")) return 0;
    at += 2;
    if (at < x->length && (x->source[at] == '-' || x->source[at] == '+')) at++;
    at += nib_jinja_leading_space(x->source + at, x->length - at);
    if (!looking_at(x, at, word)) return 0;
    at += strlen(word);
    at += nib_jinja_leading_space(x->source + at, x->length - at);
    size_t end = end_of_tag(x, at, "%}", trims_newline);
    return end == 0 ? 0 : at + end - start;
}

static nib_status read_raw(lexer *x, size_t begin)
{
    advance(x, x->at + begin);
    for (size_t tag = x->at; tag < x->length; tag++) {
        size_t end = x->source[tag] == '{' ? word_tag(x, tag, "endraw", true) : 0;
        if (end == 0) continue;
        NIB_TRY(add_text(x, kept_text(x, tag, false)));
        advance(x, tag + end);
        return NIB_OK;
    }
    return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: Missing end of raw directive", x->name, x->line);
}

static nib_status read_comment(lexer *x)
{
    for (size_t at = x->at + 2; at + 1 < x->length; at++) {
        size_t end = strchr("+-#", x->source[at]) != NULL && x->source[at] != 0 ? end_of_tag(x, at, "#}", true) : 0;
        if (end == 0) continue;
        advance(x, at + end);
        return NIB_OK;
    }
    return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: Missing end of comment tag", x->name, x->line);
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_name_start(char c)
{
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (unsigned char)c >= 0x80;
}

/* Value of `digits` hexadecimal (or octal) digits at `at`; false if there are fewer. */
static bool read_digits(const lexer *x, size_t at, size_t end, int digits, unsigned base, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < digits; i++, at++) {
        if (at >= end) return false;
        char c = x->source[at];
        unsigned digit = is_digit(c)                          ? (unsigned)(c - '0')
                         : (c | 32) >= 'a' && (c | 32) <= 'f' ? (unsigned)((c | 32) - 'a' + 10)
                                                              : 99;
        if (digit >= base) return false;
        *value = *value * base + digit;
    }
    return true;
}

/* One escape at `at` (the backslash) of a string that ends before `end`: appends what it means, returns its bytes,
 * 0 if it is malformed. The escapes are those of Python's string literals. */
static size_t read_escape(const lexer *x, size_t at, size_t end, nib_buffer *out)
{
    static const char simple[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    char c = x->source[at + 1];
    for (size_t i = 0; i + 1 < sizeof simple; i += 2) {
        if (c != simple[i]) continue;
        nib_buffer_char(out, simple[i + 1]);
        return 2;
    }
    uint32_t codepoint;
    if (c == '\n') return 2;
    if (c >= '0' && c <= '7') {
        int digits = 1;
        while (digits < 3 && at + 1 + (size_t)digits < end && x->source[at + 1 + digits] >= '0' &&
               x->source[at + 1 + digits] <= '7')
            digits++;
        if (!read_digits(x, at + 1, end, digits, 8, &codepoint)) return 0;
        nib_buffer_codepoint(out, codepoint);
        return 1 + (size_t)digits;
    }
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) {
        if (!read_digits(x, at + 2, end, digits, 16, &codepoint)) return 0;
        if (codepoint > 0x10ffff || (codepoint >= 0xd800 && codepoint <= 0xdfff)) return 0;
        nib_buffer_codepoint(out, codepoint);
        return 2 + (size_t)digits;
    }
    if (c == 'N') return 0;
    nib_buffer_char(out, '\\');
    return 1;
}

static nib_status read_string(lexer *x)
{
    char quote = x->source[x->at];
    size_t end = x->at + 1;
    while (end < x->length && x->source[end] != quote) end += x->source[end] == '\\' ? 2 : 1;
    if (end >= x->length)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: string without its closing %c", x->name, x->line, quote);

    nib_buffer text = {0};
    nib_status status = NIB_OK;
    for (size_t at = x->at + 1; at < end;) {
        if (x->source[at] != '\\') {
            nib_buffer_char(&text, x->source[at++]);
            continue;
        }
        size_t bytes = read_escape(x, at, end, &text);
        if (bytes == 0) {
            status = NIB_FAIL(NIB_ERROR_DATA, "%s:%u: malformed escape \\%c in a string", x->name, x->line,
                              x->source[at + 1]);
            goto done;
        }
        at += bytes;
    }
    char *copy = text.failed ? NULL : nib_pool_copy(x->pool, text.length ? text.data : "", text.length);
    if (copy == NULL) {
        status = no_memory(x);
        goto done;
    }
    status = add(x, (nib_jinja_token){.kind = NIB_JINJA_TOKEN_STRING, .text = copy, .length = text.length});
    advance(x, end + 1);
done:
    nib_buffer_free(&text);
    return status;
}

/* Digits with single underscores between them, from `at`; the end of them. */
static size_t skip_digits(const lexer *x, size_t at)
{
    while (at < x->length &&
           (is_digit(x->source[at]) || (x->source[at] == '_' && at > 0 && is_digit(x->source[at - 1]) &&
                                        at + 1 < x->length && is_digit(x->source[at + 1]))))
        at++;
    return at;
}

/* End of the number at x->at, and whether it is a float: a fraction or exponent must have digits. */
static size_t end_of_number(const lexer *x, bool *is_float)
{
    size_t end = skip_digits(x, x->at);
    *is_float = false;
    if (x->at > 0 && x->source[x->at - 1] == '.') return end;
    if (end + 1 < x->length && x->source[end] == '.' && is_digit(x->source[end + 1])) {
        end = skip_digits(x, end + 1);
        *is_float = true;
    }
    if (end < x->length && (x->source[end] | 32) == 'e') {
        size_t digits = end + 1;
        if (digits < x->length && (x->source[digits] == '+' || x->source[digits] == '-')) digits++;
        if (digits < x->length && is_digit(x->source[digits])) {
            end = skip_digits(x, digits);
            *is_float = true;
        }
    }
    return end;
}

static nib_status read_number(lexer *x)
{
    bool is_float;
    size_t start = x->at, end = end_of_number(x, &is_float);
    int base = 10;
    char prefix = start + 1 < x->length && x->source[start] == '0' ? (char)(x->source[start + 1] | 32) : 0;
    if (!is_float && (prefix == 'x' || prefix == 'o' || prefix == 'b')) {
        base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : 2;
        start += 2;
        end = start;
        uint32_t digit;
        while (end < x->length && (x->source[end] == '_' || read_digits(x, end, x->length, 1, (unsigned)base, &digit)))
            end++;
    }
    char text[64];
    size_t length = 0;
    for (size_t i = start; i < end; i++) {
        if (x->source[i] == '_') continue;
        if (length + 1 == sizeof text) return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: number too long", x->name, x->line);
        text[length++] = x->source[i];
    }
    text[length] = 0;
    nib_jinja_token token = {.kind = is_float ? NIB_JINJA_TOKEN_FLOAT : NIB_JINJA_TOKEN_INTEGER};
    if (is_float) {
        token.number = strtod(text, NULL);
    } else {
        errno = 0;
        token.integer = strtoll(text, NULL, base);
        if (errno != 0 || length == 0 || (base == 10 && length > 1 && text[0] == '0' && token.integer != 0))
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: '%s' is no integer of 64 bits", x->name, x->line, text);
    }
    NIB_TRY(add(x, token));
    advance(x, end);
    return NIB_OK;
}

static nib_status read_operator(lexer *x)
{
    static const char *const operators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                            "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        const char *text = operators[i];
        if (!looking_at(x, x->at, text)) continue;
        const char *opening = strchr("([{", *text), *closing = strchr(")]}", *text);
        if (opening != NULL) {
            if (x->open == MAX_BRACKETS)
                return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: more than %d open brackets", x->name, x->line, MAX_BRACKETS);
            x->closing[x->open++] = *text == '(' ? ')' : *text == '[' ? ']' : '}';
        } else if (closing != NULL) {
            if (x->open == 0) return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: unexpected '%c'", x->name, x->line, *text);
            if (x->closing[--x->open] != *text)
                return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: unexpected '%c', expected '%c'", x->name, x->line, *text,
                                x->closing[x->open]);
        }
        NIB_TRY(add(x, (nib_jinja_token){.kind = NIB_JINJA_TOKEN_OPERATOR, .text = text, .length = strlen(text)}));
        advance(x, x->at + strlen(text));
        return NIB_OK;
    }
    return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: unexpected char '%c'", x->name, x->line, x->source[x->at]);
}

/* The inside of {{ }} or {% %}, up to and with its end. */
static nib_status read_tag(lexer *x, bool is_output)
{
    x->open = 0;
    while (x->at < x->length) {
        advance(x, x->at + nib_jinja_leading_space(x->source + x->at, x->length - x->at));
        if (x->at == x->length) break;
        size_t end = x->open > 0 ? 0 : end_of_tag(x, x->at, is_output ? "}}" : "%}", !is_output);
        if (end > 0) {
            NIB_TRY(
                add(x, (nib_jinja_token){.kind = is_output ? NIB_JINJA_TOKEN_OUTPUT_END : NIB_JINJA_TOKEN_BLOCK_END}));
            advance(x, x->at + end);
            return NIB_OK;
        }
        char c = x->source[x->at];
        if (is_name_start(c)) {
            size_t stop = x->at;
            while (stop < x->length && (is_name_start(x->source[stop]) || is_digit(x->source[stop]))) stop++;
            NIB_TRY(add(
                x, (nib_jinja_token){.kind = NIB_JINJA_TOKEN_NAME, .text = x->source + x->at, .length = stop - x->at}));
            advance(x, stop);
        } else if (is_digit(c)) {
            NIB_TRY(read_number(x));
        } else if (c == '\'' || c == '"') {
            NIB_TRY(read_string(x));
        } else {
            NIB_TRY(read_operator(x));
        }
    }
    return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: unexpected end of the template inside a tag", x->name, x->line);
}

static nib_status read_template(lexer *x)
{
    while (x->at < x->length) {
        size_t tag = find_tag(x, x->at);
        if (tag == x->length) {
            NIB_TRY(add_text(x, tag - x->at));
            advance(x, tag);
            break;
        }
        char kind = x->source[tag + 1];
        NIB_TRY(add_text(x, kept_text(x, tag, kind == '{')));
        advance(x, tag);
        size_t raw = word_tag(x, tag, "raw", false);
        if (raw > 0) {
            NIB_TRY(read_raw(x, raw));
        } else if (kind == '#') {
            NIB_TRY(read_comment(x));
        } else {
            NIB_TRY(add(x, (nib_jinja_token){.kind = kind == '{' ? NIB_JINJA_TOKEN_OUTPUT_BEGIN
                                                                 : NIB_JINJA_TOKEN_BLOCK_BEGIN}));
            bool sign = tag + 2 < x->length && (x->source[tag + 2] == '-' || x->source[tag + 2] == '+');
            /* In "{{-}}" the sign belongs to the end, which then closes an empty tag: an error either way. */
            advance(x, tag + 2 + sign);
            NIB_TRY(read_tag(x, kind == '{'));
        }
    }
    return add(x, (nib_jinja_token){.kind = NIB_JINJA_TOKEN_END});
}

/* A copy with \r\n and \r as \n, and without one newline at the end, as Jinja reads a template. */
static char *normalize_newlines(nib_pool *pool, const char *source, size_t *length)
{
    char *copy = nib_pool_copy(pool, source, *length);
    if (copy == NULL) return NULL;
    size_t count = 0;
    for (size_t i = 0; i < *length; i++) {
        if (source[i] == '\r' && i + 1 < *length && source[i + 1] == '\n') continue;
        copy[count++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (count > 0 && copy[count - 1] == '\n') count--;
    copy[count] = 0;
    *length = count;
    return copy;
}

nib_status nib_jinja_tokenize(const char *name, const char *source, size_t length, nib_pool *pool,
                              nib_jinja_tokens *tokens)
{
    size_t invalid = nib_utf8_invalid_at(source, length);
    if (invalid != length)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %zu of the template is no UTF-8%s", name, invalid,
                        nib_utf8_advice(source, length));
    lexer x = {.name = name, .pool = pool, .length = length, .line = 1, .line_starting = true};
    x.source = normalize_newlines(pool, source, &x.length);
    if (x.source == NULL) return no_memory(&x);
    NIB_TRY(read_template(&x));
    *tokens = (nib_jinja_tokens){x.tokens, x.count};
    return NIB_OK;
}
