/* The methods of strings; those that ask what characters a string has are in jinja_string_predicates.c. */
#include "tokenizer/jinja_render.h"

#include "base/utf8.h"
#include "tokenizer/jinja_lexer.h"

#include <string.h>

static nib_status need_string(nib_jinja_render *render, const nib_jinja_call *call, int parameter)
{
    nib_jinja_value value = call->values[parameter];
    if (value.kind == NIB_JINJA_STRING) return NIB_OK;
    return nib_jinja_fail(render, "%s() takes a string, got %s", call->function, nib_jinja_type_name(value));
}

static nib_status optional_integer(nib_jinja_render *render, const nib_jinja_call *call, int parameter,
                                   int64_t fallback, int64_t *value)
{
    *value = fallback;
    if (!call->given[parameter] || call->values[parameter].kind == NIB_JINJA_NONE) return NIB_OK;
    if (call->values[parameter].kind != NIB_JINJA_INTEGER)
        return nib_jinja_fail(render, "%s() takes an integer, got %s", call->function,
                              nib_jinja_type_name(call->values[parameter]));
    *value = call->values[parameter].integer;
    return NIB_OK;
}

/* ---- stripping ---- */

static bool in_set(nib_jinja_value set, uint32_t wanted)
{
    if (set.kind != NIB_JINJA_STRING) return nib_jinja_is_space(wanted);
    for (size_t at = 0; at < set.string.length;) {
        uint32_t codepoint;
        at += nib_utf8_decode(set.string.bytes + at, set.string.length - at, &codepoint);
        if (codepoint == wanted) return true;
    }
    return false;
}

static nib_status strip(nib_jinja_render *render, const nib_jinja_call *call, bool left, bool right,
                        nib_jinja_value *result)
{
    const char *bytes = call->subject.string.bytes;
    size_t start = 0, end = call->subject.string.length;
    uint32_t codepoint;
    if (call->given[0] && call->values[0].kind != NIB_JINJA_NONE) NIB_TRY(need_string(render, call, 0));
    while (left && start < end) {
        size_t length = nib_utf8_decode(bytes + start, end - start, &codepoint);
        if (!in_set(call->values[0], codepoint)) break;
        start += length;
    }
    while (right && end > start) {
        size_t last = end - 1;
        while (last > start && ((unsigned char)bytes[last] & 0xc0) == 0x80) last--;
        nib_utf8_decode(bytes + last, end - last, &codepoint);
        if (!in_set(call->values[0], codepoint)) break;
        end = last;
    }
    *result = nib_jinja_string(bytes + start, end - start);
    return nib_jinja_charge(render, call->subject.string.length / 64);
}

static nib_status str_strip(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return strip(render, call, true, true, result);
}

static nib_status str_lstrip(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return strip(render, call, true, false, result);
}

static nib_status str_rstrip(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return strip(render, call, false, true, result);
}

/* ---- case ---- */

#define CASE_METHOD(name, to)                                                                                          \
    static nib_status str_##name(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)        \
    {                                                                                                                  \
        return nib_jinja_change_case(render, call->subject, to, result);                                               \
    }

CASE_METHOD(upper, NIB_JINJA_UPPER)
CASE_METHOD(lower, NIB_JINJA_LOWER)
CASE_METHOD(title, NIB_JINJA_TITLE)
CASE_METHOD(capitalize, NIB_JINJA_CAPITALIZE)
CASE_METHOD(swapcase, NIB_JINJA_SWAP)

/* ---- searching ---- */

/* The first (or last) occurrence at or after `from`; NULL: none. */
static const char *find_bytes(const char *from, const char *end, nib_jinja_value wanted, bool last)
{
    size_t length = wanted.string.length;
    if ((size_t)(end - from) < length) return NULL;
    if (length == 0) return last ? end : from;
    if (!last) return memmem(from, (size_t)(end - from), wanted.string.bytes, length);
    for (const char *at = end - length; at >= from; at--)
        if (memcmp(at, wanted.string.bytes, length) == 0) return at;
    return NULL;
}

/* subject[start:end] by parameters 1 and 2, as Python's find and startswith take them. */
static nib_status window(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *part)
{
    const nib_jinja_value parts[3] = {call->given[1] ? call->values[1] : nib_jinja_none(),
                                      call->given[2] ? call->values[2] : nib_jinja_none(), nib_jinja_none()};
    *part = call->subject;
    return call->given[1] || call->given[2] ? nib_jinja_slice(render, call->subject, parts, part) : NIB_OK;
}

static nib_status affix(nib_jinja_render *render, const nib_jinja_call *call, bool at_end, nib_jinja_value *result)
{
    nib_jinja_value part;
    const nib_jinja_value *affixes = &call->values[0];
    size_t count = 1;
    NIB_TRY(window(render, call, &part));
    if (affixes->kind == NIB_JINJA_TUPLE) NIB_TRY(nib_jinja_items(render, call->values[0], &affixes, &count));
    *result = nib_jinja_bool(false);
    for (size_t i = 0; i < count; i++) {
        if (affixes[i].kind != NIB_JINJA_STRING)
            return nib_jinja_fail(render, "%s first arg must be str or a tuple of str, not %s", call->function,
                                  nib_jinja_type_name(affixes[i]));
        size_t length = affixes[i].string.length;
        if (length > part.string.length) continue;
        size_t at = at_end ? part.string.length - length : 0;
        if (length == 0 || memcmp(part.string.bytes + at, affixes[i].string.bytes, length) == 0)
            *result = nib_jinja_bool(true);
    }
    return NIB_OK;
}

static nib_status str_startswith(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return affix(render, call, false, result);
}

static nib_status str_endswith(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return affix(render, call, true, result);
}

static nib_status find(nib_jinja_render *render, const nib_jinja_call *call, bool last, bool must,
                       nib_jinja_value *result)
{
    nib_jinja_value part;
    size_t before = 0, whole;
    NIB_TRY(need_string(render, call, 0));
    NIB_TRY(window(render, call, &part));
    const char *end = part.string.bytes + part.string.length,
               *at = find_bytes(part.string.bytes, end, call->values[0], last);
    if (at == NULL && must) return nib_jinja_fail(render, "substring not found");
    nib_jinja_length(nib_jinja_string(part.string.bytes, at != NULL ? (size_t)(at - part.string.bytes) : 0), &before);
    int64_t start = call->given[1] && call->values[1].kind == NIB_JINJA_INTEGER ? call->values[1].integer : 0;
    nib_jinja_length(call->subject, &whole);
    if (start < 0) start = start + (int64_t)whole < 0 ? 0 : start + (int64_t)whole;
    *result = nib_jinja_integer(at == NULL ? -1 : start + (int64_t)before);
    return nib_jinja_charge(render, whole / 64);
}

static nib_status str_find(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return find(render, call, false, false, result);
}

static nib_status str_rfind(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return find(render, call, true, false, result);
}

static nib_status str_index(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return find(render, call, false, true, result);
}

static nib_status str_count(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value part;
    size_t codepoints;
    int64_t count = 0;
    NIB_TRY(need_string(render, call, 0));
    NIB_TRY(window(render, call, &part));
    NIB_TRY(nib_jinja_charge(render, part.string.length / 64));
    const char *at = part.string.bytes, *end = at + part.string.length;
    if (call->values[0].string.length == 0) {
        nib_jinja_length(part, &codepoints);
        *result = nib_jinja_integer((int64_t)codepoints + 1);
        return NIB_OK;
    }
    while ((at = find_bytes(at, end, call->values[0], false)) != NULL) {
        count++;
        at += call->values[0].string.length;
    }
    *result = nib_jinja_integer(count);
    return NIB_OK;
}

static nib_status str_replace(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    int64_t left;
    nib_jinja_text text = {.render = render};
    NIB_TRY(need_string(render, call, 0));
    NIB_TRY(need_string(render, call, 1));
    NIB_TRY(optional_integer(render, call, 2, -1, &left));
    const char *at = call->subject.string.bytes, *end = at + call->subject.string.length, *found;
    bool empty = call->values[0].string.length == 0;
    while (left != 0 && (found = find_bytes(at, end, call->values[0], false)) != NULL) {
        uint32_t codepoint;
        nib_jinja_text_append(&text, at, (size_t)(found - at));
        nib_jinja_text_str(&text, call->values[1]);
        NIB_TRY(nib_jinja_charge(render, 1));
        at = found + call->values[0].string.length;
        left -= left > 0;
        if (!empty) continue;
        if (at == end) break;
        size_t bytes = nib_utf8_decode(at, (size_t)(end - at), &codepoint);
        nib_jinja_text_append(&text, at, bytes);
        at += bytes;
    }
    nib_jinja_text_append(&text, at, (size_t)(end - at));
    return nib_jinja_text_finish(&text, result);
}

static nib_status remove_affix(nib_jinja_render *render, const nib_jinja_call *call, bool at_end,
                               nib_jinja_value *result)
{
    nib_jinja_value there;
    NIB_TRY(need_string(render, call, 0));
    NIB_TRY(affix(render, call, at_end, &there));
    size_t length = there.boolean ? call->values[0].string.length : 0;
    *result =
        nib_jinja_string(call->subject.string.bytes + (at_end ? 0 : length), call->subject.string.length - length);
    return NIB_OK;
}

static nib_status str_removeprefix(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return remove_affix(render, call, false, result);
}

static nib_status str_removesuffix(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return remove_affix(render, call, true, result);
}

/* ---- splitting and joining ---- */

static nib_status push_part(nib_jinja_render *render, nib_jinja_value list, const char *from, const char *to)
{
    return nib_jinja_push(render, list, nib_jinja_string(from, (size_t)(to - from)));
}

static void reverse(nib_jinja_sequence *list)
{
    for (size_t i = 0, j = list->count; i + 1 < j; i++) {
        nib_jinja_value swapped = list->items[i];
        list->items[i] = list->items[--j];
        list->items[j] = swapped;
    }
}

/* split() without a separator: the words between white space; what is left after `most` splits stays one piece. */
static nib_status split_words(nib_jinja_render *render, nib_jinja_value string, int64_t most, bool from_right,
                              nib_jinja_value list)
{
    const char *at = string.string.bytes, *end = at + string.string.length;
    for (;; most -= most > 0) {
        at += from_right ? 0 : nib_jinja_leading_space(at, (size_t)(end - at));
        end -= from_right ? nib_jinja_trailing_space(at, (size_t)(end - at)) : 0;
        if (at == end) return NIB_OK;
        if (most == 0) break;
        const char *word = from_right ? end : at;
        while (from_right ? word > at : word < end) {
            const char *next = from_right ? word - 1 : word;
            while (from_right && next > at && ((unsigned char)*next & 0xc0) == 0x80) next--;
            uint32_t codepoint;
            size_t bytes = nib_utf8_decode(next, (size_t)(end - next), &codepoint);
            if (nib_jinja_is_space(codepoint)) break;
            word = from_right ? next : word + bytes;
        }
        NIB_TRY(from_right ? push_part(render, list, word, end) : push_part(render, list, at, word));
        if (from_right)
            end = word;
        else
            at = word;
    }
    return push_part(render, list, at, end);
}

static nib_status split(nib_jinja_render *render, const nib_jinja_call *call, bool from_right, nib_jinja_value *result)
{
    int64_t most;
    nib_jinja_value separator = call->values[0];
    NIB_TRY(optional_integer(render, call, 1, -1, &most));
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, result));
    NIB_TRY(nib_jinja_charge(render, call->subject.string.length / 64));
    if (!call->given[0] || separator.kind == NIB_JINJA_NONE) {
        NIB_TRY(split_words(render, call->subject, most, from_right, *result));
    } else {
        NIB_TRY(need_string(render, call, 0));
        if (separator.string.length == 0) return nib_jinja_fail(render, "empty separator");
        const char *at = call->subject.string.bytes, *end = at + call->subject.string.length, *found;
        for (; most != 0 && (found = find_bytes(at, end, separator, from_right)) != NULL; most -= most > 0) {
            const char *after = found + separator.string.length;
            NIB_TRY(from_right ? push_part(render, *result, after, end) : push_part(render, *result, at, found));
            if (from_right)
                end = found;
            else
                at = after;
        }
        NIB_TRY(push_part(render, *result, at, end));
    }
    if (from_right) reverse(result->sequence);
    return NIB_OK;
}

static nib_status str_split(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return split(render, call, false, result);
}

static nib_status str_rsplit(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return split(render, call, true, result);
}

static nib_status partition(nib_jinja_render *render, const nib_jinja_call *call, bool last, nib_jinja_value *result)
{
    NIB_TRY(need_string(render, call, 0));
    if (call->values[0].string.length == 0) return nib_jinja_fail(render, "empty separator");
    const char *start = call->subject.string.bytes, *end = start + call->subject.string.length;
    const char *found = find_bytes(start, end, call->values[0], last);
    const char *cut = found != NULL ? found : last ? start : end;
    const char *after = found != NULL ? found + call->values[0].string.length : cut;
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_TUPLE, 3, result));
    NIB_TRY(push_part(render, *result, start, cut));
    NIB_TRY(push_part(render, *result, cut, after));
    return push_part(render, *result, after, end);
}

static nib_status str_partition(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return partition(render, call, false, result);
}

static nib_status str_rpartition(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return partition(render, call, true, result);
}

static bool ends_line(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static nib_status str_splitlines(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const char *at = call->subject.string.bytes, *end = at + call->subject.string.length, *line = at;
    bool keeps = nib_jinja_truthy(call->values[0]);
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, result));
    while (at < end) {
        uint32_t codepoint;
        const char *next = at + nib_utf8_decode(at, (size_t)(end - at), &codepoint);
        if (ends_line(codepoint)) {
            if (codepoint == '\r' && next < end && *next == '\n') next++;
            NIB_TRY(push_part(render, *result, line, keeps ? next : at));
            line = next;
        }
        at = next;
    }
    return line < end ? push_part(render, *result, line, end) : NIB_OK;
}

static nib_status str_join(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *items;
    size_t count;
    nib_jinja_text text = {.render = render};
    NIB_TRY(nib_jinja_items(render, call->values[0], &items, &count));
    for (size_t i = 0; i < count; i++) {
        if (items[i].kind != NIB_JINJA_STRING)
            return nib_jinja_fail(render, "sequence item %zu: expected str instance, %s found", i,
                                  nib_jinja_type_name(items[i]));
        if (i > 0) nib_jinja_text_str(&text, call->subject);
        nib_jinja_text_str(&text, items[i]);
    }
    return nib_jinja_text_finish(&text, result);
}

/* ---- padding ---- */

static nib_status pad(nib_jinja_render *render, const nib_jinja_call *call, int left_share, nib_jinja_value *result)
{
    int64_t width, left;
    size_t length;
    nib_jinja_text text = {.render = render};
    nib_jinja_value fill = call->given[1] ? call->values[1] : nib_jinja_literal(" ");
    NIB_TRY(optional_integer(render, call, 0, 0, &width));
    if (fill.kind != NIB_JINJA_STRING) return nib_jinja_fail(render, "%s() fills with a character", call->function);
    nib_jinja_length(call->subject, &length);
    int64_t missing = width > (int64_t)length ? width - (int64_t)length : 0;
    left = left_share == 1 ? missing / 2 + (missing & width & 1) : left_share == 2 ? missing : 0;
    for (int64_t i = 0; i < left && text.status == NIB_OK; i++) nib_jinja_text_str(&text, fill);
    nib_jinja_text_str(&text, call->subject);
    for (int64_t i = left; i < missing && text.status == NIB_OK; i++) nib_jinja_text_str(&text, fill);
    return nib_jinja_text_finish(&text, result);
}

static nib_status str_ljust(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return pad(render, call, 0, result);
}

static nib_status str_center(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return pad(render, call, 1, result);
}

static nib_status str_rjust(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return pad(render, call, 2, result);
}

/* Zeros between the sign and the digits. */
static nib_status str_zfill(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    int64_t width;
    size_t length, sign;
    nib_jinja_value string = call->subject;
    nib_jinja_text text = {.render = render};
    NIB_TRY(optional_integer(render, call, 0, 0, &width));
    nib_jinja_length(string, &length);
    sign = string.string.length > 0 && (*string.string.bytes == '-' || *string.string.bytes == '+');
    nib_jinja_text_append(&text, string.string.bytes, sign);
    for (int64_t i = (int64_t)length; i < width && text.status == NIB_OK; i++) nib_jinja_text_literal(&text, "0");
    nib_jinja_text_append(&text, string.string.bytes + sign, string.string.length - sign);
    return nib_jinja_text_finish(&text, result);
}

static nib_status str_format(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return nib_jinja_brace_format(render, call->subject, call->arguments, result);
}

const nib_jinja_builtin nib_jinja_string_methods[] = {
    {"strip", "chars", 0, str_strip},
    {"lstrip", "chars", 0, str_lstrip},
    {"rstrip", "chars", 0, str_rstrip},
    {"upper", "", 0, str_upper},
    {"lower", "", 0, str_lower},
    {"title", "", 0, str_title},
    {"capitalize", "", 0, str_capitalize},
    {"swapcase", "", 0, str_swapcase},
    {"startswith", "prefix start end", 1, str_startswith},
    {"endswith", "suffix start end", 1, str_endswith},
    {"find", "sub start end", 1, str_find},
    {"rfind", "sub start end", 1, str_rfind},
    {"index", "sub start end", 1, str_index},
    {"count", "sub start end", 1, str_count},
    {"replace", "old new count", 2, str_replace},
    {"removeprefix", "prefix", 1, str_removeprefix},
    {"removesuffix", "suffix", 1, str_removesuffix},
    {"split", "sep maxsplit", 0, str_split},
    {"rsplit", "sep maxsplit", 0, str_rsplit},
    {"splitlines", "keepends", 0, str_splitlines},
    {"partition", "sep", 1, str_partition},
    {"rpartition", "sep", 1, str_rpartition},
    {"join", "iterable", 1, str_join},
    {"ljust", "width fillchar", 1, str_ljust},
    {"center", "width fillchar", 1, str_center},
    {"rjust", "width fillchar", 1, str_rjust},
    {"zfill", "width", 1, str_zfill},
    {"format", "*", 0, str_format},
    {NULL, NULL, 0, NULL},
};
