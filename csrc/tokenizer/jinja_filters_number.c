/* Filters that make or round numbers. */
#include "tokenizer/jinja_render.h"

#include "tokenizer/jinja_lexer.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text without surrounding white space and underscores, NUL-terminated; false if it is no number's length. */
static bool number_text(nib_jinja_value string, char text[128])
{
    const char *bytes = string.string.bytes;
    size_t length = string.string.length, start = nib_jinja_leading_space(bytes, length), count = 0;
    length -= start < length ? nib_jinja_trailing_space(bytes, length) : 0;
    for (size_t i = start; i < length; i++) {
        if (count + 1 == 128 || bytes[i] == 0) return false;
        if (bytes[i] != '_') text[count++] = bytes[i];
    }
    text[count] = 0;
    return count > 0;
}

static bool parse_float(nib_jinja_value string, double *value)
{
    char text[128], *end;
    if (!number_text(string, text) || strpbrk(text, "xX(") != NULL) return false;
    *value = strtod(text, &end);
    return *end == 0;
}

static bool parse_integer(nib_jinja_value string, int base, int64_t *value)
{
    char text[128], *end, *digits = text;
    if (!number_text(string, text)) return false;
    if ((base == 2 || base == 8) && text[0] == '0' && (text[1] | 32) == (base == 2 ? 'b' : 'o')) digits = text + 2;
    errno = 0;
    *value = strtoll(digits, &end, base);
    return *end == 0 && end != digits && errno == 0;
}

static bool fits_integer(double x) { return x >= -9223372036854775808.0 && x < 9223372036854775808.0; }

/* int(default=0, base=10): whatever is no number gives the default. */
static nib_status filter_int(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value value = call->subject;
    double number;
    int64_t integer;
    int64_t base = call->given[1] && call->values[1].kind == NIB_JINJA_INTEGER ? call->values[1].integer : 10;
    *result = call->given[0] ? call->values[0] : nib_jinja_integer(0);
    if (value.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, value);
    if (base < 2 || base > 36) return nib_jinja_fail(render, "int: the base is 2 to 36");
    if (value.kind == NIB_JINJA_STRING) {
        if (parse_integer(value, (int)base, &integer))
            *result = nib_jinja_integer(integer);
        else if (parse_float(value, &number) && fits_integer(number))
            *result = nib_jinja_integer((int64_t)number);
    } else if (value.kind == NIB_JINJA_FLOAT && fits_integer(value.number)) {
        *result = nib_jinja_integer((int64_t)value.number);
    } else if (value.kind == NIB_JINJA_INTEGER || value.kind == NIB_JINJA_BOOL) {
        *result = nib_jinja_integer(value.kind == NIB_JINJA_BOOL ? value.boolean : value.integer);
    }
    return NIB_OK;
}

static nib_status filter_float(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    double number;
    *result = call->given[0] ? call->values[0] : nib_jinja_float(0.0);
    if (call->subject.kind == NIB_JINJA_UNDEFINED) return nib_jinja_undefined_error(render, call->subject);
    if (nib_jinja_is_number(call->subject))
        *result = nib_jinja_float(nib_jinja_as_float(call->subject));
    else if (call->subject.kind == NIB_JINJA_STRING && parse_float(call->subject, &number))
        *result = nib_jinja_float(number);
    return NIB_OK;
}

static nib_status filter_abs(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->subject.kind == NIB_JINJA_FLOAT) {
        *result = nib_jinja_float(fabs(call->subject.number));
        return NIB_OK;
    }
    NIB_TRY(nib_jinja_negate(render, call->subject, result));
    return result->integer < 0 ? nib_jinja_negate(render, *result, result) : NIB_OK;
}

/* round(precision=0, method="common"): half to even as Python's round, or "ceil" or "floor". Always a float. */
static nib_status filter_round(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value method = call->given[1] ? call->values[1] : nib_jinja_literal("common");
    int64_t precision = call->given[0] && call->values[0].kind == NIB_JINJA_INTEGER ? call->values[0].integer : 0;
    if (!nib_jinja_is_number(call->subject))
        return nib_jinja_fail(render, "round takes a number, got %s", nib_jinja_type_name(call->subject));
    if (precision < -300 || precision > 300) return nib_jinja_fail(render, "round: the precision is out of range");
    double x = nib_jinja_as_float(call->subject), scale = pow(10.0, (double)precision);
    if (nib_jinja_is_string(method, "ceil")) {
        *result = nib_jinja_float(ceil(x * scale) / scale);
    } else if (nib_jinja_is_string(method, "floor")) {
        *result = nib_jinja_float(floor(x * scale) / scale);
    } else if (nib_jinja_is_string(method, "common")) {
        char digits[700]; /* printf rounds the exact binary value, which is what Python does */
        if (precision >= 0) {
            snprintf(digits, sizeof digits, "%.*f", (int)precision, x);
            *result = nib_jinja_float(strtod(digits, NULL));
        } else {
            *result = nib_jinja_float(nearbyint(x * scale) / scale);
        }
        if (call->subject.kind != NIB_JINJA_FLOAT) *result = nib_jinja_integer((int64_t)result->number);
    } else {
        return nib_jinja_fail(render, "method must be common, ceil or floor");
    }
    return NIB_OK;
}

const nib_jinja_builtin nib_jinja_number_filters[] = {
    {"int", "default base", 0, filter_int},
    {"float", "default", 0, filter_float},
    {"abs", "", 0, filter_abs},
    {"round", "precision method", 0, filter_round},
    {NULL, NULL, 0, NULL},
};
