/* Every GGUF block type against gguf-py's dequantisation, bit for bit. */
#include "check.h"

#include "formats/tensor_set.h"

#include <stdlib.h>
#include <string.h>

static void every_block_type_is_bit_exact(void **state)
{
    (void)state;
    nib_tensor_set *types, *expected;
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/gguf/types.gguf", &types), NIB_OK);
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/gguf/types_expected.safetensors", &expected), NIB_OK);
    size_t blocks = 0;
    for (size_t i = 0; i < nib_tensor_set_count(types); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(types, i);
        const nib_tensor_view *want = nib_tensor_set_find(expected, tensor->name);
        assert_non_null(want);
        assert_int_equal(tensor->count, want->count);
        float *got = malloc((size_t)tensor->count * sizeof *got);
        assert_int_equal(nib_tensor_read_float(tensor, 0, tensor->count, got), NIB_OK);
        if (memcmp(got, want->data, want->bytes) != 0) fail_msg("%s differs", tensor->name);
        /* A piece read from the middle is the same piece. */
        float piece[256];
        assert_int_equal(nib_tensor_read_float(tensor, 512, 256, piece), NIB_OK);
        assert_memory_equal(piece, got + 512, sizeof piece);
        free(got);
        blocks += nib_dtype_block(tensor->dtype) > 1;
    }
    assert_int_equal(blocks, 12);
    nib_tensor_set_close(types);
    nib_tensor_set_close(expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_block_type_is_bit_exact)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
