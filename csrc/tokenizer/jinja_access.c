/* Attributes, items and slices, and the methods of values. */
#include "tokenizer/jinja_render.h"

#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

size_t nib_jinja_codepoint_offset(nib_jinja_value string, size_t index)
{
    size_t at = 0;
    for (; at < string.string.length; at++)
        if (((unsigned char)string.string.bytes[at] & 0xc0) != 0x80 && index-- == 0) break;
    return at;
}

static nib_status bind_method(nib_jinja_render *render, const nib_jinja_builtin *builtin, nib_jinja_value subject,
                              nib_jinja_value *value)
{
    nib_jinja_function *function = nib_jinja_alloc(render, 1, sizeof *function);
    if (function == NULL) return nib_jinja_no_memory(render);
    *function = (nib_jinja_function){builtin, subject};
    *value = (nib_jinja_value){.kind = NIB_JINJA_FUNCTION, .function = function};
    return NIB_OK;
}

static nib_jinja_value loop_neighbour(const nib_jinja_loop *loop, bool next)
{
    if (next) return loop->index + 1 < loop->count ? loop->items[loop->index + 1] : (nib_jinja_value){0};
    return loop->index > 0 ? loop->items[loop->index - 1] : (nib_jinja_value){0};
}

/* loop.NAME in *value; false: there is no such attribute. */
static bool loop_attribute(const nib_jinja_loop *loop, nib_jinja_value name, nib_jinja_value *value)
{
    int64_t index = (int64_t)loop->index, count = (int64_t)loop->count;
    const struct {
        const char *name;
        nib_jinja_value value;
    } attributes[] = {
        {"index", nib_jinja_integer(index + 1)},        {"index0", nib_jinja_integer(index)},
        {"revindex", nib_jinja_integer(count - index)}, {"revindex0", nib_jinja_integer(count - index - 1)},
        {"first", nib_jinja_bool(index == 0)},          {"last", nib_jinja_bool(index + 1 == count)},
        {"length", nib_jinja_integer(count)},           {"depth", nib_jinja_integer(loop->level)},
        {"depth0", nib_jinja_integer(loop->level - 1)}, {"previtem", loop_neighbour(loop, false)},
        {"nextitem", loop_neighbour(loop, true)},
    };
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++) {
        if (!nib_jinja_is_string(name, attributes[i].name)) continue;
        *value = attributes[i].value;
        return true;
    }
    return false;
}

/* What Python's getattr finds; *found false if it finds nothing. */
static nib_status get_attribute(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value name,
                                nib_jinja_value *value, bool *found)
{
    *found = true;
    if (object.kind == NIB_JINJA_NAMESPACE) {
        const nib_jinja_value *item;
        NIB_TRY(nib_jinja_dict_get(render, object, name, &item));
        *found = item != NULL;
        if (item != NULL) *value = *item;
        return NIB_OK;
    }
    if (object.kind == NIB_JINJA_LOOP && loop_attribute(object.loop, name, value)) return NIB_OK;
    if (object.kind == NIB_JINJA_TUPLE && object.sequence->is_group) {
        bool is_list = nib_jinja_is_string(name, "list");
        *value = object.sequence->items[is_list];
        if (is_list || nib_jinja_is_string(name, "grouper")) return NIB_OK;
    }
    if (object.kind == NIB_JINJA_CYCLER && nib_jinja_is_string(name, "current")) {
        *value = object.sequence->items[object.sequence->next];
        return NIB_OK;
    }
    if (object.kind == NIB_JINJA_MACRO && nib_jinja_is_string(name, "name")) {
        *value = nib_jinja_string(object.macro->node->macro.name.bytes, object.macro->node->macro.name.length);
        return NIB_OK;
    }
    const nib_jinja_builtin *method = nib_jinja_find_method(object.kind, name.string.bytes, name.string.length);
    if (method != NULL) return bind_method(render, method, object, value);
    if (nib_jinja_is_refused_method(object.kind, name.string.bytes, name.string.length))
        return nib_jinja_fail(render, "access to attribute '%.*s' of '%s' object is unsafe.", (int)name.string.length,
                              name.string.bytes, nib_jinja_type_name(object));
    *found = false;
    return NIB_OK;
}

/* What Python's object[key] finds. */
static nib_status get_item(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value key,
                           nib_jinja_value *value, bool *found)
{
    *found = false;
    if (object.kind == NIB_JINJA_DICT) {
        bool hashable = key.kind != NIB_JINJA_LIST && key.kind != NIB_JINJA_DICT;
        const nib_jinja_value *item = NULL;
        if (hashable) NIB_TRY(nib_jinja_dict_get(render, object, key, &item));
        *found = item != NULL;
        if (item != NULL) *value = *item;
        return NIB_OK;
    }
    size_t length;
    bool indexed = object.kind == NIB_JINJA_STRING || object.kind == NIB_JINJA_LIST || object.kind == NIB_JINJA_TUPLE ||
                   object.kind == NIB_JINJA_RANGE;
    if (!indexed || (key.kind != NIB_JINJA_INTEGER && key.kind != NIB_JINJA_BOOL)) return NIB_OK;
    nib_jinja_length(object, &length);
    int64_t index = key.kind == NIB_JINJA_BOOL ? key.boolean : key.integer;
    if (index < 0) index += (int64_t)length;
    if (index < 0 || index >= (int64_t)length) return NIB_OK;
    *found = true;
    if (object.kind != NIB_JINJA_STRING) {
        *value = object.sequence->items[index];
        return NIB_OK;
    }
    size_t start = nib_jinja_codepoint_offset(object, (size_t)index);
    uint32_t codepoint;
    size_t bytes = nib_utf8_decode(object.string.bytes + start, object.string.length - start, &codepoint);
    *value = nib_jinja_string(object.string.bytes + start, bytes);
    return nib_jinja_charge(render, length / 64);
}

/* "dict" for the message "'dict object' has no attribute". */
static const char *owner_name(nib_jinja_value object)
{
    return object.kind == NIB_JINJA_NONE ? "None" : nib_jinja_type_name(object);
}

nib_status nib_jinja_attribute(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value name,
                               nib_jinja_value *value)
{
    bool found;
    if (object.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, object);
    NIB_TRY(get_attribute(render, object, name, value, &found));
    if (!found) NIB_TRY(get_item(render, object, name, value, &found));
    return found ? NIB_OK : nib_jinja_new_undefined(render, name, owner_name(object), value);
}

nib_status nib_jinja_subscript(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value key,
                               nib_jinja_value *value)
{
    bool found;
    if (object.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, object);
    NIB_TRY(get_item(render, object, key, value, &found));
    if (!found && key.kind == NIB_JINJA_STRING) NIB_TRY(get_attribute(render, object, key, value, &found));
    return found ? NIB_OK : nib_jinja_new_undefined(render, key, owner_name(object), value);
}

/* A bound of a slice as Python's slice.indices computes it, for a step of that sign. */
static nib_status slice_bound(nib_jinja_render *render, nib_jinja_value part, int64_t length, bool backwards,
                              int64_t absent, int64_t *bound)
{
    int64_t low = backwards ? -1 : 0, high = backwards ? length - 1 : length;
    *bound = absent;
    if (part.kind == NIB_JINJA_NONE) return NIB_OK;
    if (part.kind != NIB_JINJA_INTEGER && part.kind != NIB_JINJA_BOOL)
        return nib_jinja_fail(render, "slice indices must be integers or None, not '%s'", nib_jinja_type_name(part));
    *bound = part.kind == NIB_JINJA_BOOL ? part.boolean : part.integer;
    if (*bound < 0) *bound += length;
    if (*bound < low) *bound = low;
    if (*bound > high) *bound = high;
    return NIB_OK;
}

nib_status nib_jinja_slice(nib_jinja_render *render, nib_jinja_value object, const nib_jinja_value parts[3],
                           nib_jinja_value *value)
{
    if (object.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, object);
    bool is_string = object.kind == NIB_JINJA_STRING;
    if (!is_string && object.kind != NIB_JINJA_LIST && object.kind != NIB_JINJA_TUPLE && object.kind != NIB_JINJA_RANGE)
        return nib_jinja_new_undefined(render, nib_jinja_literal("slice"), owner_name(object), value);
    const nib_jinja_value *items;
    size_t count;
    NIB_TRY(nib_jinja_items(render, object, &items, &count));
    int64_t length = (int64_t)count, step = 1, start, stop;
    if (parts[2].kind != NIB_JINJA_NONE) {
        if (parts[2].kind != NIB_JINJA_INTEGER)
            return nib_jinja_fail(render, "slice indices must be integers or None, not '%s'",
                                  nib_jinja_type_name(parts[2]));
        step = parts[2].integer;
    }
    if (step == 0) return nib_jinja_fail(render, "slice step cannot be zero");
    if (step > length + 1) step = length + 1; /* as far as it goes either way, without overflow */
    if (step < -length - 1) step = -length - 1;
    NIB_TRY(slice_bound(render, parts[0], length, step < 0, step < 0 ? length - 1 : 0, &start));
    NIB_TRY(slice_bound(render, parts[1], length, step < 0, step < 0 ? -1 : length, &stop));
    nib_jinja_text text = {.render = render};
    nib_jinja_kind kind = object.kind == NIB_JINJA_TUPLE ? NIB_JINJA_TUPLE : NIB_JINJA_LIST;
    NIB_TRY(nib_jinja_new_sequence(render, kind, 0, value));
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
        if (is_string)
            nib_jinja_text_append(&text, items[i].string.bytes, items[i].string.length);
        else
            NIB_TRY(nib_jinja_push(render, *value, items[i]));
    }
    return is_string ? nib_jinja_text_finish(&text, value) : NIB_OK;
}

/* A part of a path that is all digits is an index. */
static nib_jinja_value path_key(const char *part, size_t length)
{
    int64_t index = 0;
    for (size_t i = 0; i < length; i++) {
        if (part[i] < '0' || part[i] > '9' || length > 17) return nib_jinja_string(part, length);
        index = 10 * index + (part[i] - '0');
    }
    return length > 0 ? nib_jinja_integer(index) : nib_jinja_string(part, length);
}

nib_status nib_jinja_path(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value path,
                          const nib_jinja_value *fallback, nib_jinja_value *value)
{
    bool is_text = path.kind == NIB_JINJA_STRING;
    size_t end = is_text ? path.string.length : 0;
    *value = object;
    for (size_t at = 0; at <= end;) {
        const char *part = is_text ? path.string.bytes + at : NULL;
        const char *dot = at < end ? memchr(part, '.', end - at) : NULL;
        size_t length = dot != NULL ? (size_t)(dot - part) : end - at;
        NIB_TRY(nib_jinja_subscript(render, *value, is_text ? path_key(part, length) : path, value));
        if (value->kind == NIB_JINJA_UNDEFINED && fallback != NULL) *value = *fallback;
        at += length + 1;
    }
    return NIB_OK;
}
