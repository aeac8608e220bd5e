/* Filters over sequences and dicts. */
#include "tokenizer/jinja_render.h"

#include <string.h>

static nib_status copy_items(nib_jinja_render *render, nib_jinja_value value, nib_jinja_kind kind,
                             nib_jinja_value *copy)
{
    const nib_jinja_value *items;
    size_t count;
    NIB_TRY(nib_jinja_items(render, value, &items, &count));
    NIB_TRY(nib_jinja_new_sequence(render, kind, count, copy));
    if (count > 0) memcpy(copy->sequence->items, items, count * sizeof *items);
    copy->sequence->count = count;
    return NIB_OK;
}

static nib_status filter_length(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    size_t length;
    if (!nib_jinja_length(call->subject, &length))
        return nib_jinja_fail(render, "object of type '%s' has no len()", nib_jinja_type_name(call->subject));
    *result = nib_jinja_integer((int64_t)length);
    return NIB_OK;
}

static nib_status filter_first(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *items;
    size_t count;
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    *result = count > 0 ? items[0] : (nib_jinja_value){0};
    if (call->subject.kind == NIB_JINJA_GENERATOR && count > 1) call->subject.sequence->next -= count - 1;
    return NIB_OK;
}

static nib_status filter_last(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *items;
    size_t count;
    if (call->subject.kind == NIB_JINJA_GENERATOR)
        return nib_jinja_fail(render, "'generator' object is not reversible");
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    *result = count > 0 ? items[count - 1] : (nib_jinja_value){0};
    return NIB_OK;
}

static nib_status filter_list(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return copy_items(render, call->subject, NIB_JINJA_LIST, result);
}

static nib_status filter_reverse(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value backwards[3] = {nib_jinja_none(), nib_jinja_none(), nib_jinja_integer(-1)};
    if (call->subject.kind == NIB_JINJA_STRING) return nib_jinja_slice(render, call->subject, backwards, result);
    NIB_TRY(copy_items(render, call->subject, NIB_JINJA_GENERATOR, result));
    nib_jinja_value *items = result->sequence->items;
    for (size_t i = 0, j = result->sequence->count; i + 1 < j; i++) {
        nib_jinja_value swapped = items[i];
        items[i] = items[--j];
        items[j] = swapped;
    }
    return NIB_OK;
}

static nib_status filter_join(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *items;
    size_t count;
    nib_jinja_text text = {.render = render};
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    for (size_t i = 0; i < count; i++) {
        nib_jinja_value item = items[i];
        if (call->given[1] && call->values[1].kind != NIB_JINJA_NONE)
            NIB_TRY(nib_jinja_path(render, item, call->values[1], NULL, &item));
        if (i > 0) nib_jinja_text_str(&text, call->values[0]);
        nib_jinja_text_str(&text, item);
    }
    return nib_jinja_text_finish(&text, result);
}

static nib_status new_pair(nib_jinja_render *render, nib_jinja_value a, nib_jinja_value b, nib_jinja_value *pair)
{
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_TUPLE, 2, pair));
    NIB_TRY(nib_jinja_push(render, *pair, a));
    return nib_jinja_push(render, *pair, b);
}

/* A list of (key, value); kind is what to make of it. */
static nib_status pairs_of(nib_jinja_render *render, const nib_jinja_dict *dict, nib_jinja_kind kind,
                           nib_jinja_value *result)
{
    NIB_TRY(nib_jinja_new_sequence(render, kind, dict->count, result));
    for (size_t i = 0; i < dict->count; i++) {
        nib_jinja_value pair;
        NIB_TRY(new_pair(render, dict->keys[i], dict->values[i], &pair));
        NIB_TRY(nib_jinja_push(render, *result, pair));
    }
    return NIB_OK;
}

static nib_status filter_items(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->subject.kind == NIB_JINJA_UNDEFINED)
        return nib_jinja_new_sequence(render, NIB_JINJA_GENERATOR, 0, result);
    if (call->subject.kind != NIB_JINJA_DICT) return nib_jinja_fail(render, "Can only get item pairs from a mapping.");
    return pairs_of(render, call->subject.dict, NIB_JINJA_GENERATOR, result);
}

/* What sorting and grouping look at: the attribute of an item, in lower case unless case matters. */
static nib_status key_of(nib_jinja_render *render, nib_jinja_value item, nib_jinja_value path,
                         const nib_jinja_value *fallback, bool case_sensitive, nib_jinja_value *key)
{
    *key = item;
    if (path.kind != NIB_JINJA_UNDEFINED && path.kind != NIB_JINJA_NONE)
        NIB_TRY(nib_jinja_path(render, item, path, fallback, key));
    if (!case_sensitive && key->kind == NIB_JINJA_STRING)
        return nib_jinja_change_case(render, *key, NIB_JINJA_LOWER, key);
    return NIB_OK;
}

/* The keys of all items of a list, as a list. For sorting, "a,b" is the tuple of the attributes a and b. */
static nib_status keys_of(nib_jinja_render *render, nib_jinja_value list, nib_jinja_value path,
                          const nib_jinja_value *fallback, bool case_sensitive, nib_jinja_value *keys)
{
    const char *comma = path.kind == NIB_JINJA_STRING ? memchr(path.string.bytes, ',', path.string.length) : NULL;
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, list.sequence->count, keys));
    for (size_t i = 0; i < list.sequence->count; i++) {
        nib_jinja_value key, part, item = list.sequence->items[i];
        if (comma == NULL) {
            NIB_TRY(key_of(render, item, path, fallback, case_sensitive, &key));
        } else {
            NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_TUPLE, 2, &key));
            for (size_t at = 0; at <= path.string.length;) {
                const char *start = path.string.bytes + at;
                const char *end = at < path.string.length ? memchr(start, ',', path.string.length - at) : NULL;
                size_t length = end != NULL ? (size_t)(end - start) : path.string.length - at;
                NIB_TRY(key_of(render, item, nib_jinja_string(start, length), fallback, case_sensitive, &part));
                NIB_TRY(nib_jinja_push(render, key, part));
                at += length + 1;
            }
        }
        NIB_TRY(nib_jinja_push(render, *keys, key));
    }
    return NIB_OK;
}

static nib_status sort_list(nib_jinja_render *render, nib_jinja_value list, nib_jinja_value path,
                            const nib_jinja_value *fallback, bool case_sensitive, bool reverse)
{
    nib_jinja_value keys;
    NIB_TRY(keys_of(render, list, path, fallback, case_sensitive, &keys));
    return nib_jinja_sort(render, keys.sequence->items, list.sequence->items, list.sequence->count, reverse);
}

static nib_status filter_sort(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    NIB_TRY(copy_items(render, call->subject, NIB_JINJA_LIST, result));
    return sort_list(render, *result, call->values[2], NULL, nib_jinja_truthy(call->values[1]),
                     nib_jinja_truthy(call->values[0]));
}

static nib_status filter_dictsort(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    bool by_value = nib_jinja_is_string(call->values[1], "value");
    if (call->subject.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, call->subject);
    if (call->subject.kind != NIB_JINJA_DICT) return nib_jinja_fail(render, "dictsort takes a mapping");
    if (call->given[1] && !by_value && !nib_jinja_is_string(call->values[1], "key"))
        return nib_jinja_fail(render, "You can only sort by either \"key\" or \"value\"");
    NIB_TRY(pairs_of(render, call->subject.dict, NIB_JINJA_LIST, result));
    return sort_list(render, *result, nib_jinja_integer(by_value), NULL, nib_jinja_truthy(call->values[0]),
                     nib_jinja_truthy(call->values[2]));
}

static nib_status filter_unique(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value list, keys, seen;
    NIB_TRY(copy_items(render, call->subject, NIB_JINJA_LIST, &list));
    NIB_TRY(keys_of(render, list, call->values[1], NULL, nib_jinja_truthy(call->values[0]), &keys));
    NIB_TRY(nib_jinja_new_dict(render, NIB_JINJA_DICT, &seen));
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_GENERATOR, 0, result));
    for (size_t i = 0; i < list.sequence->count; i++) {
        size_t before = seen.dict->count;
        NIB_TRY(nib_jinja_dict_set(render, seen, keys.sequence->items[i], nib_jinja_none()));
        if (seen.dict->count > before) NIB_TRY(nib_jinja_push(render, *result, list.sequence->items[i]));
    }
    return NIB_OK;
}

static nib_status extreme(nib_jinja_render *render, const nib_jinja_call *call, int wanted, nib_jinja_value *result)
{
    nib_jinja_value list, keys;
    size_t best = 0;
    NIB_TRY(copy_items(render, call->subject, NIB_JINJA_LIST, &list));
    NIB_TRY(keys_of(render, list, call->values[1], NULL, nib_jinja_truthy(call->values[0]), &keys));
    for (size_t i = 1; i < list.sequence->count; i++) {
        int order;
        NIB_TRY(nib_jinja_compare(render, wanted < 0 ? "<" : ">", keys.sequence->items[i], keys.sequence->items[best],
                                  &order));
        if (wanted < 0 ? order < 0 : order > 0) best = i;
    }
    *result = list.sequence->count > 0 ? list.sequence->items[best] : (nib_jinja_value){0};
    return NIB_OK;
}

static nib_status filter_min(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return extreme(render, call, -1, result);
}

static nib_status filter_max(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return extreme(render, call, 1, result);
}

static nib_status filter_sum(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *items;
    size_t count;
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    *result = call->given[1] ? call->values[1] : nib_jinja_integer(0);
    for (size_t i = 0; i < count; i++) {
        nib_jinja_value item = items[i];
        if (call->given[0] && call->values[0].kind != NIB_JINJA_NONE)
            NIB_TRY(nib_jinja_path(render, item, call->values[0], NULL, &item));
        NIB_TRY(nib_jinja_binary(render, NIB_JINJA_ADD, *result, item, result));
    }
    return NIB_OK;
}

static nib_status filter_batch(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *items;
    size_t count;
    nib_jinja_value row = {0};
    if (call->values[0].kind != NIB_JINJA_INTEGER || call->values[0].integer <= 0)
        return nib_jinja_fail(render, "batch takes a positive number of items");
    uint64_t width = (uint64_t)call->values[0].integer;
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_GENERATOR, 0, result));
    for (size_t i = 0; i < count; i++) {
        if (i % width == 0) {
            NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, &row));
            NIB_TRY(nib_jinja_push(render, *result, row));
        }
        NIB_TRY(nib_jinja_push(render, row, items[i]));
    }
    bool fills = call->given[1] && call->values[1].kind != NIB_JINJA_NONE && count > 0;
    while (fills && row.sequence->count < width) NIB_TRY(nib_jinja_push(render, row, call->values[1]));
    return NIB_OK;
}

/* slice(n): n columns, the first ones longer by one; fill_with evens the others out. */
static nib_status filter_slice(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *items;
    size_t count, at = 0;
    if (call->values[0].kind != NIB_JINJA_INTEGER || call->values[0].integer <= 0)
        return nib_jinja_fail(render, "slice takes a positive number of slices");
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_GENERATOR, 0, result));
    uint64_t slices = (uint64_t)call->values[0].integer, longer = count % slices;
    for (uint64_t i = 0; i < slices; i++) {
        nib_jinja_value column;
        NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, &column));
        for (size_t end = at + count / slices + (i < longer); at < end; at++)
            NIB_TRY(nib_jinja_push(render, column, items[at]));
        if (call->given[1] && call->values[1].kind != NIB_JINJA_NONE && i >= longer)
            NIB_TRY(nib_jinja_push(render, column, call->values[1]));
        NIB_TRY(nib_jinja_push(render, *result, column));
    }
    return NIB_OK;
}

static nib_status filter_groupby(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value list, keys, group = {0}, pair, shown;
    bool case_sensitive = nib_jinja_truthy(call->values[2]);
    const nib_jinja_value *fallback =
        call->given[1] && call->values[1].kind != NIB_JINJA_NONE ? &call->values[1] : NULL;
    NIB_TRY(copy_items(render, call->subject, NIB_JINJA_LIST, &list));
    NIB_TRY(sort_list(render, list, call->values[0], fallback, case_sensitive, false));
    NIB_TRY(keys_of(render, list, call->values[0], fallback, case_sensitive, &keys));
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, result));
    for (size_t i = 0; i < list.sequence->count; i++) {
        bool same = false;
        if (i > 0) NIB_TRY(nib_jinja_equal(render, keys.sequence->items[i - 1], keys.sequence->items[i], &same));
        if (!same) {
            NIB_TRY(key_of(render, list.sequence->items[i], call->values[0], fallback, true, &shown));
            NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, &group));
            NIB_TRY(new_pair(render, shown, group, &pair));
            pair.sequence->is_group = true;
            NIB_TRY(nib_jinja_push(render, *result, pair));
        }
        NIB_TRY(nib_jinja_push(render, group, list.sequence->items[i]));
    }
    return NIB_OK;
}

const nib_jinja_builtin nib_jinja_sequence_filters[] = {
    {"length", "", 0, filter_length},
    {"count", "", 0, filter_length},
    {"first", "", 0, filter_first},
    {"last", "", 0, filter_last},
    {"list", "", 0, filter_list},
    {"reverse", "", 0, filter_reverse},
    {"join", "d attribute", 0, filter_join},
    {"items", "", 0, filter_items},
    {"sort", "reverse case_sensitive attribute", 0, filter_sort},
    {"dictsort", "case_sensitive by reverse", 0, filter_dictsort},
    {"unique", "case_sensitive attribute", 0, filter_unique},
    {"min", "case_sensitive attribute", 0, filter_min},
    {"max", "case_sensitive attribute", 0, filter_max},
    {"sum", "attribute start", 0, filter_sum},
    {"batch", "linecount fill_with", 1, filter_batch},
    {"slice", "slices fill_with", 1, filter_slice},
    {"groupby", "attribute default case_sensitive", 1, filter_groupby},
    {NULL, NULL, 0, NULL},
};
