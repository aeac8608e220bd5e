/* libFuzzer: any bytes as JSON. The first byte chooses the reader's options. Strings of what is accepted are UTF-8 and
 * end where their length says. */
#include "base/json.h"
#include "base/utf8.h"

#include <stdlib.h>

static void check(const nib_json *value, bool nul_allowed)
{
    if (value->kind == NIB_JSON_STRING) {
        if (nib_utf8_invalid_at(value->string, value->length) != value->length) abort();
        if (value->string[value->length] != 0) abort();
        for (size_t i = 0; i < value->length && !nul_allowed; i++)
            if (value->string[i] == 0) abort();
    }
    size_t children = 0;
    if (value->kind == NIB_JSON_ARRAY || value->kind == NIB_JSON_OBJECT) {
        for (const nib_json *child = value->first; child != NULL; child = child->next, children++)
            check(child, nul_allowed);
        if (children != value->length) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    if (length == 0) return 0;
    nib_pool pool = {0};
    nib_json *root;
    nib_json_options options = {.comments = bytes[0] & 1, .allow_nul = bytes[0] & 2, .max_depth = bytes[0] & 4 ? 8 : 0};
    if (nib_json_parse("input", (const char *)bytes + 1, length - 1, options, &pool, &root) == NIB_OK)
        check(root, options.allow_nul);
    nib_pool_free(&pool);
    return 0;
}
