/* Arithmetic, comparison and membership, as Python's operators. */
#include "tokenizer/jinja_render.h"

#include <math.h>
#include <string.h>

static nib_status unsupported(nib_jinja_render *render, const char *sign, nib_jinja_value a, nib_jinja_value b)
{
    if (a.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, a);
    if (b.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, b);
    if (strcmp(sign, "+") == 0 && a.kind == NIB_JINJA_STRING)
        return nib_jinja_fail(render, "can only concatenate str (not \"%s\") to str", nib_jinja_type_name(b));
    return nib_jinja_fail(render, "unsupported operand type(s) for %s: '%s' and '%s'", sign, nib_jinja_type_name(a),
                          nib_jinja_type_name(b));
}

static int64_t as_integer(nib_jinja_value value)
{
    return value.kind == NIB_JINJA_BOOL ? value.boolean : value.integer;
}

static nib_status integer_power(nib_jinja_render *render, int64_t base, int64_t exponent, nib_jinja_value *result)
{
    if (exponent < 0) {
        if (base == 0) return nib_jinja_fail(render, "0.0 cannot be raised to a negative power");
        *result = nib_jinja_float(pow((double)base, (double)exponent));
        return NIB_OK;
    }
    int64_t power = 1;
    bool overflow = false;
    while (exponent > 0 && !overflow) {
        if (exponent & 1) overflow = __builtin_mul_overflow(power, base, &power);
        exponent >>= 1;
        if (exponent > 0) overflow |= __builtin_mul_overflow(base, base, &base);
    }
    if (overflow) return nib_jinja_fail(render, "a power of more than 64 bits");
    *result = nib_jinja_integer(power);
    return NIB_OK;
}

/* Quotient and remainder rounded towards minus infinity. b is neither 0 nor -1. */
static int64_t floor_quotient(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }

static nib_status integer_arithmetic(nib_jinja_render *render, nib_jinja_operator op, int64_t a, int64_t b,
                                     nib_jinja_value *result)
{
    int64_t value = 0;
    bool overflow = false;
    switch (op) {
    case NIB_JINJA_ADD:
        overflow = __builtin_add_overflow(a, b, &value);
        break;
    case NIB_JINJA_SUBTRACT:
        overflow = __builtin_sub_overflow(a, b, &value);
        break;
    case NIB_JINJA_MULTIPLY:
        overflow = __builtin_mul_overflow(a, b, &value);
        break;
    case NIB_JINJA_POWER:
        return integer_power(render, a, b, result);
    case NIB_JINJA_DIVIDE:
        if (b == 0) return nib_jinja_fail(render, "division by zero");
        *result = nib_jinja_float((double)a / (double)b);
        return NIB_OK;
    default:
        if (b == 0) return nib_jinja_fail(render, "integer division or modulo by zero");
        if (b == -1)
            overflow = op == NIB_JINJA_FLOOR_DIVIDE && __builtin_sub_overflow((int64_t)0, a, &value);
        else
            value = op == NIB_JINJA_FLOOR_DIVIDE ? floor_quotient(a, b) : a - floor_quotient(a, b) * b;
        break;
    }
    if (overflow) return nib_jinja_fail(render, "an integer of more than 64 bits");
    *result = nib_jinja_integer(value);
    return NIB_OK;
}

static nib_status float_arithmetic(nib_jinja_render *render, nib_jinja_operator op, double a, double b,
                                   nib_jinja_value *result)
{
    bool divides = op == NIB_JINJA_DIVIDE || op == NIB_JINJA_FLOOR_DIVIDE || op == NIB_JINJA_MODULO;
    if (divides && b == 0.0) return nib_jinja_fail(render, "float division by zero");
    double remainder = divides ? fmod(a, b) : 0.0;
    if (remainder != 0.0 && (remainder < 0.0) != (b < 0.0)) remainder += b;
    switch (op) {
    case NIB_JINJA_ADD:
        *result = nib_jinja_float(a + b);
        break;
    case NIB_JINJA_SUBTRACT:
        *result = nib_jinja_float(a - b);
        break;
    case NIB_JINJA_MULTIPLY:
        *result = nib_jinja_float(a * b);
        break;
    case NIB_JINJA_DIVIDE:
        *result = nib_jinja_float(a / b);
        break;
    case NIB_JINJA_FLOOR_DIVIDE:
        *result = nib_jinja_float(round((a - remainder) / b));
        break;
    case NIB_JINJA_MODULO:
        *result = nib_jinja_float(remainder == 0.0 ? copysign(0.0, b) : remainder);
        break;
    default:
        if (a == 0.0 && b < 0.0) return nib_jinja_fail(render, "0.0 cannot be raised to a negative power");
        if (a < 0.0 && b != floor(b)) return nib_jinja_fail(render, "a negative number to a fractional power");
        *result = nib_jinja_float(pow(a, b));
        break;
    }
    return NIB_OK;
}

static nib_status join_sequences(nib_jinja_render *render, nib_jinja_value a, nib_jinja_value b,
                                 nib_jinja_value *result)
{
    NIB_TRY(nib_jinja_new_sequence(render, a.kind, a.sequence->count + b.sequence->count, result));
    for (size_t i = 0; i < a.sequence->count; i++) NIB_TRY(nib_jinja_push(render, *result, a.sequence->items[i]));
    for (size_t i = 0; i < b.sequence->count; i++) NIB_TRY(nib_jinja_push(render, *result, b.sequence->items[i]));
    return NIB_OK;
}

/* "ab" * 3, [1] * 3 */
static nib_status repeat(nib_jinja_render *render, nib_jinja_value value, int64_t times, nib_jinja_value *result)
{
    if (value.kind == NIB_JINJA_STRING) {
        nib_jinja_text text = {.render = render};
        for (int64_t i = 0; i < times && text.status == NIB_OK && value.string.length > 0; i++)
            nib_jinja_text_append(&text, value.string.bytes, value.string.length);
        return nib_jinja_text_finish(&text, result);
    }
    NIB_TRY(nib_jinja_new_sequence(render, value.kind, 0, result));
    for (int64_t i = 0; i < times && value.sequence->count > 0; i++)
        for (size_t j = 0; j < value.sequence->count; j++)
            NIB_TRY(nib_jinja_push(render, *result, value.sequence->items[j]));
    return NIB_OK;
}

static bool is_repeatable(nib_jinja_value value)
{
    return value.kind == NIB_JINJA_STRING || value.kind == NIB_JINJA_LIST || value.kind == NIB_JINJA_TUPLE;
}

static bool is_integral(nib_jinja_value value)
{
    return value.kind == NIB_JINJA_BOOL || value.kind == NIB_JINJA_INTEGER;
}

nib_status nib_jinja_binary(nib_jinja_render *render, nib_jinja_operator op, nib_jinja_value a, nib_jinja_value b,
                            nib_jinja_value *result)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};
    if (is_integral(a) && is_integral(b)) return integer_arithmetic(render, op, as_integer(a), as_integer(b), result);
    if (nib_jinja_is_number(a) && nib_jinja_is_number(b))
        return float_arithmetic(render, op, nib_jinja_as_float(a), nib_jinja_as_float(b), result);
    if (op == NIB_JINJA_ADD && a.kind == NIB_JINJA_STRING && b.kind == NIB_JINJA_STRING) {
        nib_jinja_text text = {.render = render};
        nib_jinja_text_append(&text, a.string.bytes, a.string.length);
        nib_jinja_text_append(&text, b.string.bytes, b.string.length);
        return nib_jinja_text_finish(&text, result);
    }
    if (op == NIB_JINJA_ADD && a.kind == b.kind && (a.kind == NIB_JINJA_LIST || a.kind == NIB_JINJA_TUPLE))
        return join_sequences(render, a, b, result);
    if (op == NIB_JINJA_MULTIPLY && is_repeatable(a) && is_integral(b)) return repeat(render, a, as_integer(b), result);
    if (op == NIB_JINJA_MULTIPLY && is_integral(a) && is_repeatable(b)) return repeat(render, b, as_integer(a), result);
    if (op == NIB_JINJA_MODULO && a.kind == NIB_JINJA_STRING) return nib_jinja_percent_format(render, a, b, result);
    return unsupported(render, signs[op], a, b);
}

nib_status nib_jinja_negate(nib_jinja_render *render, nib_jinja_value value, nib_jinja_value *result)
{
    if (is_integral(value)) return integer_arithmetic(render, NIB_JINJA_SUBTRACT, 0, as_integer(value), result);
    if (value.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, value);
    if (value.kind != NIB_JINJA_FLOAT)
        return nib_jinja_fail(render, "bad operand type for unary -: '%s'", nib_jinja_type_name(value));
    *result = nib_jinja_float(-value.number);
    return NIB_OK;
}

nib_status nib_jinja_contains(nib_jinja_render *render, nib_jinja_value container, nib_jinja_value item, bool *found)
{
    *found = false;
    if (container.kind == NIB_JINJA_STRING) {
        if (item.kind != NIB_JINJA_STRING)
            return nib_jinja_fail(render, "'in <string>' requires string as left operand, not %s",
                                  nib_jinja_type_name(item));
        *found = item.string.length == 0 ||
                 (container.string.length > 0 && memmem(container.string.bytes, container.string.length,
                                                        item.string.bytes, item.string.length) != NULL);
        return nib_jinja_charge(render, container.string.length / 64);
    }
    if (container.kind == NIB_JINJA_DICT) {
        const nib_jinja_value *value;
        NIB_TRY(nib_jinja_dict_get(render, container, item, &value));
        *found = value != NULL;
        return NIB_OK;
    }
    const nib_jinja_value *items;
    size_t count;
    if (!nib_jinja_is_sequence_kind(container) && container.kind != NIB_JINJA_UNDEFINED)
        return nib_jinja_fail(render, "argument of type '%s' is not iterable", nib_jinja_type_name(container));
    NIB_TRY(nib_jinja_items(render, container, &items, &count));
    for (size_t i = 0; i < count && !*found; i++) NIB_TRY(nib_jinja_equal(render, items[i], item, found));
    return NIB_OK;
}

nib_status nib_jinja_relation(nib_jinja_render *render, nib_jinja_operator op, nib_jinja_value a, nib_jinja_value b,
                              bool *holds)
{
    static const char *const signs[] = {"<", "<=", ">", ">="};
    if (op == NIB_JINJA_IN || op == NIB_JINJA_NOT_IN) {
        NIB_TRY(nib_jinja_contains(render, b, a, holds));
        *holds ^= op == NIB_JINJA_NOT_IN;
        return NIB_OK;
    }
    if (op == NIB_JINJA_EQUAL || op == NIB_JINJA_NOT_EQUAL) {
        NIB_TRY(nib_jinja_equal(render, a, b, holds));
        *holds ^= op == NIB_JINJA_NOT_EQUAL;
        return NIB_OK;
    }
    int order;
    NIB_TRY(nib_jinja_compare(render, signs[op - NIB_JINJA_LESS], a, b, &order));
    bool nan = (a.kind == NIB_JINJA_FLOAT && isnan(a.number)) || (b.kind == NIB_JINJA_FLOAT && isnan(b.number));
    *holds = !nan && (op == NIB_JINJA_LESS         ? order < 0
                      : op == NIB_JINJA_LESS_EQUAL ? order <= 0
                      : op == NIB_JINJA_GREATER    ? order > 0
                                                   : order >= 0);
    return NIB_OK;
}
