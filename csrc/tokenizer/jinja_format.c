/* printf-style formatting, which is the % operator of strings, and str.format without format specifications. */
#include "tokenizer/jinja_render.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MAX_WIDTH = 1000 };

typedef struct {
    char flags[8];
    int width, precision; /* precision -1: not given */
    char conversion;
} directive;

/* Reads what follows a '%'; returns its bytes, 0 if it is malformed. */
static size_t read_directive(const char *text, size_t length, directive *d)
{
    size_t at = 0, flags = 0;
    memset(d, 0, sizeof *d);
    d->precision = -1;
    while (at < length && text[at] != 0 && strchr("-+ 0#", text[at]) != NULL) {
        if (flags + 1 < sizeof d->flags) d->flags[flags++] = text[at];
        at++;
    }
    for (; at < length && text[at] >= '0' && text[at] <= '9' && d->width <= MAX_WIDTH; at++)
        d->width = 10 * d->width + (text[at] - '0');
    if (at < length && text[at] == '.') {
        d->precision = 0;
        for (at++; at < length && text[at] >= '0' && text[at] <= '9' && d->precision <= MAX_WIDTH; at++)
            d->precision = 10 * d->precision + (text[at] - '0');
    }
    if (at == length || d->width > MAX_WIDTH || d->precision > MAX_WIDTH) return 0;
    d->conversion = text[at];
    return at + 1;
}

static nib_status format_text(nib_jinja_text *text, const directive *d, nib_jinja_value value)
{
    nib_jinja_text piece = {.render = text->render};
    nib_jinja_value string;
    size_t length;
    if (d->conversion == 'r')
        nib_jinja_text_repr(&piece, value);
    else
        nib_jinja_text_str(&piece, value);
    NIB_TRY(nib_jinja_text_finish(&piece, &string));
    if (d->precision >= 0) string.string.length = nib_jinja_codepoint_offset(string, (size_t)d->precision);
    nib_jinja_length(string, &length);
    bool left = strchr(d->flags, '-') != NULL;
    if (left) nib_jinja_text_str(text, string);
    for (size_t i = length; i < (size_t)d->width; i++) nib_jinja_text_literal(text, " ");
    if (!left) nib_jinja_text_str(text, string);
    return text->status;
}

static nib_status format_number(nib_jinja_text *text, const directive *d, nib_jinja_value value)
{
    char format[32], out[1500];
    bool is_float = strchr("eEfFgG", d->conversion) != NULL;
    if (!nib_jinja_is_number(value) || (value.kind == NIB_JINJA_FLOAT && strchr("oxX", d->conversion) != NULL))
        return nib_jinja_fail(text->render, "%%%c format: a number is required, not %s", d->conversion,
                              nib_jinja_type_name(value));
    int precision = d->precision >= 0 ? d->precision : is_float ? 6 : 1;
    if (is_float) {
        snprintf(format, sizeof format, "%%%s*.*%c", d->flags, d->conversion);
        snprintf(out, sizeof out, format, d->width, precision, nib_jinja_as_float(value));
    } else {
        double number = nib_jinja_as_float(value);
        if (!(number >= -9e18 && number <= 9e18))
            return nib_jinja_fail(text->render, "%%%c format: out of range", d->conversion);
        int64_t integer = value.kind == NIB_JINJA_INTEGER ? value.integer : (int64_t)number;
        const char *conversion = d->conversion == 'x'   ? PRIx64
                                 : d->conversion == 'X' ? PRIX64
                                 : d->conversion == 'o' ? PRIo64
                                                        : PRId64;
        snprintf(format, sizeof format, d->precision >= 0 ? "%%%s*.*%s" : "%%%s*%s", d->flags, conversion);
        if (d->precision >= 0)
            snprintf(out, sizeof out, format, d->width, precision, integer);
        else
            snprintf(out, sizeof out, format, d->width, integer);
    }
    nib_jinja_text_literal(text, out);
    return text->status;
}

nib_status nib_jinja_percent_format(nib_jinja_render *render, nib_jinja_value format, nib_jinja_value values,
                                    nib_jinja_value *string)
{
    nib_jinja_text text = {.render = render};
    const char *bytes = format.string.bytes;
    size_t used = 0, count = values.kind == NIB_JINJA_TUPLE ? values.sequence->count : 1;
    for (size_t i = 0; i < format.string.length; i++) {
        directive d;
        if (bytes[i] != '%') {
            nib_jinja_text_append(&text, bytes + i, 1);
            continue;
        }
        size_t length = read_directive(bytes + i + 1, format.string.length - i - 1, &d);
        if (length == 0) return nib_jinja_fail(render, "incomplete format");
        i += length;
        if (d.conversion == '%') {
            nib_jinja_text_literal(&text, "%");
            continue;
        }
        if (used == count) return nib_jinja_fail(render, "not enough arguments for format string");
        nib_jinja_value value = values.kind == NIB_JINJA_TUPLE ? values.sequence->items[used] : values;
        used++;
        if (d.conversion == 's' || d.conversion == 'r')
            NIB_TRY(format_text(&text, &d, value));
        else if (d.conversion != 0 && strchr("diuoxXeEfFgG", d.conversion) != NULL)
            NIB_TRY(format_number(&text, &d, value));
        else
            return nib_jinja_fail(render, "unsupported format character '%c'", d.conversion);
    }
    if (used < count && values.kind != NIB_JINJA_DICT)
        return nib_jinja_fail(render, "not all arguments converted during string formatting");
    return nib_jinja_text_finish(&text, string);
}

/* The argument that a field names: "" is the next one, digits are a position, the rest a keyword. */
static nib_status field_value(nib_jinja_render *render, const nib_jinja_arguments *arguments, nib_jinja_value field,
                              size_t *next, nib_jinja_value *value)
{
    size_t position = *next, length = field.string.length;
    bool is_position = length < 10;
    if (length == 0) ++*next;
    for (size_t i = 0; i < length && is_position; i++) {
        is_position = field.string.bytes[i] >= '0' && field.string.bytes[i] <= '9';
        position = (i > 0 ? 10 * position : 0) + (size_t)(field.string.bytes[i] - '0');
    }
    if (is_position && position < arguments->count) {
        *value = arguments->positional[position];
        return NIB_OK;
    }
    for (size_t i = 0; i < arguments->named_count && !is_position; i++) {
        bool equal;
        NIB_TRY(nib_jinja_equal(render, arguments->names[i], field, &equal));
        *value = arguments->named[i];
        if (equal) return NIB_OK;
    }
    return nib_jinja_fail(render,
                          "format(): there is no argument for the field '%.*s'; only {}, {0} and {name} are known",
                          (int)(length < 60 ? length : 60), field.string.bytes);
}

nib_status nib_jinja_brace_format(nib_jinja_render *render, nib_jinja_value format,
                                  const nib_jinja_arguments *arguments, nib_jinja_value *string)
{
    nib_jinja_text text = {.render = render};
    const char *bytes = format.string.bytes;
    size_t next = 0, length = format.string.length;
    for (size_t i = 0; i < length; i++) {
        bool is_brace = bytes[i] == '{' || bytes[i] == '}';
        bool doubled = is_brace && i + 1 < length && bytes[i + 1] == bytes[i];
        if (!is_brace || doubled) {
            nib_jinja_text_append(&text, bytes + i, 1);
            i += doubled;
            continue;
        }
        const char *end = bytes[i] == '{' ? memchr(bytes + i, '}', length - i) : NULL;
        nib_jinja_value value;
        if (end == NULL) return nib_jinja_fail(render, "format(): single '%c' in the format", bytes[i]);
        size_t field = (size_t)(end - (bytes + i)) - 1;
        NIB_TRY(field_value(render, arguments, nib_jinja_string(bytes + i + 1, field), &next, &value));
        nib_jinja_text_str(&text, value);
        i += field + 1;
    }
    return nib_jinja_text_finish(&text, string);
}
