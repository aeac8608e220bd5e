/* NF4 against bitsandbytes: codes, absmax, nested absmax and dequantised weights, bit for bit. */
#include "check.h"

#include "base/memory.h"
#include "cpu/backend.h"

#include <stdio.h>
#include <string.h>

static const char *const matrices[] = {"gauss_256x128",    "heavy_tail_96x192", "large_512x512", "odd_rows_50x96",
                                       "odd_rows_576x100", "odd_rows_64x80",    "ties_64x64",    "zero_blocks_64x64"};

static const nib_tensor_view *find(const nib_tensor_set *set, const char *matrix, const char *part)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", matrix, part);
    const nib_tensor_view *view = nib_tensor_set_find(set, name);
    if (view == NULL) fail_msg("no %s", name);
    return view;
}

static void check_matrix(nib_ops *ops, const nib_tensor_set *set, const char *matrix)
{
    const nib_tensor_view *weight = find(set, matrix, "weight");
    int64_t n = weight->count, blocks = (n + 63) / 64;
    float *values = nib_calloc((size_t)n, sizeof *values), *absmax = nib_calloc((size_t)blocks, sizeof *absmax);
    uint8_t *codes = nib_calloc((size_t)(n + 1) / 2, 1), *absmax_codes = nib_calloc((size_t)blocks, 1);
    float nested[64], offset;
    nib_bf16 *out = nib_calloc((size_t)n, sizeof *out);
    assert_int_equal(nib_tensor_read_float(weight, 0, n, values), NIB_OK);
    assert_int_equal(ops->nf4_quantize(ops, values, n, codes, absmax), NIB_OK);
    assert_memory_equal(codes, find(set, matrix, "single.packed")->data, (size_t)(n + 1) / 2);
    assert_memory_equal(absmax, find(set, matrix, "single.absmax")->data, (size_t)blocks * 4);
    assert_int_equal(ops->nf4_quantize_absmax(ops, absmax, blocks, nib_nf4_dynamic_map, absmax_codes, nested, &offset),
                     NIB_OK);
    assert_memory_equal(absmax_codes, find(set, matrix, "double.absmax")->data, (size_t)blocks);
    assert_memory_equal(nested, find(set, matrix, "double.nested_absmax")->data, (size_t)((blocks + 255) / 256) * 4);
    assert_memory_equal(&offset, find(set, matrix, "double.offset")->data, 4);

    nib_matrix target = {.data = out,
                         .rows = weight->shape[0],
                         .columns = weight->shape[1],
                         .stride = weight->shape[1],
                         .dtype = NIB_DTYPE_BF16};
    nib_nf4 single = {.codes = codes, .absmax = absmax};
    assert_int_equal(ops->nf4_dequantize(ops, &single, target), NIB_OK);
    assert_memory_equal(out, find(set, matrix, "single.dequantized")->data, (size_t)n * 2);
    nib_nf4 twice = {.codes = codes,
                     .absmax_codes = absmax_codes,
                     .nested_absmax = nested,
                     .nested_map = nib_nf4_dynamic_map,
                     .nested_offset = offset};
    assert_int_equal(ops->nf4_dequantize(ops, &twice, target), NIB_OK);
    assert_memory_equal(out, find(set, matrix, "double.dequantized")->data, (size_t)n * 2);
    /* fp32 holds the same bf16-rounded values */
    nib_matrix wide = target;
    wide.data = values;
    wide.dtype = NIB_DTYPE_F32;
    assert_int_equal(ops->nf4_dequantize(ops, &twice, wide), NIB_OK);
    for (int64_t i = 0; i < n; i++) assert_true(values[i] == nib_bf16_to_float(out[i]));
    nib_free(values);
    nib_free(absmax);
    nib_free(codes);
    nib_free(absmax_codes);
    nib_free(out);
}

static void every_matrix_is_bit_exact(void **state)
{
    (void)state;
    nib_tensor_set *set;
    nib_ops *ops;
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/nf4/expected.safetensors", &set), NIB_OK);
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    const nib_tensor_view *map = nib_tensor_set_find(set, "nested_quant_map");
    assert_memory_equal(nib_nf4_dynamic_map, map->data, 256 * 4);
    assert_memory_equal(nib_nf4_values, nib_tensor_set_find(set, "quant_map")->data, 16 * 4);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) check_matrix(ops, set, matrices[i]);
    nib_cpu_backend_free(ops);
    nib_tensor_set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_matrix_is_bit_exact)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
