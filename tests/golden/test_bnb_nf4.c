/* Checkpoints as transformers and bitsandbytes write them: every weight's parts are found, and what they stand for by
 * the definition in bnb_nf4.h agrees between single and double quantisation. */
#include "check.h"

#include "formats/bnb_nf4.h"

#include <stdlib.h>
#include <string.h>

static float read_one(const nib_tensor_view *tensor, int64_t i)
{
    float value;
    assert_int_equal(nib_tensor_read_float(tensor, i, 1, &value), NIB_OK);
    return value;
}

static float element(const nib_bnb_nf4 *w, int64_t i)
{
    int64_t block = i / NIB_BNB_NF4_BLOCK;
    uint8_t byte = w->codes->data[i / 2];
    float scale;
    if (w->nested_absmax == NULL)
        scale = read_one(w->absmax, block);
    else
        scale = read_one(w->nested_map, w->absmax->data[block]) *
                    read_one(w->nested_absmax, block / NIB_BNB_NF4_NESTED_BLOCK) +
                w->nested_offset;
    return read_one(w->map, i % 2 == 0 ? byte >> 4 : byte & 15) * scale;
}

static void folder_holds(const char *folder, bool nested)
{
    nib_tensor_set *set;
    size_t weights = 0;
    assert_int_equal(nib_tensor_set_open(folder, &set), NIB_OK);
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(set, i);
        size_t n = strlen(tensor->name);
        if (tensor->dtype != NIB_DTYPE_U8 || strcmp(tensor->name + n - 7, ".weight") != 0) continue;
        nib_bnb_nf4 weight;
        if (nib_bnb_nf4_find(set, tensor->name, &weight) != NIB_OK) fail_msg("%s", nib_error_message());
        assert_int_equal(weight.rows * weight.columns, 2 * tensor->count);
        assert_int_equal(weight.dtype, NIB_DTYPE_BF16);
        assert_int_equal(weight.nested_absmax != NULL, nested);
        assert_int_equal(weight.tensors, nested ? 6 : 4);
        weights++;
    }
    assert_int_equal(weights, 3 * 7); /* layers, linears */
    nib_tensor_set_close(set);
}

static void every_weight_is_found(void **state)
{
    (void)state;
    folder_holds(NIB_TEST_DATA "/nf4/llama_bnb_nf4", false);
    folder_holds(NIB_TEST_DATA "/nf4/llama_bnb_nf4_double", true);
}

/* The same matrices, single and double quantised, are two independent codings of one weight. */
static void single_and_double_agree(void **state)
{
    (void)state;
    static const char name[] = "model.layers.1.mlp.down_proj.weight";
    nib_tensor_set *single_set, *double_set;
    nib_bnb_nf4 a, b;
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/nf4/llama_bnb_nf4", &single_set), NIB_OK);
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/nf4/llama_bnb_nf4_double", &double_set), NIB_OK);
    assert_int_equal(nib_bnb_nf4_find(single_set, name, &a), NIB_OK);
    assert_int_equal(nib_bnb_nf4_find(double_set, name, &b), NIB_OK);
    assert_int_equal(a.rows, 96);
    assert_int_equal(a.columns, 160);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < a.rows * a.columns; i++) {
        double x = element(&a, i), y = element(&b, i);
        difference += (x - y) * (x - y);
        size += x * x;
    }
    /* Eight-bit codes of absmax: their steps are at most 1/64 of the range of a nested block. */
    assert_true(difference > 0 && difference < size * (1.0 / 64) * (1.0 / 64));
    nib_tensor_set_close(single_set);
    nib_tensor_set_close(double_set);
}

static void absent_parts_are_named(void **state)
{
    (void)state;
    nib_tensor_set *set;
    nib_bnb_nf4 weight;
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/nf4/llama_bnb_nf4", &set), NIB_OK);
    assert_int_equal(nib_bnb_nf4_find(set, "no.such.weight", &weight), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "\"no.such.weight\" is missing"));
    assert_int_equal(nib_bnb_nf4_find(set, "model.norm.weight", &weight), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "\"model.norm.weight.quant_state.bitsandbytes__nf4\" is missing"));
    nib_tensor_set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_is_found),
        cmocka_unit_test(single_and_double_agree),
        cmocka_unit_test(absent_parts_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
