/* Filters over text, and default and tojson. Each takes str(value) of what is piped in. */
#include "tokenizer/jinja_render.h"

#include "base/utf8.h"
#include "tokenizer/jinja_lexer.h"

#include <string.h>

/* Runs a string method on str(subject). */
static nib_status method(nib_jinja_render *render, const nib_jinja_call *call, const char *name,
                         nib_jinja_value *result)
{
    nib_jinja_value text;
    NIB_TRY(nib_jinja_to_string(render, call->subject, &text));
    return nib_jinja_run_builtin(render, nib_jinja_find_method(NIB_JINJA_STRING, name, strlen(name)), text,
                                 call->arguments, result);
}

static nib_status filter_trim(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return method(render, call, "strip", result);
}

static nib_status filter_upper(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return method(render, call, "upper", result);
}

static nib_status filter_lower(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return method(render, call, "lower", result);
}

static nib_status filter_capitalize(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return method(render, call, "capitalize", result);
}

/* Unlike str.title, words begin only after white space, - ( { [ and <. */
static nib_status filter_title(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value string, lower, piece;
    nib_jinja_text text = {.render = render};
    NIB_TRY(nib_jinja_to_string(render, call->subject, &string));
    NIB_TRY(nib_jinja_change_case(render, string, NIB_JINJA_LOWER, &lower));
    bool begins = true;
    for (size_t at = 0; at < lower.string.length;) {
        uint32_t codepoint;
        size_t bytes = nib_utf8_decode(lower.string.bytes + at, lower.string.length - at, &codepoint);
        bool separates = nib_jinja_is_space(codepoint) ||
                         (codepoint < 0x80 && codepoint > 0 && strchr("-({[<", (int)codepoint) != NULL);
        piece = nib_jinja_string(lower.string.bytes + at, bytes);
        if (begins && !separates) NIB_TRY(nib_jinja_change_case(render, piece, NIB_JINJA_UPPER, &piece));
        nib_jinja_text_str(&text, piece);
        begins = separates;
        at += bytes;
    }
    return nib_jinja_text_finish(&text, result);
}

static nib_status filter_string(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return nib_jinja_to_string(render, call->subject, result);
}

static nib_status filter_replace(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value text, values[3];
    nib_jinja_arguments arguments = {.positional = values};
    NIB_TRY(nib_jinja_to_string(render, call->subject, &text));
    for (int i = 0; i < 2; i++) NIB_TRY(nib_jinja_to_string(render, call->values[i], &values[i]));
    arguments.count = 2;
    if (call->given[2] && call->values[2].kind != NIB_JINJA_NONE) values[arguments.count++] = call->values[2];
    return nib_jinja_run_builtin(render, nib_jinja_find_method(NIB_JINJA_STRING, "replace", 7), text, &arguments,
                                 result);
}

static nib_status filter_escape(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value string;
    nib_jinja_text text = {.render = render};
    NIB_TRY(nib_jinja_to_string(render, call->subject, &string));
    for (size_t i = 0; i < string.string.length; i++) {
        const char *c = &string.string.bytes[i];
        switch (*c) {
        case '&':
            nib_jinja_text_literal(&text, "&amp;");
            break;
        case '<':
            nib_jinja_text_literal(&text, "&lt;");
            break;
        case '>':
            nib_jinja_text_literal(&text, "&gt;");
            break;
        case '\'':
            nib_jinja_text_literal(&text, "&#39;");
            break;
        case '"':
            nib_jinja_text_literal(&text, "&#34;");
            break;
        default:
            nib_jinja_text_append(&text, c, 1);
            break;
        }
    }
    return nib_jinja_text_finish(&text, result);
}

/* indent(width=4, first=false, blank=false): width blanks, or a string, before every line but the first. */
static nib_status filter_indent(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value string, width = call->given[0] ? call->values[0] : nib_jinja_integer(4);
    bool blank = nib_jinja_truthy(call->values[2]);
    nib_jinja_text text = {.render = render};
    if (width.kind == NIB_JINJA_INTEGER)
        NIB_TRY(nib_jinja_binary(render, NIB_JINJA_MULTIPLY, nib_jinja_literal(" "), width, &width));
    if (width.kind != NIB_JINJA_STRING) return nib_jinja_fail(render, "indent takes a number or a string");
    NIB_TRY(nib_jinja_to_string(render, call->subject, &string));
    if (nib_jinja_truthy(call->values[1])) nib_jinja_text_str(&text, width);
    for (size_t at = 0, line = 0; at <= string.string.length; line++) {
        const char *start = string.string.bytes + at;
        const char *end = at < string.string.length ? memchr(start, '\n', string.string.length - at) : NULL;
        size_t length = end != NULL ? (size_t)(end - start) : string.string.length - at;
        if (line > 0) nib_jinja_text_literal(&text, "\n");
        if (line > 0 && (blank || length > 0)) nib_jinja_text_str(&text, width);
        nib_jinja_text_append(&text, start, length);
        at += length + 1;
    }
    return nib_jinja_text_finish(&text, result);
}

static nib_status filter_default(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    (void)render;
    bool replaces = call->subject.kind == NIB_JINJA_UNDEFINED ||
                    (nib_jinja_truthy(call->values[1]) && !nib_jinja_truthy(call->subject));
    *result = !replaces ? call->subject : call->given[0] ? call->values[0] : nib_jinja_literal("");
    return NIB_OK;
}

/* tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false), as transformers has it */
static nib_status filter_tojson(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_json_format format = {.ascii_only = nib_jinja_truthy(call->values[0]),
                                    .sort_keys = nib_jinja_truthy(call->values[3])};
    nib_jinja_value indent = call->values[1], separators = call->values[2];
    if (indent.kind == NIB_JINJA_INTEGER)
        NIB_TRY(nib_jinja_binary(render, NIB_JINJA_MULTIPLY, nib_jinja_literal(" "), indent, &indent));
    if (indent.kind == NIB_JINJA_STRING) {
        format.indent = indent.string.bytes;
        format.indent_length = indent.string.length;
    }
    if (separators.kind == NIB_JINJA_TUPLE || separators.kind == NIB_JINJA_LIST) {
        if (separators.sequence->count != 2) return nib_jinja_fail(render, "tojson: separators are two strings");
        format.item_separator = separators.sequence->items[0];
        format.key_separator = separators.sequence->items[1];
    }
    return nib_jinja_write_json(render, call->subject, &format, result);
}

static nib_status filter_wordcount(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    int64_t words = 0;
    bool in_word = false;
    nib_jinja_value string;
    NIB_TRY(nib_jinja_to_string(render, call->subject, &string));
    for (size_t at = 0; at < string.string.length;) {
        uint32_t codepoint;
        at += nib_utf8_decode(string.string.bytes + at, string.string.length - at, &codepoint);
        bool space = nib_jinja_is_space(codepoint);
        words += !space && !in_word;
        in_word = !space;
    }
    *result = nib_jinja_integer(words);
    return NIB_OK;
}

/* "..."|format(a, b) */
static nib_status filter_format(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value format, values;
    NIB_TRY(nib_jinja_to_string(render, call->subject, &format));
    if (call->arguments->named_count > 0) return nib_jinja_fail(render, "format takes positional arguments here");
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_TUPLE, call->arguments->count, &values));
    for (size_t i = 0; i < call->arguments->count; i++)
        NIB_TRY(nib_jinja_push(render, values, call->arguments->positional[i]));
    return nib_jinja_percent_format(render, format, values, result);
}

static nib_status filter_attr(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->values[0].kind != NIB_JINJA_STRING) return nib_jinja_fail(render, "attr takes a name");
    if (call->subject.kind == NIB_JINJA_DICT) /* attributes only, never items */
        return nib_jinja_new_undefined(render, call->values[0], "dict", result);
    return nib_jinja_attribute(render, call->subject, call->values[0], result);
}

const nib_jinja_builtin nib_jinja_text_filters[] = {
    {"trim", "chars", 0, filter_trim},
    {"upper", "", 0, filter_upper},
    {"lower", "", 0, filter_lower},
    {"title", "", 0, filter_title},
    {"capitalize", "", 0, filter_capitalize},
    {"string", "", 0, filter_string},
    {"safe", "", 0, filter_string},
    {"replace", "old new count", 2, filter_replace},
    {"escape", "", 0, filter_escape},
    {"e", "", 0, filter_escape},
    {"indent", "width first blank", 0, filter_indent},
    {"default", "default_value boolean", 0, filter_default},
    {"d", "default_value boolean", 0, filter_default},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, filter_tojson},
    {"wordcount", "", 0, filter_wordcount},
    {"format", "*", 0, filter_format},
    {"attr", "name", 1, filter_attr},
    {NULL, NULL, 0, NULL},
};
