#include "formats/bnb_nf4.h"
#include "base/json.h"

#include <stdio.h>
#include <string.h>

static nib_status part(const nib_tensor_set *set, const char *name, const char *suffix, bool required,
                       nib_bnb_nf4 *parts, const nib_tensor_view **view)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    *view = nib_tensor_set_find(set, full);
    if (*view != NULL) parts->tensors++;
    if (*view == NULL && required)
        return NIB_FAIL(NIB_ERROR_DATA, "tensor \"%s\" is U8 but \"%s\" is missing; not a bitsandbytes NF4 weight",
                        name, full);
    return NIB_OK;
}

static nib_status expect(const nib_tensor_view *view, nib_dtype dtype, int64_t count)
{
    if (view->dtype == dtype && view->count == count) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" has %lld elements of %s, expected %lld of %s", view->file->path,
                    view->name, (long long)view->count, nib_dtype_name(view->dtype), (long long)count,
                    nib_dtype_name(dtype));
}

static nib_status read_state(const nib_tensor_view *state, bool nested, nib_bnb_nf4 *parts)
{
    nib_pool pool = {0};
    nib_json *root;
    const char *type, *where = state->name;
    int64_t block, nested_block;
    double offset;
    nib_status status;
    NIB_TRY_GOTO(nib_json_parse(where, (const char *)state->data, state->bytes, (nib_json_options){0}, &pool, &root),
                 done);
    NIB_TRY_GOTO(nib_json_read_string(where, root, "quant_type", "", &type), done);
    NIB_TRY_GOTO(nib_json_read_int(where, root, "blocksize", 1, 65536, 0, &block), done);
    NIB_TRY_GOTO(nib_json_read_int(where, root, "nested_blocksize", 1, 65536, 256, &nested_block), done);
    NIB_TRY_GOTO(nib_json_read_double(where, root, "nested_offset", 0.0, &offset), done);
    if (strcmp(type, "nf4") != 0 || block != 64 || (nested && nested_block != 256)) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: quant_type %s, blocks of %lld, nested of %lld; expected nf4, 64 and 256",
                          where, type, (long long)block, (long long)nested_block);
        goto done;
    }
    parts->nested_offset = (float)offset;
    const nib_json *shape = nib_json_get(root, "shape");
    if (!nib_json_is(shape, NIB_JSON_ARRAY) || shape->length != 2 || !shape->first->is_integer ||
        !shape->first->next->is_integer || shape->first->integer < 1 || shape->first->next->integer < 1 ||
        shape->first->integer > INT32_MAX || shape->first->next->integer > INT32_MAX) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: \"shape\" must be two positive integers", where);
        goto done;
    }
    parts->rows = shape->first->integer;
    parts->columns = shape->first->next->integer;
done:
    nib_pool_free(&pool);
    return status;
}

nib_status nib_bnb_nf4_find(const nib_tensor_set *set, const char *name, nib_bnb_nf4 *parts)
{
    const nib_tensor_view *map, *state;
    *parts = (nib_bnb_nf4){0};
    NIB_TRY(part(set, name, "", true, parts, &parts->codes));
    NIB_TRY(part(set, name, ".absmax", true, parts, &parts->absmax));
    NIB_TRY(part(set, name, ".quant_map", true, parts, &map));
    NIB_TRY(part(set, name, ".nested_absmax", false, parts, &parts->nested_absmax));
    NIB_TRY(part(set, name, ".nested_quant_map", parts->nested_absmax != NULL, parts, &parts->nested_map));
    NIB_TRY(part(set, name, ".quant_state.bitsandbytes__nf4", true, parts, &state));
    bool nested = parts->nested_absmax != NULL;
    NIB_TRY(read_state(state, nested, parts));
    int64_t n = parts->rows * parts->columns;
    parts->blocks = (n + 63) / 64;
    parts->nested_blocks = (parts->blocks + 255) / 256;
    NIB_TRY(expect(parts->codes, NIB_DTYPE_U8, (n + 1) / 2));
    NIB_TRY(expect(parts->absmax, nested ? NIB_DTYPE_U8 : NIB_DTYPE_F32, parts->blocks));
    NIB_TRY(expect(map, NIB_DTYPE_F32, 16));
    if (!nested) return NIB_OK;
    NIB_TRY(expect(parts->nested_absmax, NIB_DTYPE_F32, parts->nested_blocks));
    return expect(parts->nested_map, NIB_DTYPE_F32, 256);
}
