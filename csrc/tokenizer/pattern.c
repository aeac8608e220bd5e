#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pattern.h"

#include "base/buffer.h"
#include "base/memory.h"

#include <pcre2.h>
#include <string.h>

/* White_Space of Unicode, for use inside a class. */
#define SPACES     "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define MAX_SOURCE 8192
/* A tokenizer's pattern needs a few steps a character; these stop one that backtracks without end. */
#define MATCH_LIMIT     10000000
#define JIT_STACK_FIRST (32 * 1024)
#define JIT_STACK_LIMIT (4 * 1024 * 1024)

struct nib_pattern {
    pcre2_code *code;
    char *name;
};

struct nib_matcher {
    pcre2_match_context *context;
    pcre2_match_data *data;
    pcre2_jit_stack *stack;
};

static nib_status refuse(const char *name, const char *what)
{
    return NIB_FAIL(NIB_ERROR_DATA, "%s: the pattern has %s, which is not supported", name, what);
}

/* The source in PCRE2's terms. */
static nib_status translate(const char *name, const char *source, size_t length, nib_buffer *out)
{
    bool in_class = false;
    for (size_t i = 0; i < length; i++) {
        char c = source[i];
        if (c == '\\' && i + 1 < length) {
            char escaped = source[++i];
            if (escaped == 'h' || escaped == 'H') return refuse(name, "\\h (a hexadecimal digit)");
            if (escaped == 'S' && in_class) return refuse(name, "\\S inside a class");
            if (escaped == 's') {
                nib_buffer_text(out, in_class ? SPACES : "[" SPACES "]");
            } else if (escaped == 'S') {
                nib_buffer_text(out, "[^" SPACES "]");
            } else {
                nib_buffer_char(out, c);
                nib_buffer_char(out, escaped);
            }
            continue;
        }
        if (in_class && (c == '[' || (c == '&' && i + 1 < length && source[i + 1] == '&')))
            return refuse(name, "a class inside a class");
        if (c == '[')
            in_class = true;
        else if (c == ']')
            in_class = false;
        nib_buffer_char(out, c);
    }
    return NIB_OK;
}

nib_status nib_pattern_compile(const char *name, const char *source, size_t length, bool literal, nib_pattern **result)
{
    nib_buffer text = {0};
    nib_status status = NIB_OK;
    int error;
    size_t at;
    nib_pattern *pattern = nib_calloc(1, sizeof *pattern);
    *result = NULL;
    if (pattern != NULL) pattern->name = strdup(name);
    if (pattern == NULL || pattern->name == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a pattern", name);
        goto done;
    }
    if (length == 0 || length > MAX_SOURCE) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: a pattern of %zu bytes, expected 1 to %d", name, length, MAX_SOURCE);
        goto done;
    }
    if (literal)
        nib_buffer_append(&text, source, length);
    else
        NIB_TRY_GOTO(translate(name, source, length, &text), done);
    if (text.failed) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a pattern", name);
        goto done;
    }
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
    pattern->code = pcre2_compile((PCRE2_SPTR)text.data, text.length, options, &error, &at, NULL);
    if (pattern->code == NULL) {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(error, message, sizeof message);
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: the pattern \"%.200s\" does not compile: %s", name, source,
                          (const char *)message);
        goto done;
    }
    pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE); /* without a JIT, pcre2_match interprets: same matches */
    *result = pattern;
    pattern = NULL;
done:
    nib_pattern_free(pattern);
    nib_buffer_free(&text);
    return status;
}

void nib_pattern_free(nib_pattern *pattern)
{
    if (pattern == NULL) return;
    pcre2_code_free(pattern->code);
    free(pattern->name);
    nib_free(pattern);
}

nib_matcher *nib_matcher_new(void)
{
    nib_matcher *matcher = nib_calloc(1, sizeof *matcher);
    if (matcher == NULL) return NULL;
    matcher->context = pcre2_match_context_create(NULL);
    matcher->data = pcre2_match_data_create(1, NULL);
    matcher->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_LIMIT, NULL);
    if (matcher->context == NULL || matcher->data == NULL) {
        nib_matcher_free(matcher);
        return NULL;
    }
    pcre2_set_match_limit(matcher->context, MATCH_LIMIT);
    if (matcher->stack != NULL) pcre2_jit_stack_assign(matcher->context, NULL, matcher->stack);
    return matcher;
}

void nib_matcher_free(nib_matcher *matcher)
{
    if (matcher == NULL) return;
    pcre2_match_context_free(matcher->context);
    pcre2_match_data_free(matcher->data);
    pcre2_jit_stack_free(matcher->stack);
    nib_free(matcher);
}

nib_status nib_pattern_find(const nib_pattern *pattern, nib_matcher *matcher, const char *text, size_t length,
                            size_t from, bool *found, size_t *start, size_t *end)
{
    /* One capture pair: 0 means that the groups did not fit, which is a match all the same. */
    int count =
        pcre2_match(pattern->code, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK, matcher->data, matcher->context);
    *found = count >= 0;
    if (*found) {
        const size_t *offsets = pcre2_get_ovector_pointer(matcher->data);
        *start = offsets[0];
        *end = offsets[1];
        return NIB_OK;
    }
    if (count == PCRE2_ERROR_NOMATCH) return NIB_OK;
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(count, message, sizeof message);
    return NIB_FAIL(NIB_ERROR_DATA, "%s: matching stopped at byte %zu of %zu: %s", pattern->name, from, length,
                    (const char *)message);
}
