#include "formats/bnb_nf4.h"
#include "base/buffer.h"
#include "base/json.h"

#include <math.h>
#include <string.h>

#define MAX_STATE ((uint64_t)64 * 1024)

typedef struct {
    const nib_tensor_set *set;
    const char *name; /* of the weight */
    const char *path; /* of its file */
} context;

/* Tensor "NAME.suffix"; *tensor is NULL if it is absent. */
static nib_status find_part(const context *c, const char *suffix, const nib_tensor_view **tensor)
{
    nib_buffer name = {0};
    nib_buffer_format(&name, "%s.%s", c->name, suffix);
    nib_status status = NIB_OK;
    *tensor = NULL;
    if (name.failed)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a tensor name");
    else
        *tensor = nib_tensor_set_find(c->set, name.data);
    nib_buffer_free(&name);
    return status;
}

/* The same for a part that must be there, of this type and number of elements. */
static nib_status require_part(const context *c, const char *suffix, nib_dtype dtype, int64_t count,
                               const nib_tensor_view **tensor)
{
    NIB_TRY(find_part(c, suffix, tensor));
    if (*tensor == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: \"%s.%s\" is missing, which the NF4 weight \"%s\" needs", c->path, c->name,
                        suffix, c->name);
    if ((*tensor)->dtype != dtype || (*tensor)->count != count)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" holds %lld %s, expected %lld %s", c->path, (*tensor)->name,
                        (long long)(*tensor)->count, nib_dtype_name((*tensor)->dtype), (long long)count,
                        nib_dtype_name(dtype));
    return NIB_OK;
}

/* The values that codes stand for: finite fp32. */
static nib_status require_map(const context *c, const char *suffix, int64_t count, const nib_tensor_view **map)
{
    float values[256];
    NIB_TRY(require_part(c, suffix, NIB_DTYPE_F32, count, map));
    NIB_TRY(nib_tensor_read_float(*map, 0, count, values));
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" is not finite at %lld", c->path, (*map)->name,
                            (long long)i);
    return NIB_OK;
}

static nib_status bad_state(const context *c, const char *key, const char *expected)
{
    return NIB_FAIL(NIB_ERROR_DATA, "%s: quantisation state of \"%s\": \"%s\" is not %s", c->path, c->name, key,
                    expected);
}

static bool is_integer(const nib_json *value, int64_t expected)
{
    return nib_json_is(value, NIB_JSON_NUMBER) && value->is_integer && value->integer == expected;
}

static bool is_text(const nib_json *value, const char *expected)
{
    return nib_json_is(value, NIB_JSON_STRING) && strcmp(value->string, expected) == 0;
}

static nib_status parse_dtype(const context *c, const nib_json *state, nib_dtype *dtype)
{
    const nib_json *value = nib_json_get(state, "dtype");
    if (is_text(value, "bfloat16"))
        *dtype = NIB_DTYPE_BF16;
    else if (is_text(value, "float16"))
        *dtype = NIB_DTYPE_F16;
    else if (is_text(value, "float32"))
        *dtype = NIB_DTYPE_F32;
    else
        return bad_state(c, "dtype", "bfloat16, float16 or float32");
    return NIB_OK;
}

static nib_status parse_shape(const context *c, const nib_json *state, nib_bnb_nf4 *weight)
{
    const nib_json *shape = nib_json_get(state, "shape");
    if (!nib_json_is(shape, NIB_JSON_ARRAY) || shape->length != 2) return bad_state(c, "shape", "two sizes");
    const nib_json *rows = shape->first, *columns = rows->next;
    int64_t count;
    if (!rows->is_integer || !columns->is_integer || rows->integer < 1 || columns->integer < 1 ||
        __builtin_mul_overflow(rows->integer, columns->integer, &count) || count > INT64_MAX / 8)
        return bad_state(c, "shape", "two sizes from 1 whose product is in range");
    weight->rows = rows->integer;
    weight->columns = columns->integer;
    return NIB_OK;
}

/* The JSON object; fills in all that comes from it alone. */
static nib_status parse_state(const context *c, const nib_tensor_view *tensor, nib_pool *pool, nib_bnb_nf4 *weight,
                              bool *nested)
{
    nib_json *state;
    if (tensor->dtype != NIB_DTYPE_U8 || tensor->bytes > MAX_STATE)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" is %llu bytes of %s, expected a short text as U8", c->path,
                        tensor->name, (unsigned long long)tensor->bytes, nib_dtype_name(tensor->dtype));
    NIB_TRY(
        nib_json_parse(tensor->name, (const char *)tensor->data, tensor->bytes, (nib_json_options){0}, pool, &state));
    if (!is_text(nib_json_get(state, "quant_type"), "nf4")) return bad_state(c, "quant_type", "nf4");
    if (!is_integer(nib_json_get(state, "blocksize"), NIB_BNB_NF4_BLOCK))
        return bad_state(c, "blocksize", "64, the only one supported");
    NIB_TRY(parse_dtype(c, state, &weight->dtype));
    NIB_TRY(parse_shape(c, state, weight));
    const nib_json *offset = nib_json_get(state, "nested_offset");
    *nested = offset != NULL || nib_json_get(state, "nested_blocksize") != NULL;
    if (!*nested) return NIB_OK;
    if (!is_integer(nib_json_get(state, "nested_blocksize"), NIB_BNB_NF4_NESTED_BLOCK))
        return bad_state(c, "nested_blocksize", "256, the only one supported");
    if (!is_text(nib_json_get(state, "nested_dtype"), "float32")) return bad_state(c, "nested_dtype", "float32");
    if (!nib_json_is(offset, NIB_JSON_NUMBER)) return bad_state(c, "nested_offset", "a number");
    weight->nested_offset = (float)offset->number;
    if (!isfinite(weight->nested_offset)) return bad_state(c, "nested_offset", "in the range of fp32");
    return NIB_OK;
}

static nib_status check_codes(const context *c, const nib_bnb_nf4 *weight)
{
    int64_t bytes = (weight->rows * weight->columns + 1) / 2;
    if (weight->codes->dtype != NIB_DTYPE_U8 || weight->codes->count != bytes)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: NF4 weight \"%s\" holds %lld %s, expected %lld U8 for [%lld, %lld]",
                        c->path, c->name, (long long)weight->codes->count, nib_dtype_name(weight->codes->dtype),
                        (long long)bytes, (long long)weight->rows, (long long)weight->columns);
    return NIB_OK;
}

nib_status nib_bnb_nf4_find(const nib_tensor_set *set, const char *name, nib_bnb_nf4 *weight)
{
    const nib_tensor_view *state;
    context c = {.set = set, .name = name};
    nib_pool pool = {0};
    bool nested = false;
    nib_status status = NIB_OK;
    *weight = (nib_bnb_nf4){.codes = nib_tensor_set_find(set, name)};
    if (weight->codes == NULL) return NIB_FAIL(NIB_ERROR_DATA, "tensor \"%s\" is missing", name);
    c.path = weight->codes->file->path;
    NIB_TRY(find_part(&c, "quant_state.bitsandbytes__nf4", &state));
    if (state == NULL)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: \"%s.quant_state.bitsandbytes__nf4\" is missing; of bitsandbytes' types only NF4 is read",
                        c.path, name);

    NIB_TRY_GOTO(parse_state(&c, state, &pool, weight, &nested), done);
    NIB_TRY_GOTO(check_codes(&c, weight), done);
    int64_t blocks = (weight->rows * weight->columns + NIB_BNB_NF4_BLOCK - 1) / NIB_BNB_NF4_BLOCK;
    NIB_TRY_GOTO(require_part(&c, "absmax", nested ? NIB_DTYPE_U8 : NIB_DTYPE_F32, blocks, &weight->absmax), done);
    NIB_TRY_GOTO(require_map(&c, "quant_map", 16, &weight->map), done);
    weight->tensors = 4;
    if (nested) {
        int64_t nested_blocks = (blocks + NIB_BNB_NF4_NESTED_BLOCK - 1) / NIB_BNB_NF4_NESTED_BLOCK;
        NIB_TRY_GOTO(require_part(&c, "nested_absmax", NIB_DTYPE_F32, nested_blocks, &weight->nested_absmax), done);
        NIB_TRY_GOTO(require_map(&c, "nested_quant_map", 256, &weight->nested_map), done);
        weight->tensors = 6;
    }
done:
    nib_pool_free(&pool);
    return status;
}
