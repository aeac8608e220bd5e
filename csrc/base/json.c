#include "base/json.h"
#include "base/buffer.h"
#include "base/utf8.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MAX_DEPTH 128
#define LINEAR_KEYS       8 /* objects up to this size are checked for duplicates pairwise */

typedef struct {
    const char *name, *start, *at, *end;
    uint32_t line;
    nib_json_options options;
    nib_pool *pool;
    nib_buffer scratch;
} parser;

static nib_status fail(const parser *p, const char *what)
{
    const char *line_start = p->at;
    while (line_start > p->start && line_start[-1] != '\n') line_start--;
    return NIB_FAIL(NIB_ERROR_DATA, "%s:%u:%ld: not valid JSON: %s", p->name, p->line, (long)(p->at - line_start) + 1,
                    what);
}

static nib_status no_memory(const parser *p)
{
    if (p->pool->limited)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: the JSON needs more than %zu MiB of memory, the limit for such a text",
                        p->name, p->line, p->pool->limit >> 20);
    return NIB_FAIL(NIB_ERROR_MEMORY, "%s:%u: no memory to read the JSON", p->name, p->line);
}

static void skip_space(parser *p)
{
    for (; p->at < p->end; p->at++) {
        char c = *p->at;
        if (c == '\n') {
            p->line++;
        } else if (p->options.comments && c == '/' && p->at + 1 < p->end && p->at[1] == '/') {
            while (p->at + 1 < p->end && p->at[1] != '\n') p->at++;
        } else if (c != ' ' && c != '\t' && c != '\r') {
            return;
        }
    }
}

static bool hex4(parser *p, unsigned *value)
{
    if (p->end - p->at < 4) return false;
    *value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p->at[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return false;
        *value = *value << 4 | (unsigned)digit;
    }
    p->at += 4;
    return true;
}

/* After "\u": appends the code point to scratch. */
static nib_status unicode_escape(parser *p)
{
    unsigned high, low;
    if (!hex4(p, &high)) return fail(p, "\\u needs four hexadecimal digits");
    if (high == 0 && !p->options.allow_nul) return fail(p, "\\u0000 inside a string");
    if (high >= 0xdc00 && high <= 0xdfff) return fail(p, "lone low surrogate");
    if (high >= 0xd800 && high <= 0xdbff) {
        if (p->end - p->at < 2 || p->at[0] != '\\' || p->at[1] != 'u') return fail(p, "lone high surrogate");
        p->at += 2;
        if (!hex4(p, &low) || low < 0xdc00 || low > 0xdfff) return fail(p, "lone high surrogate");
        high = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    }
    nib_buffer_codepoint(&p->scratch, high);
    return NIB_OK;
}

/* At the opening quote. The text has been checked to be UTF-8 as a whole. */
static nib_status parse_string(parser *p, const char **string, size_t *length)
{
    const char *run = ++p->at;
    bool escaped = false;
    nib_buffer_clear(&p->scratch);
    for (;; p->at++) {
        if (p->at == p->end) return fail(p, "the string does not end");
        unsigned char c = (unsigned char)*p->at;
        if (c == '"') break;
        if (c < 0x20) return fail(p, "control character inside a string; write it as an escape");
        if (c != '\\') continue;
        escaped = true;
        nib_buffer_append(&p->scratch, run, (size_t)(p->at - run));
        if (++p->at == p->end) return fail(p, "the string does not end");
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        const char *simple = *p->at == 0 ? NULL : strchr(from, *p->at);
        if (simple != NULL) {
            nib_buffer_char(&p->scratch, to[simple - from]);
        } else if (*p->at == 'u') {
            p->at++;
            NIB_TRY(unicode_escape(p));
            p->at--;
        } else {
            return fail(p, "unknown escape");
        }
        run = p->at + 1;
    }
    if (escaped) {
        nib_buffer_append(&p->scratch, run, (size_t)(p->at - run));
        if (p->scratch.failed) return no_memory(p);
        *length = p->scratch.length;
        *string = nib_pool_copy(p->pool, p->scratch.data, p->scratch.length);
    } else {
        *length = (size_t)(p->at - run);
        *string = nib_pool_copy(p->pool, run, *length);
    }
    p->at++;
    return *string == NULL ? no_memory(p) : NIB_OK;
}

static bool digits(parser *p)
{
    const char *start = p->at;
    while (p->at < p->end && *p->at >= '0' && *p->at <= '9') p->at++;
    return p->at > start;
}

static nib_status parse_number(parser *p, nib_json *value)
{
    const char *start = p->at;
    value->kind = NIB_JSON_NUMBER;
    value->is_integer = true;
    if (*p->at == '-') p->at++;
    const char *first = p->at;
    if (!digits(p)) return fail(p, "a value was expected");
    if (*first == '0' && p->at - first > 1) return fail(p, "a number with a leading zero");
    if (p->at < p->end && *p->at == '.') {
        p->at++;
        value->is_integer = false;
        if (!digits(p)) return fail(p, "digits expected after the decimal point");
    }
    if (p->at < p->end && (*p->at == 'e' || *p->at == 'E')) {
        p->at++;
        value->is_integer = false;
        if (p->at < p->end && (*p->at == '+' || *p->at == '-')) p->at++;
        if (!digits(p)) return fail(p, "digits expected in the exponent");
    }
    char text[512];
    size_t length = (size_t)(p->at - start);
    if (length >= sizeof text) return fail(p, "a number of more than 500 digits");
    memcpy(text, start, length);
    text[length] = 0;
    if (value->is_integer) {
        errno = 0;
        value->integer = strtoll(text, NULL, 10);
        value->is_integer = errno == 0;
    }
    value->number = strtod(text, NULL);
    if (!isfinite(value->number)) return fail(p, "a number beyond the range of a double");
    return NIB_OK;
}

static int compare_keys(const void *left, const void *right)
{
    const nib_json *a = *(nib_json *const *)left, *b = *(nib_json *const *)right;
    size_t shorter = a->key_length < b->key_length ? a->key_length : b->key_length;
    int order = memcmp(a->key, b->key, shorter);
    return order != 0 ? order : (a->key_length > b->key_length) - (a->key_length < b->key_length);
}

static nib_status check_duplicates(const parser *p, const nib_json *object)
{
    nib_json *small[LINEAR_KEYS], **members = small;
    if (object->length > LINEAR_KEYS) members = nib_calloc(object->length, sizeof *members);
    if (members == NULL) return no_memory(p);
    size_t n = 0;
    for (nib_json *child = object->first; child != NULL; child = child->next) members[n++] = child;
    qsort(members, n, sizeof *members, compare_keys);
    nib_status status = NIB_OK;
    for (size_t i = 1; i < n && status == NIB_OK; i++)
        if (compare_keys(&members[i - 1], &members[i]) == 0)
            status = NIB_FAIL(NIB_ERROR_DATA, "%s:%u: duplicate key \"%.200s\"; keep one of them", p->name,
                              members[i]->key_line > members[i - 1]->key_line ? members[i]->key_line
                                                                              : members[i - 1]->key_line,
                              members[i]->key);
    if (members != small) nib_free(members);
    return status;
}

static nib_status parse_value(parser *p, int depth, nib_json *value);

/* At '[' or '{'. */
static nib_status parse_container(parser *p, int depth, nib_json *value)
{
    bool object = *p->at == '{';
    char close = object ? '}' : ']';
    int max_depth = p->options.max_depth > 0 ? p->options.max_depth : DEFAULT_MAX_DEPTH;
    if (depth >= max_depth) return fail(p, "nested too deeply");
    value->kind = object ? NIB_JSON_OBJECT : NIB_JSON_ARRAY;
    p->at++;
    skip_space(p);
    if (p->at < p->end && *p->at == close) {
        p->at++;
        return NIB_OK;
    }
    for (nib_json **link = &value->first;; link = &(*link)->next) {
        nib_json *child = nib_pool_alloc(p->pool, sizeof *child);
        if (child == NULL) return no_memory(p);
        skip_space(p);
        if (object) {
            if (p->at == p->end || *p->at != '"') return fail(p, "a key in double quotes was expected");
            child->key_line = p->line;
            NIB_TRY(parse_string(p, &child->key, &child->key_length));
            skip_space(p);
            if (p->at == p->end || *p->at != ':') return fail(p, "':' was expected after the key");
            p->at++;
        }
        NIB_TRY(parse_value(p, depth + 1, child));
        *link = child;
        value->length++;
        skip_space(p);
        if (p->at < p->end && *p->at == close) break;
        if (p->at == p->end || *p->at != ',')
            return fail(p, object ? "',' or '}' was expected" : "',' or ']' was expected");
        p->at++;
    }
    p->at++;
    return object ? check_duplicates(p, value) : NIB_OK;
}

static nib_status parse_value(parser *p, int depth, nib_json *value)
{
    static const struct {
        const char *text;
        nib_json_kind kind;
    } words[] = {{"null", NIB_JSON_NULL}, {"true", NIB_JSON_TRUE}, {"false", NIB_JSON_FALSE}};
    skip_space(p);
    value->line = p->line;
    if (p->at == p->end) return fail(p, "the text ends where a value was expected");
    if (*p->at == '{' || *p->at == '[') return parse_container(p, depth, value);
    if (*p->at == '"') {
        value->kind = NIB_JSON_STRING;
        return parse_string(p, &value->string, &value->length);
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i].text);
        if ((size_t)(p->end - p->at) < n || memcmp(p->at, words[i].text, n) != 0) continue;
        value->kind = words[i].kind;
        p->at += n;
        return NIB_OK;
    }
    return parse_number(p, value);
}

nib_status nib_json_parse(const char *name, const char *text, size_t length, nib_json_options options, nib_pool *pool,
                          nib_json **root)
{
    if (length == 0) text = ""; /* an empty mapped file has no address */
    parser p = {
        .name = name, .start = text, .at = text, .end = text + length, .line = 1, .options = options, .pool = pool};
    size_t invalid = nib_utf8_invalid_at(text, length);
    *root = NULL;
    if (invalid < length) {
        for (size_t i = 0; i < invalid; i++) p.line += text[i] == '\n';
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: invalid UTF-8 at byte %zu (0x%02x)%s", name, p.line, invalid,
                        (unsigned char)text[invalid], nib_utf8_advice(text, length));
    }
    /* A byte order mark, which some editors write, says nothing in UTF-8; RFC 8259 lets a parser pass over it. */
    if (length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) p.at += 3;
    nib_json *value = nib_pool_alloc(pool, sizeof *value);
    if (value == NULL) return no_memory(&p);
    nib_status status = parse_value(&p, 0, value);
    if (status == NIB_OK) {
        skip_space(&p);
        if (p.at < p.end) status = fail(&p, "text after the end of the value");
    }
    nib_buffer_free(&p.scratch);
    if (status == NIB_OK) *root = value;
    return status;
}

const nib_json *nib_json_get(const nib_json *object, const char *key)
{
    if (!nib_json_is(object, NIB_JSON_OBJECT)) return NULL;
    size_t length = strlen(key);
    for (const nib_json *child = object->first; child != NULL; child = child->next)
        if (child->key_length == length && memcmp(child->key, key, length) == 0) return child;
    return NULL;
}

bool nib_json_is(const nib_json *value, nib_json_kind kind) { return value != NULL && value->kind == kind; }

const char *nib_json_kind_name(nib_json_kind kind)
{
    static const char *const names[] = {"null", "false", "true", "a number", "a string", "an array", "an object"};
    return names[kind];
}

static nib_status wrong_type(const char *name, const nib_json *member, const char *expected)
{
    return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"%s\" is %s, expected %s", name, member->key_line, member->key,
                    nib_json_kind_name(member->kind), expected);
}

/* The member, or NULL if it is absent or null. */
static const nib_json *present(const nib_json *object, const char *key)
{
    const nib_json *member = nib_json_get(object, key);
    return nib_json_is(member, NIB_JSON_NULL) ? NULL : member;
}

nib_status nib_json_read_int(const char *name, const nib_json *object, const char *key, int64_t low, int64_t high,
                             int64_t fallback, int64_t *out)
{
    const nib_json *member = present(object, key);
    *out = fallback;
    if (member == NULL) return NIB_OK;
    if (member->kind != NIB_JSON_NUMBER) return wrong_type(name, member, "an integer");
    if (!member->is_integer || member->integer < low || member->integer > high)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"%s\" is %.17g, expected an integer from %lld to %lld", name,
                        member->key_line, key, member->number, (long long)low, (long long)high);
    *out = member->integer;
    return NIB_OK;
}

nib_status nib_json_read_double(const char *name, const nib_json *object, const char *key, double fallback, double *out)
{
    const nib_json *member = present(object, key);
    *out = fallback;
    if (member == NULL) return NIB_OK;
    if (member->kind != NIB_JSON_NUMBER) return wrong_type(name, member, "a number");
    *out = member->number;
    return NIB_OK;
}

nib_status nib_json_read_bool(const char *name, const nib_json *object, const char *key, bool fallback, bool *out)
{
    const nib_json *member = present(object, key);
    *out = fallback;
    if (member == NULL) return NIB_OK;
    if (member->kind != NIB_JSON_TRUE && member->kind != NIB_JSON_FALSE)
        return wrong_type(name, member, "true or false");
    *out = member->kind == NIB_JSON_TRUE;
    return NIB_OK;
}

nib_status nib_json_read_string(const char *name, const nib_json *object, const char *key, const char *fallback,
                                const char **out)
{
    const nib_json *member = present(object, key);
    *out = fallback;
    if (member == NULL) return NIB_OK;
    if (member->kind != NIB_JSON_STRING) return wrong_type(name, member, "a string");
    *out = member->string;
    return NIB_OK;
}
