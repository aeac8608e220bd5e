/* Checkpoints as transformers and bitsandbytes write them: every weight's parts are found, and what they stand for by
 * the definition in bnb_nf4.h agrees between single and double quantisation, and with bitsandbytes' own values. */
#include "check.h"

#include "formats/bnb_nf4.h"
#include "formats/safetensors_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* A checkpoint with one weight "w" of the parts that bitsandbytes made of a matrix, and this quantisation state. */
static void write_checkpoint(const char *path, const nib_tensor_set *golden, const char *matrix,
                             const char *quant_state)
{
    static const char *const parts[][2] = {
        {"double.packed", "w"}, {"double.absmax", "w.absmax"}, {"double.nested_absmax", "w.nested_absmax"},
        {NULL, "w.quant_map"},  {NULL, "w.nested_quant_map"},
    };
    const nib_tensor_view *views[5];
    nib_safetensors_writer *writer;
    char name[96];
    assert_int_equal(nib_safetensors_writer_begin(path, &writer), NIB_OK);
    for (int i = 0; i < 5; i++) {
        if (parts[i][0] != NULL)
            snprintf(name, sizeof name, "%s.%s", matrix, parts[i][0]);
        else
            snprintf(name, sizeof name, "%s", parts[i][1] + 2);
        views[i] = nib_tensor_set_find(golden, name);
        assert_non_null(views[i]);
        assert_int_equal(nib_safetensors_writer_declare(writer, parts[i][1], views[i]->dtype, 1, &views[i]->count),
                         NIB_OK);
    }
    const int64_t length = (int64_t)strlen(quant_state);
    assert_int_equal(
        nib_safetensors_writer_declare(writer, "w.quant_state.bitsandbytes__nf4", NIB_DTYPE_U8, 1, &length), NIB_OK);
    for (int i = 0; i < 5; i++)
        assert_int_equal(nib_safetensors_writer_data(writer, views[i]->data, views[i]->bytes), NIB_OK);
    assert_int_equal(nib_safetensors_writer_data(writer, quant_state, (uint64_t)length), NIB_OK);
    assert_int_equal(nib_safetensors_writer_finish(writer, NULL), NIB_OK);
}

#define STATE(type, block, shape, rest)                                                                                \
    "{\"quant_type\": \"" type "\", \"blocksize\": " block ", \"dtype\": \"bfloat16\", \"shape\": " shape rest "}"
#define NESTED(block, offset)                                                                                          \
    ", \"nested_blocksize\": " block ", \"nested_dtype\": \"float32\", \"nested_offset\": " offset

/* odd_rows: blocks cross rows. Equal to the bit after rounding to bf16, since the definition is the same two fp32
 * operations in the same order. */
static void the_definition_gives_bitsandbytes_values(void **state)
{
    (void)state;
    char path[] = "/tmp/nib_nf4_XXXXXX", text[256];
    nib_tensor_set *golden, *set;
    nib_bnb_nf4 weight;
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/nf4/expected.safetensors", &golden), NIB_OK);
    const nib_tensor_view *want = nib_tensor_set_find(golden, "odd_rows_50x96.double.dequantized");
    assert_non_null(want);
    snprintf(text, sizeof text, STATE("nf4", "64", "[50, 96]", NESTED("256", "%.17g")),
             (double)read_one(nib_tensor_set_find(golden, "odd_rows_50x96.double.offset"), 0));
    write_checkpoint(path, golden, "odd_rows_50x96", text);
    assert_int_equal(nib_tensor_set_open(path, &set), NIB_OK);
    if (nib_bnb_nf4_find(set, "w", &weight) != NIB_OK) fail_msg("%s", nib_error_message());
    for (int64_t i = 0; i < want->count; i++) {
        nib_bf16 got = nib_bf16_from_float(element(&weight, i)), expected;
        assert_int_equal(nib_tensor_read_bf16(want, i, 1, &expected), NIB_OK);
        if (got.bits != expected.bits)
            fail_msg("element %lld is %04x, expected %04x", (long long)i, got.bits, expected.bits);
    }
    nib_tensor_set_close(set);
    nib_tensor_set_close(golden);
    assert_int_equal(unlink(path), 0);
}

static void bad_states_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {STATE("fp4", "64", "[50, 96]", NESTED("256", "0.1")), "\"quant_type\" is not nf4"},
        {STATE("nf4", "128", "[50, 96]", NESTED("256", "0.1")), "\"blocksize\" is not 64"},
        {STATE("nf4", "64", "[50, 96]", NESTED("128", "0.1")), "\"nested_blocksize\" is not 256"},
        {STATE("nf4", "64", "[50, 96]", NESTED("256", "null")), "\"nested_offset\" is not a number"},
        {STATE("nf4", "64", "[50, 96]", NESTED("256", "1e300")), "\"nested_offset\" is not in the range of fp32"},
        {STATE("nf4", "64", "[50]", NESTED("256", "0.1")), "\"shape\" is not two sizes"},
        {STATE("nf4", "64", "[0, 96]", NESTED("256", "0.1")), "\"shape\" is not two sizes from 1"},
        {STATE("nf4", "64", "[4294967296, 4294967296]", NESTED("256", "0.1")), "\"shape\" is not two sizes from 1"},
        {STATE("nf4", "64", "[50, 98]", NESTED("256", "0.1")), "holds 2400 U8, expected 2450 U8 for [50, 98]"},
        {STATE("nf4", "64", "[50, 96]", ""), "tensor \"w.absmax\" holds 75 U8, expected 75 F32"},
        {"[]", "\"quant_type\" is not nf4"},
        {"{", "not valid JSON"},
    };
    char path[] = "/tmp/nib_nf4_XXXXXX";
    nib_tensor_set *golden, *set;
    nib_bnb_nf4 weight;
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/nf4/expected.safetensors", &golden), NIB_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_checkpoint(path, golden, "odd_rows_50x96", cases[i].text);
        assert_int_equal(nib_tensor_set_open(path, &set), NIB_OK);
        assert_int_equal(nib_bnb_nf4_find(set, "w", &weight), NIB_ERROR_DATA);
        if (strstr(nib_error_message(), cases[i].part) == NULL)
            fail_msg("\"%s\" is not in \"%s\"", cases[i].part, nib_error_message());
        nib_tensor_set_close(set);
    }
    nib_tensor_set_close(golden);
    assert_int_equal(unlink(path), 0);
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
        cmocka_unit_test(the_definition_gives_bitsandbytes_values),
        cmocka_unit_test(bad_states_are_refused),
        cmocka_unit_test(absent_parts_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
