#include "tokenizer/jinja_builtin.h"

#include "tokenizer/jinja_render.h"

#include <string.h>

static const nib_jinja_builtin *find(const nib_jinja_builtin *const *tables, const char *name, size_t length)
{
    for (; *tables != NULL; tables++)
        for (const nib_jinja_builtin *row = *tables; row->name != NULL; row++)
            if (strlen(row->name) == length && memcmp(row->name, name, length) == 0) return row;
    return NULL;
}

const nib_jinja_builtin *nib_jinja_find_filter(const char *name, size_t length)
{
    static const nib_jinja_builtin *const tables[] = {nib_jinja_text_filters, nib_jinja_sequence_filters,
                                                      nib_jinja_selection_filters, nib_jinja_number_filters, NULL};
    return find(tables, name, length);
}

const nib_jinja_builtin *nib_jinja_find_test(const char *name, size_t length)
{
    static const nib_jinja_builtin *const tables[] = {nib_jinja_tests, NULL};
    return find(tables, name, length);
}

const nib_jinja_builtin *nib_jinja_find_global(const char *name, size_t length)
{
    static const nib_jinja_builtin *const tables[] = {nib_jinja_globals, NULL};
    return find(tables, name, length);
}

const nib_jinja_builtin *nib_jinja_find_method(nib_jinja_kind kind, const char *name, size_t length)
{
    static const nib_jinja_builtin *const strings[] = {nib_jinja_string_methods, nib_jinja_string_predicates, NULL};
    static const nib_jinja_builtin *const dicts[] = {nib_jinja_dict_methods, NULL};
    static const nib_jinja_builtin *const sequences[] = {nib_jinja_sequence_methods, NULL};
    static const nib_jinja_builtin *const loops[] = {nib_jinja_loop_methods, NULL};
    switch (kind) {
    case NIB_JINJA_STRING:
        return find(strings, name, length);
    case NIB_JINJA_DICT:
        return find(dicts, name, length);
    case NIB_JINJA_LIST:
    case NIB_JINJA_TUPLE:
    case NIB_JINJA_RANGE:
        return find(sequences, name, length);
    case NIB_JINJA_LOOP:
    case NIB_JINJA_CYCLER:
        return find(loops, name, length);
    default:
        return NULL;
    }
}

bool nib_jinja_is_refused_method(nib_jinja_kind kind, const char *name, size_t length)
{
    static const char *const of_lists[] = {"append", "clear",   "extend", "insert", "pop",
                                           "remove", "reverse", "sort",   NULL};
    static const char *const of_dicts[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    const char *const *names = kind == NIB_JINJA_LIST ? of_lists : kind == NIB_JINJA_DICT ? of_dicts : NULL;
    for (; names != NULL && *names != NULL; names++)
        if (strlen(*names) == length && memcmp(*names, name, length) == 0) return true;
    return false;
}

/* Position of a parameter in "a b c"; -1 if it is not among them. *count: how many there are. */
static int parameter_index(const char *parameters, nib_jinja_value name, int *count)
{
    int found = -1;
    *count = 0;
    while (*parameters != 0) {
        size_t length = strcspn(parameters, " ");
        if (name.kind == NIB_JINJA_STRING && name.string.length == length &&
            memcmp(parameters, name.string.bytes, length) == 0)
            found = *count;
        ++*count;
        parameters += length;
        parameters += strspn(parameters, " ");
    }
    return found;
}

static nib_status bind(nib_jinja_render *render, const nib_jinja_builtin *builtin, const nib_jinja_arguments *arguments,
                       nib_jinja_call *call)
{
    int count;
    parameter_index(builtin->parameters, (nib_jinja_value){0}, &count);
    if (arguments->count > (size_t)count)
        return nib_jinja_fail(render, "%s() takes %d arguments, got %zu", builtin->name, count, arguments->count);
    for (size_t i = 0; i < arguments->count; i++) {
        call->values[i] = arguments->positional[i];
        call->given[i] = true;
    }
    for (size_t i = 0; i < arguments->named_count; i++) {
        nib_jinja_value name = arguments->names[i];
        int at = parameter_index(builtin->parameters, name, &count);
        if (at < 0)
            return nib_jinja_fail(render, "%s() got an unexpected keyword argument '%.*s'", builtin->name,
                                  (int)name.string.length, name.string.bytes);
        if (call->given[at])
            return nib_jinja_fail(render, "%s() got multiple values for argument '%.*s'", builtin->name,
                                  (int)name.string.length, name.string.bytes);
        call->values[at] = arguments->named[i];
        call->given[at] = true;
    }
    for (int i = 0; i < builtin->required; i++)
        if (!call->given[i])
            return nib_jinja_fail(render, "%s() is missing argument %d of (%s)", builtin->name, i + 1,
                                  builtin->parameters);
    return NIB_OK;
}

nib_status nib_jinja_run_builtin(nib_jinja_render *render, const nib_jinja_builtin *builtin, nib_jinja_value subject,
                                 const nib_jinja_arguments *arguments, nib_jinja_value *result)
{
    nib_jinja_call call = {.subject = subject, .arguments = arguments, .function = builtin->name};
    if (strcmp(builtin->parameters, "*") != 0) NIB_TRY(bind(render, builtin, arguments, &call));
    return builtin->run(render, &call, result);
}
