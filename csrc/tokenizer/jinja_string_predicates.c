/* The methods of strings that ask what characters there are. */
#include "tokenizer/jinja_render.h"

#include "base/utf8.h"
#include "tokenizer/jinja_lexer.h"

#include <utf8proc.h>

static bool is_letter(uint32_t c)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

static bool is_decimal(uint32_t c) { return utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ND; }
static bool is_letter_or_digit(uint32_t c) { return is_letter(c) || is_decimal(c); }

static nib_status all_are(const nib_jinja_call *call, bool (*predicate)(uint32_t), nib_jinja_value *result)
{
    nib_jinja_value string = call->subject;
    bool all = string.string.length > 0;
    for (size_t at = 0; at < string.string.length && all;) {
        uint32_t codepoint;
        at += nib_utf8_decode(string.string.bytes + at, string.string.length - at, &codepoint);
        all = predicate(codepoint);
    }
    *result = nib_jinja_bool(all);
    return NIB_OK;
}

#define PREDICATE(name, predicate)                                                                                     \
    static nib_status str_##name(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)        \
    {                                                                                                                  \
        (void)render;                                                                                                  \
        return all_are(call, predicate, result);                                                                       \
    }

PREDICATE(isalpha, is_letter)
PREDICATE(isdigit, is_decimal)
PREDICATE(isalnum, is_letter_or_digit)
PREDICATE(isspace, nib_jinja_is_space)

/* There is a letter of the wanted case, and none of the other. */
static nib_status cased(const nib_jinja_call *call, utf8proc_category_t wanted, nib_jinja_value *result)
{
    bool some = false, other = false;
    nib_jinja_value string = call->subject;
    for (size_t at = 0; at < string.string.length;) {
        uint32_t codepoint;
        at += nib_utf8_decode(string.string.bytes + at, string.string.length - at, &codepoint);
        utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)codepoint);
        bool letter =
            category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
        some |= category == wanted;
        other |= letter && category != wanted;
    }
    *result = nib_jinja_bool(some && !other);
    return NIB_OK;
}

static nib_status str_islower(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    (void)render;
    return cased(call, UTF8PROC_CATEGORY_LL, result);
}

static nib_status str_isupper(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    (void)render;
    return cased(call, UTF8PROC_CATEGORY_LU, result);
}

const nib_jinja_builtin nib_jinja_string_predicates[] = {
    {"isalpha", "", 0, str_isalpha},   {"isdigit", "", 0, str_isdigit}, {"isdecimal", "", 0, str_isdigit},
    {"isnumeric", "", 0, str_isdigit}, {"isalnum", "", 0, str_isalnum}, {"isspace", "", 0, str_isspace},
    {"islower", "", 0, str_islower},   {"isupper", "", 0, str_isupper}, {NULL, NULL, 0, NULL},
};
