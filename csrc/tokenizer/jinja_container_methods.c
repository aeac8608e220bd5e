/* The methods of dicts and sequences that do not change them. */
#include "tokenizer/jinja_render.h"

/* ---- dicts ---- */

static nib_status dict_get(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_value *found;
    NIB_TRY(nib_jinja_dict_get(render, call->subject, call->values[0], &found));
    *result = found != NULL ? *found : call->given[1] ? call->values[1] : nib_jinja_none();
    return NIB_OK;
}

typedef enum { KEYS, VALUES, ITEMS } view_kind;

static nib_status make_view(nib_jinja_render *render, const nib_jinja_call *call, view_kind kind, nib_jinja_value *view)
{
    const nib_jinja_dict *dict = call->subject.dict;
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_VIEW, dict->count, view));
    for (size_t i = 0; i < dict->count; i++) {
        nib_jinja_value item = kind == KEYS ? dict->keys[i] : dict->values[i];
        if (kind == ITEMS) {
            NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_TUPLE, 2, &item));
            NIB_TRY(nib_jinja_push(render, item, dict->keys[i]));
            NIB_TRY(nib_jinja_push(render, item, dict->values[i]));
        }
        NIB_TRY(nib_jinja_push(render, *view, item));
    }
    return NIB_OK;
}

static nib_status dict_keys(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return make_view(render, call, KEYS, result);
}

static nib_status dict_values(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return make_view(render, call, VALUES, result);
}

static nib_status dict_items(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return make_view(render, call, ITEMS, result);
}

/* Nothing changes a list or dict, so a copy is the thing itself. */
static nib_status copy(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    (void)render;
    *result = call->subject;
    return NIB_OK;
}

const nib_jinja_builtin nib_jinja_dict_methods[] = {
    {"get", "key default", 1, dict_get}, {"keys", "", 0, dict_keys}, {"values", "", 0, dict_values},
    {"items", "", 0, dict_items},        {"copy", "", 0, copy},      {NULL, NULL, 0, NULL},
};

/* ---- sequences ---- */

static nib_status sequence_index(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_sequence *items = call->subject.sequence;
    for (size_t i = 0; i < items->count; i++) {
        bool equal;
        NIB_TRY(nib_jinja_charge(render, 1));
        NIB_TRY(nib_jinja_equal(render, items->items[i], call->values[0], &equal));
        *result = nib_jinja_integer((int64_t)i);
        if (equal) return NIB_OK;
    }
    return nib_jinja_fail(render, "the value is not in the %s", nib_jinja_type_name(call->subject));
}

static nib_status sequence_count(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    const nib_jinja_sequence *items = call->subject.sequence;
    int64_t count = 0;
    for (size_t i = 0; i < items->count; i++) {
        bool equal;
        NIB_TRY(nib_jinja_charge(render, 1));
        NIB_TRY(nib_jinja_equal(render, items->items[i], call->values[0], &equal));
        count += equal;
    }
    *result = nib_jinja_integer(count);
    return NIB_OK;
}

const nib_jinja_builtin nib_jinja_sequence_methods[] = {
    {"index", "value", 1, sequence_index},
    {"count", "value", 1, sequence_count},
    {"copy", "", 0, copy},
    {NULL, NULL, 0, NULL},
};
