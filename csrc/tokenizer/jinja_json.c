/* JSON as Python's json.dumps writes it. */
#include "tokenizer/jinja_render.h"

#include "base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    nib_jinja_render *render;
    nib_jinja_text *text;
    const nib_jinja_json_format *format;
    size_t level;
} writer;

static nib_status write_value(writer *w, nib_jinja_value value);

static void write_codepoint(writer *w, uint32_t c)
{
    static const char short_escapes[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    char escape[16];
    for (size_t i = 0; i + 1 < sizeof short_escapes; i += 2) {
        if (c != (unsigned char)short_escapes[i]) continue;
        snprintf(escape, sizeof escape, "\\%c", short_escapes[i + 1]);
        nib_jinja_text_literal(w->text, escape);
        return;
    }
    if (c >= 0x20 && (c < 0x7f || !w->format->ascii_only || c == 0x7f)) {
        nib_jinja_text_codepoint(w->text, c);
        return;
    }
    if (c < 0x10000)
        snprintf(escape, sizeof escape, "\\u%04" PRIx32, c);
    else
        snprintf(escape, sizeof escape, "\\u%04" PRIx32 "\\u%04" PRIx32, 0xd800 + ((c - 0x10000) >> 10),
                 0xdc00 + ((c - 0x10000) & 0x3ff));
    nib_jinja_text_literal(w->text, escape);
}

static void write_string(writer *w, nib_jinja_value value)
{
    nib_jinja_text_literal(w->text, "\"");
    for (size_t at = 0; at < value.string.length;) {
        uint32_t codepoint;
        at += nib_utf8_decode(value.string.bytes + at, value.string.length - at, &codepoint);
        write_codepoint(w, codepoint);
    }
    nib_jinja_text_literal(w->text, "\"");
}

/* null, true, a number: false if value is none of them. */
static bool write_scalar(writer *w, nib_jinja_value value)
{
    char digits[32];
    switch (value.kind) {
    case NIB_JINJA_NONE:
        nib_jinja_text_literal(w->text, "null");
        return true;
    case NIB_JINJA_BOOL:
        nib_jinja_text_literal(w->text, value.boolean ? "true" : "false");
        return true;
    case NIB_JINJA_INTEGER:
        nib_jinja_text_str(w->text, value);
        return true;
    case NIB_JINJA_FLOAT:
        nib_jinja_format_float(value.number, digits);
        nib_jinja_text_literal(w->text, isnan(value.number)    ? "NaN"
                                        : !isinf(value.number) ? digits
                                        : value.number > 0     ? "Infinity"
                                                               : "-Infinity");
        return true;
    default:
        return false;
    }
}

static void write_separator(writer *w, bool first)
{
    const nib_jinja_json_format *format = w->format;
    if (!first) {
        if (format->item_separator.kind == NIB_JINJA_STRING)
            nib_jinja_text_str(w->text, format->item_separator);
        else
            nib_jinja_text_literal(w->text, format->indent != NULL ? "," : ", ");
    }
    if (format->indent == NULL) return;
    nib_jinja_text_literal(w->text, "\n");
    for (size_t i = 0; i < w->level && w->text->status == NIB_OK; i++)
        nib_jinja_text_append(w->text, format->indent, format->indent_length);
}

static void write_end(writer *w, bool empty, const char *bracket)
{
    w->level--;
    if (!empty && w->format->indent != NULL) write_separator(w, true);
    nib_jinja_text_literal(w->text, bracket);
}

static nib_status write_list(writer *w, const nib_jinja_sequence *list)
{
    nib_jinja_text_literal(w->text, "[");
    w->level++;
    for (size_t i = 0; i < list->count; i++) {
        write_separator(w, i == 0);
        NIB_TRY(write_value(w, list->items[i]));
    }
    write_end(w, list->count == 0, "]");
    return NIB_OK;
}

static nib_status write_key(writer *w, nib_jinja_value key)
{
    if (key.kind == NIB_JINJA_STRING) {
        write_string(w, key);
    } else {
        nib_jinja_text_literal(w->text, "\"");
        if (!write_scalar(w, key))
            return nib_jinja_fail(w->render, "keys must be str, int, float, bool or None, not %s",
                                  nib_jinja_type_name(key));
        nib_jinja_text_literal(w->text, "\"");
    }
    if (w->format->key_separator.kind == NIB_JINJA_STRING)
        nib_jinja_text_str(w->text, w->format->key_separator);
    else
        nib_jinja_text_literal(w->text, ": ");
    return NIB_OK;
}

static nib_status write_dict(writer *w, const nib_jinja_dict *dict)
{
    nib_jinja_value *keys = dict->keys, *values = dict->values;
    if (w->format->sort_keys && dict->count > 1) {
        keys = nib_jinja_alloc(w->render, dict->count, 2 * sizeof *keys);
        if (keys == NULL) return nib_jinja_no_memory(w->render);
        values = keys + dict->count;
        memcpy(keys, dict->keys, dict->count * sizeof *keys);
        memcpy(values, dict->values, dict->count * sizeof *values);
        NIB_TRY(nib_jinja_sort(w->render, keys, values, dict->count, false));
    }
    nib_jinja_text_literal(w->text, "{");
    w->level++;
    for (size_t i = 0; i < dict->count; i++) {
        write_separator(w, i == 0);
        NIB_TRY(write_key(w, keys[i]));
        NIB_TRY(write_value(w, values[i]));
    }
    write_end(w, dict->count == 0, "}");
    return NIB_OK;
}

static nib_status write_value(writer *w, nib_jinja_value value)
{
    NIB_TRY(nib_jinja_charge(w->render, 1));
    NIB_TRY(nib_jinja_enter(w->render));
    if (value.kind == NIB_JINJA_STRING)
        write_string(w, value);
    else if (value.kind == NIB_JINJA_LIST || value.kind == NIB_JINJA_TUPLE)
        NIB_TRY(write_list(w, value.sequence));
    else if (value.kind == NIB_JINJA_DICT)
        NIB_TRY(write_dict(w, value.dict));
    else if (!write_scalar(w, value))
        return nib_jinja_fail(w->render, "Object of type %s is not JSON serializable", nib_jinja_type_name(value));
    nib_jinja_leave(w->render);
    return w->text->status;
}

nib_status nib_jinja_write_json(nib_jinja_render *render, nib_jinja_value value, const nib_jinja_json_format *format,
                                nib_jinja_value *string)
{
    nib_jinja_text text = {.render = render};
    writer w = {.render = render, .text = &text, .format = format};
    NIB_TRY(write_value(&w, value));
    return nib_jinja_text_finish(&text, string);
}
