/* Text under construction, and Python's str() and repr() of every kind of value. */
#include "tokenizer/jinja_render.h"

#include "base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static bool reserve(nib_jinja_text *text, size_t more)
{
    if (text->status != NIB_OK) return false;
    if (more > NIB_JINJA_MAX_OUTPUT - text->length) {
        text->status = nib_jinja_fail(text->render, "a text of more than %d MiB", NIB_JINJA_MAX_OUTPUT >> 20);
        return false;
    }
    size_t needed = text->length + more;
    if (needed <= text->capacity) return true;
    size_t capacity = text->capacity ? text->capacity : 64;
    while (capacity < needed) capacity *= 2;
    char *data = nib_jinja_alloc(text->render, capacity, 1);
    if (data == NULL) {
        text->status = nib_jinja_no_memory(text->render);
        return false;
    }
    if (text->length > 0) memcpy(data, text->data, text->length);
    text->data = data;
    text->capacity = capacity;
    return true;
}

void nib_jinja_text_append(nib_jinja_text *text, const char *bytes, size_t length)
{
    if (length == 0 || !reserve(text, length)) return;
    memcpy(text->data + text->length, bytes, length);
    text->length += length;
    nib_status status = nib_jinja_charge(text->render, length / 64);
    if (status != NIB_OK) text->status = status;
}

void nib_jinja_text_literal(nib_jinja_text *text, const char *literal)
{
    nib_jinja_text_append(text, literal, strlen(literal));
}

void nib_jinja_text_codepoint(nib_jinja_text *text, uint32_t codepoint)
{
    utf8proc_uint8_t bytes[4];
    nib_jinja_text_append(text, (const char *)bytes, (size_t)utf8proc_encode_char((utf8proc_int32_t)codepoint, bytes));
}

nib_status nib_jinja_text_finish(nib_jinja_text *text, nib_jinja_value *string)
{
    *string = nib_jinja_string(text->data != NULL ? text->data : "", text->length);
    return text->status;
}

nib_status nib_jinja_to_string(nib_jinja_render *render, nib_jinja_value value, nib_jinja_value *string)
{
    if (value.kind == NIB_JINJA_STRING) {
        *string = value;
        return NIB_OK;
    }
    nib_jinja_text text = {.render = render};
    nib_jinja_text_str(&text, value);
    return nib_jinja_text_finish(&text, string);
}

/* The shortest digits that read back as x, laid out as Python does: with an exponent below 1e-4 and from 1e16. */
void nib_jinja_format_float(double x, char text[32])
{
    if (isnan(x) || isinf(x)) {
        strcpy(text, isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
        return;
    }
    char digits[40];
    int precision = 0;
    do snprintf(digits, sizeof digits, "%.*e", precision, x);
    while (strtod(digits, NULL) != x && ++precision < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - exponent;
        snprintf(text, 32, "%.*f", decimals > 1 ? decimals : 1, x);
        return;
    }
    *strchr(digits, 'e') = 0;
    snprintf(text, 32, "%.24se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent) % 1000);
}

static bool is_printable(uint32_t codepoint)
{
    if (codepoint < 0x80) return codepoint >= 0x20 && codepoint != 0x7f;
    switch (utf8proc_category((utf8proc_int32_t)codepoint)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static void repr_codepoint(nib_jinja_text *text, uint32_t codepoint, char quote)
{
    char escape[12];
    if (codepoint == '\\' || codepoint == (uint32_t)quote)
        snprintf(escape, sizeof escape, "\\%c", (char)codepoint);
    else if (codepoint == '\n' || codepoint == '\r' || codepoint == '\t')
        snprintf(escape, sizeof escape, "\\%c", codepoint == '\n' ? 'n' : codepoint == '\r' ? 'r' : 't');
    else if (is_printable(codepoint)) {
        nib_jinja_text_codepoint(text, codepoint);
        return;
    } else
        snprintf(escape, sizeof escape,
                 codepoint < 0x100     ? "\\x%02" PRIx32
                 : codepoint < 0x10000 ? "\\u%04" PRIx32
                                       : "\\U%08" PRIx32,
                 codepoint);
    nib_jinja_text_literal(text, escape);
}

static void repr_string(nib_jinja_text *text, nib_jinja_value value)
{
    const char *bytes = value.string.bytes;
    size_t length = value.string.length;
    bool single = length > 0 && memchr(bytes, '\'', length) != NULL;
    bool doubled = length > 0 && memchr(bytes, '"', length) != NULL;
    char quote = single && !doubled ? '"' : '\'';
    nib_jinja_text_append(text, &quote, 1);
    for (size_t at = 0; at < length;) {
        uint32_t codepoint;
        at += nib_utf8_decode(bytes + at, length - at, &codepoint);
        repr_codepoint(text, codepoint, quote);
    }
    nib_jinja_text_append(text, &quote, 1);
}

static void repr_items(nib_jinja_text *text, const char *open, const nib_jinja_sequence *items, const char *close)
{
    nib_jinja_text_literal(text, open);
    for (size_t i = 0; i < items->count; i++) {
        if (i > 0) nib_jinja_text_literal(text, ", ");
        nib_jinja_text_repr(text, items->items[i]);
    }
    nib_jinja_text_literal(text, close);
}

static void repr_dict(nib_jinja_text *text, const char *open, const nib_jinja_dict *dict, const char *close)
{
    nib_jinja_text_literal(text, open);
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0) nib_jinja_text_literal(text, ", ");
        nib_jinja_text_repr(text, dict->keys[i]);
        nib_jinja_text_literal(text, ": ");
        nib_jinja_text_repr(text, dict->values[i]);
    }
    nib_jinja_text_literal(text, close);
}

static void repr_scalar(nib_jinja_text *text, nib_jinja_value value)
{
    char digits[80] = "";
    switch (value.kind) {
    case NIB_JINJA_UNDEFINED:
        break;
    case NIB_JINJA_NONE:
        strcpy(digits, "None");
        break;
    case NIB_JINJA_BOOL:
        strcpy(digits, value.boolean ? "True" : "False");
        break;
    case NIB_JINJA_INTEGER:
        snprintf(digits, sizeof digits, "%" PRId64, value.integer);
        break;
    case NIB_JINJA_FLOAT:
        nib_jinja_format_float(value.number, digits);
        break;
    case NIB_JINJA_RANGE: {
        const int64_t *b = value.sequence->bounds;
        if (b[2] == 1)
            snprintf(digits, sizeof digits, "range(%" PRId64 ", %" PRId64 ")", b[0], b[1]);
        else
            snprintf(digits, sizeof digits, "range(%" PRId64 ", %" PRId64 ", %" PRId64 ")", b[0], b[1], b[2]);
        break;
    }
    default:
        snprintf(digits, sizeof digits, "<%s>", nib_jinja_type_name(value));
        break;
    }
    nib_jinja_text_literal(text, digits);
}

void nib_jinja_text_repr(nib_jinja_text *text, nib_jinja_value value)
{
    if (text->status != NIB_OK) return;
    if (value.kind == NIB_JINJA_UNDEFINED) nib_jinja_text_literal(text, "Undefined");
    text->status = nib_jinja_enter(text->render);
    if (text->status != NIB_OK) return;
    switch (value.kind) {
    case NIB_JINJA_STRING:
        repr_string(text, value);
        break;
    case NIB_JINJA_LIST:
        repr_items(text, "[", value.sequence, "]");
        break;
    case NIB_JINJA_TUPLE:
        repr_items(text, "(", value.sequence, value.sequence->count == 1 ? ",)" : ")");
        break;
    case NIB_JINJA_VIEW:
        repr_items(text, "dict_view([", value.sequence, "])");
        break;
    case NIB_JINJA_DICT:
        repr_dict(text, "{", value.dict, "}");
        break;
    case NIB_JINJA_NAMESPACE:
        repr_dict(text, "<Namespace {", value.dict, "}>");
        break;
    default:
        repr_scalar(text, value);
        break;
    }
    nib_jinja_leave(text->render);
}

void nib_jinja_text_str(nib_jinja_text *text, nib_jinja_value value)
{
    if (value.kind == NIB_JINJA_STRING)
        nib_jinja_text_append(text, value.string.bytes, value.string.length);
    else if (value.kind != NIB_JINJA_UNDEFINED)
        nib_jinja_text_repr(text, value);
}
