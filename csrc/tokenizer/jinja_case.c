/* Upper, lower and title case, by the simple mappings of Unicode; of the special ones only that of sharp s. */
#include "tokenizer/jinja_render.h"

#include "base/utf8.h"

#include <utf8proc.h>

enum { SHARP_S = 0xdf };

static bool is_cased(uint32_t codepoint)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)codepoint);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

static void append_upper(nib_jinja_text *text, uint32_t codepoint, bool as_title)
{
    if (codepoint == SHARP_S)
        nib_jinja_text_literal(text, as_title ? "Ss" : "SS");
    else
        nib_jinja_text_codepoint(text, (uint32_t)(as_title ? utf8proc_totitle((utf8proc_int32_t)codepoint)
                                                           : utf8proc_toupper((utf8proc_int32_t)codepoint)));
}

nib_status nib_jinja_change_case(nib_jinja_render *render, nib_jinja_value string, nib_jinja_case to,
                                 nib_jinja_value *changed)
{
    nib_jinja_text text = {.render = render};
    bool in_word = false, first = true;
    for (size_t at = 0; at < string.string.length; first = false) {
        uint32_t codepoint;
        at += nib_utf8_decode(string.string.bytes + at, string.string.length - at, &codepoint);
        bool title = (to == NIB_JINJA_CAPITALIZE && first) || (to == NIB_JINJA_TITLE && !in_word);
        bool swap_up =
            to == NIB_JINJA_SWAP && utf8proc_tolower((utf8proc_int32_t)codepoint) == (utf8proc_int32_t)codepoint;
        if (title || to == NIB_JINJA_UPPER || swap_up)
            append_upper(&text, codepoint, title);
        else
            nib_jinja_text_codepoint(&text, (uint32_t)utf8proc_tolower((utf8proc_int32_t)codepoint));
        in_word = is_cased(codepoint);
    }
    return nib_jinja_text_finish(&text, changed);
}
