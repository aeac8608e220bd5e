/* The tests of `is`, which also serve select, reject, selectattr and rejectattr. */
#include "tokenizer/jinja_render.h"

#include <string.h>

#define KIND_TEST(name, expression)                                                                                    \
    static nib_status test_##name(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)       \
    {                                                                                                                  \
        (void)render;                                                                                                  \
        nib_jinja_value value = call->subject;                                                                         \
        *result = nib_jinja_bool(expression);                                                                          \
        return NIB_OK;                                                                                                 \
    }

KIND_TEST(defined, value.kind != NIB_JINJA_UNDEFINED)
KIND_TEST(undefined, value.kind == NIB_JINJA_UNDEFINED)
KIND_TEST(none, value.kind == NIB_JINJA_NONE)
KIND_TEST(boolean, value.kind == NIB_JINJA_BOOL)
KIND_TEST(true, value.kind == NIB_JINJA_BOOL && value.boolean)
KIND_TEST(false, value.kind == NIB_JINJA_BOOL && !value.boolean)
KIND_TEST(integer, value.kind == NIB_JINJA_INTEGER)
KIND_TEST(float, value.kind == NIB_JINJA_FLOAT)
KIND_TEST(number, nib_jinja_is_number(value))
KIND_TEST(string, value.kind == NIB_JINJA_STRING)
KIND_TEST(mapping, value.kind == NIB_JINJA_DICT)
KIND_TEST(sequence, value.kind == NIB_JINJA_UNDEFINED || value.kind == NIB_JINJA_STRING ||
                        value.kind == NIB_JINJA_DICT || value.kind == NIB_JINJA_LIST || value.kind == NIB_JINJA_TUPLE ||
                        value.kind == NIB_JINJA_RANGE)
KIND_TEST(iterable, value.kind == NIB_JINJA_UNDEFINED || value.kind == NIB_JINJA_STRING ||
                        value.kind == NIB_JINJA_DICT || value.kind == NIB_JINJA_LOOP ||
                        nib_jinja_is_sequence_kind(value))
KIND_TEST(callable, value.kind == NIB_JINJA_FUNCTION || value.kind == NIB_JINJA_MACRO || value.kind == NIB_JINJA_LOOP ||
                        value.kind == NIB_JINJA_JOINER || value.kind == NIB_JINJA_UNDEFINED)

static nib_status relation(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_operator op,
                           nib_jinja_value *result)
{
    bool holds;
    NIB_TRY(nib_jinja_relation(render, op, call->subject, call->values[0], &holds));
    *result = nib_jinja_bool(holds);
    return NIB_OK;
}

#define RELATION_TEST(name, op)                                                                                        \
    static nib_status test_##name(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)       \
    {                                                                                                                  \
        return relation(render, call, op, result);                                                                     \
    }

RELATION_TEST(equal, NIB_JINJA_EQUAL)
RELATION_TEST(not_equal, NIB_JINJA_NOT_EQUAL)
RELATION_TEST(less, NIB_JINJA_LESS)
RELATION_TEST(less_equal, NIB_JINJA_LESS_EQUAL)
RELATION_TEST(greater, NIB_JINJA_GREATER)
RELATION_TEST(greater_equal, NIB_JINJA_GREATER_EQUAL)
RELATION_TEST(in, NIB_JINJA_IN)

static nib_status remainder_is(nib_jinja_render *render, nib_jinja_value a, int64_t b, int64_t expected,
                               nib_jinja_value *result)
{
    nib_jinja_value remainder;
    bool equal;
    NIB_TRY(nib_jinja_binary(render, NIB_JINJA_MODULO, a, nib_jinja_integer(b), &remainder));
    NIB_TRY(nib_jinja_equal(render, remainder, nib_jinja_integer(expected), &equal));
    *result = nib_jinja_bool(equal);
    return NIB_OK;
}

static nib_status test_odd(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return remainder_is(render, call->subject, 2, 1, result);
}

static nib_status test_even(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return remainder_is(render, call->subject, 2, 0, result);
}

static nib_status test_divisibleby(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->values[0].kind != NIB_JINJA_INTEGER) return nib_jinja_fail(render, "divisibleby takes an integer");
    return remainder_is(render, call->subject, call->values[0].integer, 0, result);
}

/* str(value).islower() or isupper() */
static nib_status has_case(nib_jinja_render *render, const nib_jinja_call *call, const char *method,
                           nib_jinja_value *result)
{
    static const nib_jinja_arguments none = {0};
    nib_jinja_value text;
    NIB_TRY(nib_jinja_to_string(render, call->subject, &text));
    return nib_jinja_run_builtin(render, nib_jinja_find_method(NIB_JINJA_STRING, method, strlen(method)), text, &none,
                                 result);
}

static nib_status test_lower(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return has_case(render, call, "islower", result);
}

static nib_status test_upper(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return has_case(render, call, "isupper", result);
}

static nib_status test_sameas(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value a = call->subject, b = call->values[0];
    bool equal = false;
    if (a.kind == b.kind && (nib_jinja_is_sequence_kind(a) || a.kind == NIB_JINJA_DICT))
        equal = a.sequence == b.sequence;
    else if (a.kind == b.kind)
        NIB_TRY(nib_jinja_equal(render, a, b, &equal));
    *result = nib_jinja_bool(equal);
    return NIB_OK;
}

static nib_status builtin_exists(nib_jinja_render *render, const nib_jinja_call *call,
                                 const nib_jinja_builtin *(*find)(const char *, size_t), nib_jinja_value *result)
{
    if (call->subject.kind != NIB_JINJA_STRING) return nib_jinja_fail(render, "%s takes a name", call->function);
    *result = nib_jinja_bool(find(call->subject.string.bytes, call->subject.string.length) != NULL);
    return NIB_OK;
}

static nib_status test_filter(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return builtin_exists(render, call, nib_jinja_find_filter, result);
}

static nib_status test_test(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return builtin_exists(render, call, nib_jinja_find_test, result);
}

const nib_jinja_builtin nib_jinja_tests[] = {
    {"defined", "", 0, test_defined},
    {"undefined", "", 0, test_undefined},
    {"none", "", 0, test_none},
    {"boolean", "", 0, test_boolean},
    {"true", "", 0, test_true},
    {"false", "", 0, test_false},
    {"integer", "", 0, test_integer},
    {"float", "", 0, test_float},
    {"number", "", 0, test_number},
    {"string", "", 0, test_string},
    {"mapping", "", 0, test_mapping},
    {"sequence", "", 0, test_sequence},
    {"iterable", "", 0, test_iterable},
    {"callable", "", 0, test_callable},
    {"odd", "", 0, test_odd},
    {"even", "", 0, test_even},
    {"divisibleby", "num", 1, test_divisibleby},
    {"lower", "", 0, test_lower},
    {"upper", "", 0, test_upper},
    {"sameas", "other", 1, test_sameas},
    {"filter", "", 0, test_filter},
    {"test", "", 0, test_test},
    {"in", "seq", 1, test_in},
    {"==", "other", 1, test_equal},
    {"eq", "other", 1, test_equal},
    {"equalto", "other", 1, test_equal},
    {"!=", "other", 1, test_not_equal},
    {"ne", "other", 1, test_not_equal},
    {"<", "other", 1, test_less},
    {"lt", "other", 1, test_less},
    {"lessthan", "other", 1, test_less},
    {"<=", "other", 1, test_less_equal},
    {"le", "other", 1, test_less_equal},
    {">", "other", 1, test_greater},
    {"gt", "other", 1, test_greater},
    {"greaterthan", "other", 1, test_greater},
    {">=", "other", 1, test_greater_equal},
    {"ge", "other", 1, test_greater_equal},
    {NULL, NULL, 0, NULL},
};
