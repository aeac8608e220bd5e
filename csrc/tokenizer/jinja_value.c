#include "tokenizer/jinja_value.h"

#include "base/utf8.h"
#include "tokenizer/jinja_render.h"

#include <math.h>
#include <string.h>

nib_jinja_value nib_jinja_literal(const char *text) { return nib_jinja_string(text, strlen(text)); }

/* ---- limits and memory ---- */

nib_status nib_jinja_fail(nib_jinja_render *render, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    nib_status status = nib_fail_v(NIB_ERROR_DATA, format, arguments);
    va_end(arguments);
    return nib_error_context(status, "%s:%u", render->name, render->line);
}

nib_status nib_jinja_charge(nib_jinja_render *render, size_t steps)
{
    if (steps > NIB_JINJA_MAX_STEPS - render->steps)
        return nib_jinja_fail(render, "more than %d steps; does the template loop for ever?", NIB_JINJA_MAX_STEPS);
    render->steps += steps;
    return NIB_OK;
}

nib_status nib_jinja_enter(nib_jinja_render *render)
{
    if (render->depth == NIB_JINJA_MAX_DEPTH)
        return nib_jinja_fail(render, "nested deeper than %d evaluations; does a macro call itself for ever?",
                              NIB_JINJA_MAX_DEPTH);
    render->depth++;
    return NIB_OK;
}

void nib_jinja_leave(nib_jinja_render *render) { render->depth--; }

void *nib_jinja_alloc(nib_jinja_render *render, size_t count, size_t size)
{
    size_t limit = render->pool->limit;
    if (count <= limit / size) {
        void *block = nib_pool_alloc(render->pool, count * size);
        if (block != NULL) return block;
    }
    if (count > limit / size || render->pool->total + count * size > limit / 2)
        render->no_memory = nib_jinja_fail(render, "more than %d MiB of memory", NIB_JINJA_MAX_MEMORY >> 20);
    else
        render->no_memory = NIB_FAIL(NIB_ERROR_MEMORY, "%s:%u: no memory to render", render->name, render->line);
    return NULL;
}

nib_status nib_jinja_no_memory(const nib_jinja_render *render) { return render->no_memory; }

/* ---- sequences and dicts ---- */

nib_status nib_jinja_new_sequence(nib_jinja_render *render, nib_jinja_kind kind, size_t capacity,
                                  nib_jinja_value *sequence)
{
    nib_jinja_sequence *made = nib_jinja_alloc(render, 1, sizeof *made);
    if (made == NULL) return nib_jinja_no_memory(render);
    if (capacity > 0) {
        made->items = nib_jinja_alloc(render, capacity, sizeof *made->items);
        if (made->items == NULL) return nib_jinja_no_memory(render);
    }
    made->capacity = capacity;
    *sequence = (nib_jinja_value){.kind = kind, .sequence = made};
    return NIB_OK;
}

nib_status nib_jinja_push(nib_jinja_render *render, nib_jinja_value value, nib_jinja_value item)
{
    nib_jinja_sequence *sequence = value.sequence;
    if (sequence->count == sequence->capacity) {
        size_t capacity = sequence->capacity ? 2 * sequence->capacity : 4;
        nib_jinja_value *items = nib_jinja_alloc(render, capacity, sizeof *items);
        if (items == NULL) return nib_jinja_no_memory(render);
        if (sequence->count > 0) memcpy(items, sequence->items, sequence->count * sizeof *items);
        sequence->items = items;
        sequence->capacity = capacity;
    }
    sequence->items[sequence->count++] = item;
    return nib_jinja_charge(render, 1);
}

nib_status nib_jinja_new_dict(nib_jinja_render *render, nib_jinja_kind kind, nib_jinja_value *dict)
{
    nib_jinja_dict *made = nib_jinja_alloc(render, 1, sizeof *made);
    if (made == NULL) return nib_jinja_no_memory(render);
    *dict = (nib_jinja_value){.kind = kind, .dict = made};
    return NIB_OK;
}

static bool is_hashable(nib_jinja_value key)
{
    if (key.kind == NIB_JINJA_TUPLE) {
        for (size_t i = 0; i < key.sequence->count; i++)
            if (key.sequence->items[i].kind == NIB_JINJA_TUPLE || !is_hashable(key.sequence->items[i])) return false;
        return true;
    }
    return key.kind != NIB_JINJA_LIST && key.kind != NIB_JINJA_DICT && key.kind != NIB_JINJA_VIEW;
}

static nib_status find_key(nib_jinja_render *render, const nib_jinja_dict *dict, nib_jinja_value key, size_t *at)
{
    if (!is_hashable(key)) return nib_jinja_fail(render, "unhashable type: '%s'", nib_jinja_type_name(key));
    for (*at = 0; *at < dict->count; ++*at) {
        nib_jinja_value candidate = dict->keys[*at];
        bool equal = false;
        if (candidate.kind == NIB_JINJA_STRING && key.kind == NIB_JINJA_STRING)
            equal = candidate.string.length == key.string.length &&
                    memcmp(candidate.string.bytes, key.string.bytes, key.string.length) == 0;
        else
            NIB_TRY(nib_jinja_equal(render, candidate, key, &equal));
        if (equal) break;
    }
    return nib_jinja_charge(render, *at / 16 + 1);
}

nib_status nib_jinja_dict_set(nib_jinja_render *render, nib_jinja_value value, nib_jinja_value key,
                              nib_jinja_value item)
{
    nib_jinja_dict *dict = value.dict;
    size_t at;
    NIB_TRY(find_key(render, dict, key, &at));
    if (at == dict->count) {
        if (dict->count == dict->capacity) {
            size_t capacity = dict->capacity ? 2 * dict->capacity : 4;
            nib_jinja_value *keys = nib_jinja_alloc(render, capacity, 2 * sizeof *keys);
            if (keys == NULL) return nib_jinja_no_memory(render);
            nib_jinja_value *values = keys + capacity;
            if (dict->count > 0) {
                memcpy(keys, dict->keys, dict->count * sizeof *keys);
                memcpy(values, dict->values, dict->count * sizeof *values);
            }
            dict->keys = keys;
            dict->values = values;
            dict->capacity = capacity;
        }
        dict->keys[dict->count++] = key;
    }
    dict->values[at] = item;
    return NIB_OK;
}

nib_status nib_jinja_dict_get(nib_jinja_render *render, nib_jinja_value dict, nib_jinja_value key,
                              const nib_jinja_value **found)
{
    size_t at;
    NIB_TRY(find_key(render, dict.dict, key, &at));
    *found = at < dict.dict->count ? &dict.dict->values[at] : NULL;
    return NIB_OK;
}

/* The code points of a string as strings. */
static nib_status split_codepoints(nib_jinja_render *render, nib_jinja_value string, nib_jinja_value *list)
{
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, list));
    for (size_t at = 0; at < string.string.length;) {
        uint32_t codepoint;
        size_t bytes = nib_utf8_decode(string.string.bytes + at, string.string.length - at, &codepoint);
        NIB_TRY(nib_jinja_push(render, *list, nib_jinja_string(string.string.bytes + at, bytes)));
        at += bytes;
    }
    return NIB_OK;
}

nib_status nib_jinja_items(nib_jinja_render *render, nib_jinja_value value, const nib_jinja_value **items,
                           size_t *count)
{
    *items = NULL;
    *count = 0;
    switch (value.kind) {
    case NIB_JINJA_UNDEFINED:
        return NIB_OK;
    case NIB_JINJA_STRING:
        NIB_TRY(split_codepoints(render, value, &value));
        break;
    case NIB_JINJA_DICT:
        *items = value.dict->keys;
        *count = value.dict->count;
        return nib_jinja_charge(render, *count);
    case NIB_JINJA_LIST:
    case NIB_JINJA_TUPLE:
    case NIB_JINJA_RANGE:
    case NIB_JINJA_VIEW:
        break;
    case NIB_JINJA_GENERATOR:
        *count = value.sequence->count - value.sequence->next;
        if (*count > 0) *items = value.sequence->items + value.sequence->next;
        value.sequence->next = value.sequence->count;
        return nib_jinja_charge(render, *count);
    default:
        return nib_jinja_fail(render, "'%s' object is not iterable", nib_jinja_type_name(value));
    }
    *items = value.sequence->items;
    *count = value.sequence->count;
    return nib_jinja_charge(render, *count);
}

static size_t count_codepoints(const char *text, size_t length)
{
    size_t count = 0;
    for (size_t i = 0; i < length; i++) count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

bool nib_jinja_length(nib_jinja_value value, size_t *length)
{
    switch (value.kind) {
    case NIB_JINJA_UNDEFINED:
        *length = 0;
        return true;
    case NIB_JINJA_STRING:
        *length = count_codepoints(value.string.bytes, value.string.length);
        return true;
    case NIB_JINJA_LIST:
    case NIB_JINJA_TUPLE:
    case NIB_JINJA_RANGE:
    case NIB_JINJA_VIEW:
        *length = value.sequence->count;
        return true;
    case NIB_JINJA_DICT:
        *length = value.dict->count;
        return true;
    default:
        return false;
    }
}

/* ---- truth, equality, order ---- */

bool nib_jinja_is_sequence_kind(nib_jinja_value value)
{
    return value.kind >= NIB_JINJA_LIST && value.kind <= NIB_JINJA_GENERATOR;
}

bool nib_jinja_is_string(nib_jinja_value value, const char *text)
{
    return value.kind == NIB_JINJA_STRING && value.string.length == strlen(text) &&
           memcmp(value.string.bytes, text, value.string.length) == 0;
}

bool nib_jinja_truthy(nib_jinja_value value)
{
    switch (value.kind) {
    case NIB_JINJA_UNDEFINED:
    case NIB_JINJA_NONE:
        return false;
    case NIB_JINJA_BOOL:
        return value.boolean;
    case NIB_JINJA_INTEGER:
        return value.integer != 0;
    case NIB_JINJA_FLOAT:
        return value.number != 0.0;
    case NIB_JINJA_STRING:
        return value.string.length > 0;
    case NIB_JINJA_LIST:
    case NIB_JINJA_TUPLE:
    case NIB_JINJA_RANGE:
    case NIB_JINJA_VIEW:
        return value.sequence->count > 0;
    case NIB_JINJA_DICT:
        return value.dict->count > 0;
    default:
        return true;
    }
}

bool nib_jinja_is_number(nib_jinja_value value)
{
    return value.kind == NIB_JINJA_BOOL || value.kind == NIB_JINJA_INTEGER || value.kind == NIB_JINJA_FLOAT;
}

double nib_jinja_as_float(nib_jinja_value number)
{
    if (number.kind == NIB_JINJA_FLOAT) return number.number;
    return number.kind == NIB_JINJA_BOOL ? (double)number.boolean : (double)number.integer;
}

static int compare_numbers(nib_jinja_value a, nib_jinja_value b)
{
    if (a.kind == NIB_JINJA_FLOAT || b.kind == NIB_JINJA_FLOAT) {
        double x = nib_jinja_as_float(a), y = nib_jinja_as_float(b);
        return (x > y) - (x < y);
    }
    int64_t x = a.kind == NIB_JINJA_BOOL ? a.boolean : a.integer, y = b.kind == NIB_JINJA_BOOL ? b.boolean : b.integer;
    return (x > y) - (x < y);
}

/* UTF-8 sorts by bytes as Unicode sorts by code points. */
static int compare_strings(nib_jinja_value a, nib_jinja_value b)
{
    size_t common = a.string.length < b.string.length ? a.string.length : b.string.length;
    int order = common > 0 ? memcmp(a.string.bytes, b.string.bytes, common) : 0;
    return order != 0 ? order : (a.string.length > b.string.length) - (a.string.length < b.string.length);
}

static nib_status dicts_equal(nib_jinja_render *render, const nib_jinja_dict *a, nib_jinja_value b, bool *equal)
{
    *equal = a->count == b.dict->count;
    for (size_t i = 0; i < a->count && *equal; i++) {
        const nib_jinja_value *other;
        NIB_TRY(nib_jinja_dict_get(render, b, a->keys[i], &other));
        *equal = other != NULL;
        if (other != NULL) NIB_TRY(nib_jinja_equal(render, a->values[i], *other, equal));
    }
    return NIB_OK;
}

static nib_status sequences_equal(nib_jinja_render *render, const nib_jinja_sequence *a, const nib_jinja_sequence *b,
                                  bool *equal)
{
    *equal = a->count == b->count;
    for (size_t i = 0; i < a->count && *equal; i++) NIB_TRY(nib_jinja_equal(render, a->items[i], b->items[i], equal));
    return NIB_OK;
}

nib_status nib_jinja_equal(nib_jinja_render *render, nib_jinja_value a, nib_jinja_value b, bool *equal)
{
    *equal = false;
    if (nib_jinja_is_number(a) && nib_jinja_is_number(b)) {
        bool nan = isnan(nib_jinja_as_float(a)) || isnan(nib_jinja_as_float(b));
        *equal = !nan && compare_numbers(a, b) == 0;
        return NIB_OK;
    }
    if (a.kind != b.kind) return NIB_OK;
    NIB_TRY(nib_jinja_charge(render, 1));
    NIB_TRY(nib_jinja_enter(render));
    switch (a.kind) {
    case NIB_JINJA_UNDEFINED:
    case NIB_JINJA_NONE:
        *equal = true;
        break;
    case NIB_JINJA_STRING:
        *equal = compare_strings(a, b) == 0;
        break;
    case NIB_JINJA_LIST:
    case NIB_JINJA_TUPLE:
    case NIB_JINJA_RANGE:
        NIB_TRY(sequences_equal(render, a.sequence, b.sequence, equal));
        break;
    case NIB_JINJA_DICT:
        NIB_TRY(dicts_equal(render, a.dict, b, equal));
        break;
    case NIB_JINJA_FUNCTION:
        *equal = a.function == b.function;
        break;
    default:
        *equal = a.sequence == b.sequence;
        break; /* by identity */
    }
    nib_jinja_leave(render);
    return NIB_OK;
}

nib_status nib_jinja_compare(nib_jinja_render *render, const char *operator, nib_jinja_value a, nib_jinja_value b,
                             int *order)
{
    if (nib_jinja_is_number(a) && nib_jinja_is_number(b)) {
        *order = compare_numbers(a, b);
        return NIB_OK;
    }
    if (a.kind == NIB_JINJA_STRING && b.kind == NIB_JINJA_STRING) {
        *order = compare_strings(a, b);
        return NIB_OK;
    }
    if (a.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, a);
    if (b.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, b);
    if (a.kind != b.kind || (a.kind != NIB_JINJA_LIST && a.kind != NIB_JINJA_TUPLE))
        return nib_jinja_fail(render, "'%s' not supported between instances of '%s' and '%s'", operator,
                              nib_jinja_type_name(a), nib_jinja_type_name(b));
    NIB_TRY(nib_jinja_enter(render));
    const nib_jinja_sequence *x = a.sequence, *y = b.sequence;
    *order = (x->count > y->count) - (x->count < y->count);
    for (size_t i = 0; i < x->count && i < y->count; i++) {
        bool equal;
        NIB_TRY(nib_jinja_equal(render, x->items[i], y->items[i], &equal));
        if (equal) continue;
        NIB_TRY(nib_jinja_compare(render, operator, x->items[i], y->items[i], order));
        break;
    }
    nib_jinja_leave(render);
    return NIB_OK;
}

/* ---- names, undefined, JSON ---- */

const char *nib_jinja_type_name(nib_jinja_value value)
{
    static const char *const names[] = {
        [NIB_JINJA_UNDEFINED] = "Undefined", [NIB_JINJA_NONE] = "NoneType",       [NIB_JINJA_BOOL] = "bool",
        [NIB_JINJA_INTEGER] = "int",         [NIB_JINJA_FLOAT] = "float",         [NIB_JINJA_STRING] = "str",
        [NIB_JINJA_LIST] = "list",           [NIB_JINJA_TUPLE] = "tuple",         [NIB_JINJA_RANGE] = "range",
        [NIB_JINJA_VIEW] = "dict view",      [NIB_JINJA_GENERATOR] = "generator", [NIB_JINJA_DICT] = "dict",
        [NIB_JINJA_NAMESPACE] = "Namespace", [NIB_JINJA_FUNCTION] = "function",   [NIB_JINJA_MACRO] = "Macro",
        [NIB_JINJA_LOOP] = "LoopContext",    [NIB_JINJA_CYCLER] = "Cycler",       [NIB_JINJA_JOINER] = "Joiner",
    };
    return names[value.kind];
}

nib_status nib_jinja_new_undefined(nib_jinja_render *render, nib_jinja_value name, const char *owner,
                                   nib_jinja_value *value)
{
    nib_jinja_missing *missing = nib_jinja_alloc(render, 1, sizeof *missing);
    if (missing == NULL) return nib_jinja_no_memory(render);
    *missing = (nib_jinja_missing){name, owner};
    *value = (nib_jinja_value){.kind = NIB_JINJA_UNDEFINED, .missing = missing};
    return NIB_OK;
}

nib_status nib_jinja_undefined_error(nib_jinja_render *render, nib_jinja_value value)
{
    const nib_jinja_missing *missing = value.missing;
    if (missing == NULL) return nib_jinja_fail(render, "an undefined value was used");
    nib_jinja_text text = {.render = render};
    nib_jinja_value name;
    nib_jinja_text_repr(&text, missing->name);
    NIB_TRY(nib_jinja_text_finish(&text, &name));
    int length = name.string.length < 200 ? (int)name.string.length : 200;
    if (missing->owner == NULL) return nib_jinja_fail(render, "%.*s is undefined", length, name.string.bytes);
    if (missing->name.kind != NIB_JINJA_STRING)
        return nib_jinja_fail(render, "%s object has no element %.*s", missing->owner, length, name.string.bytes);
    return nib_jinja_fail(render, "'%s object' has no attribute %.*s", missing->owner, length, name.string.bytes);
}

nib_status nib_jinja_from_json(nib_jinja_render *render, const nib_json *json, nib_jinja_value *value)
{
    switch (json->kind) {
    case NIB_JSON_NULL:
        *value = nib_jinja_none();
        return NIB_OK;
    case NIB_JSON_FALSE:
    case NIB_JSON_TRUE:
        *value = nib_jinja_bool(json->kind == NIB_JSON_TRUE);
        return NIB_OK;
    case NIB_JSON_NUMBER:
        *value = json->is_integer ? nib_jinja_integer(json->integer) : nib_jinja_float(json->number);
        return NIB_OK;
    case NIB_JSON_STRING:
        *value = nib_jinja_string(json->string, json->length);
        return NIB_OK;
    case NIB_JSON_ARRAY:
        NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, json->length, value));
        break;
    case NIB_JSON_OBJECT:
        NIB_TRY(nib_jinja_new_dict(render, NIB_JINJA_DICT, value));
        break;
    }
    NIB_TRY(nib_jinja_enter(render));
    for (const nib_json *child = json->first; child != NULL; child = child->next) {
        nib_jinja_value item;
        NIB_TRY(nib_jinja_from_json(render, child, &item));
        if (json->kind == NIB_JSON_ARRAY)
            NIB_TRY(nib_jinja_push(render, *value, item));
        else
            NIB_TRY(nib_jinja_dict_set(render, *value, nib_jinja_string(child->key, child->key_length), item));
    }
    nib_jinja_leave(render);
    return NIB_OK;
}
