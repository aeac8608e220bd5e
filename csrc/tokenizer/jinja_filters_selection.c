/* map, select, reject, selectattr and rejectattr: filters that apply other filters and tests, item by item. */
#include "tokenizer/jinja_render.h"

static nib_jinja_arguments without_first(const nib_jinja_arguments *arguments, size_t count)
{
    nib_jinja_arguments rest = *arguments;
    rest.positional += count;
    rest.count -= count;
    return rest;
}

static const nib_jinja_value *named(const nib_jinja_arguments *arguments, const char *name)
{
    for (size_t i = 0; i < arguments->named_count; i++)
        if (nib_jinja_is_string(arguments->names[i], name)) return &arguments->named[i];
    return NULL;
}

static nib_status filter_map(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_arguments *arguments = call->arguments;
    const nib_jinja_value *path = named(arguments, "attribute"), *fallback = named(arguments, "default"), *items;
    const nib_jinja_builtin *filter = NULL;
    nib_jinja_arguments rest = {0};
    size_t count;
    if (arguments->count > 0) {
        nib_jinja_value name = arguments->positional[0];
        if (name.kind == NIB_JINJA_STRING) filter = nib_jinja_find_filter(name.string.bytes, name.string.length);
        if (filter == NULL) return nib_jinja_fail(render, "map: there is no such filter");
        rest = without_first(arguments, 1);
    } else if (path == NULL) {
        return nib_jinja_fail(render, "map requires a filter argument");
    }
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_GENERATOR, count, result));
    for (size_t i = 0; i < count; i++) {
        nib_jinja_value item;
        if (filter != NULL)
            NIB_TRY(nib_jinja_run_builtin(render, filter, items[i], &rest, &item));
        else
            NIB_TRY(nib_jinja_path(render, items[i], *path, fallback, &item));
        NIB_TRY(nib_jinja_push(render, *result, item));
    }
    return NIB_OK;
}

/* Keeps the items that pass the test (truth, if none is named), or that fail it. by_attribute: the first argument names
 * what of the item is tested. */
static nib_status keep(nib_jinja_render *render, const nib_jinja_call *call, bool by_attribute, bool passing,
                       nib_jinja_value *result)
{
    nib_jinja_arguments rest = *call->arguments;
    const nib_jinja_builtin *test = NULL;
    const nib_jinja_value *items;
    nib_jinja_value path = {0};
    size_t count;
    if (by_attribute) {
        if (rest.count == 0) return nib_jinja_fail(render, "Missing parameter for attribute name");
        path = rest.positional[0];
        rest = without_first(&rest, 1);
    }
    if (rest.count > 0) {
        nib_jinja_value name = rest.positional[0];
        if (name.kind == NIB_JINJA_STRING) test = nib_jinja_find_test(name.string.bytes, name.string.length);
        if (test == NULL) return nib_jinja_fail(render, "%s: there is no such test", call->function);
        rest = without_first(&rest, 1);
    }
    NIB_TRY(nib_jinja_items(render, call->subject, &items, &count));
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_GENERATOR, 0, result));
    for (size_t i = 0; i < count; i++) {
        nib_jinja_value subject = items[i];
        if (by_attribute) NIB_TRY(nib_jinja_path(render, subject, path, NULL, &subject));
        if (test != NULL) NIB_TRY(nib_jinja_run_builtin(render, test, subject, &rest, &subject));
        if (nib_jinja_truthy(subject) == passing) NIB_TRY(nib_jinja_push(render, *result, items[i]));
    }
    return NIB_OK;
}

static nib_status filter_select(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return keep(render, call, false, true, result);
}

static nib_status filter_reject(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return keep(render, call, false, false, result);
}

static nib_status filter_selectattr(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return keep(render, call, true, true, result);
}

static nib_status filter_rejectattr(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return keep(render, call, true, false, result);
}

const nib_jinja_builtin nib_jinja_selection_filters[] = {
    {"map", "*", 0, filter_map},
    {"select", "*", 0, filter_select},
    {"reject", "*", 0, filter_reject},
    {"selectattr", "*", 0, filter_selectattr},
    {"rejectattr", "*", 0, filter_rejectattr},
    {NULL, NULL, 0, NULL},
};
