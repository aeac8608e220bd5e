/* A full fine-tune of llama3_gqa with moments of 8 bits against bitsandbytes' AdamW8bit (data/adamw, made by
 * tests/peers/adamw_8bit_model.py): eight steps in fp32.
 *
 * "exact" has codes by ops.h's definition. Sums in another order turn a code here and there, which moves a value by up
 * to 7 % of its update: 2e-5 of the loss, 1e-4 of the gradient's norm and 2e-4 of a tensor's are allowed after eight
 * steps; moments of 32 bits, or second moments that are rounded to 0, differ by 5e-5 and 2e-3 of a loss. bitsandbytes
 * on a CPU looks codes up in steps of 3e-5 instead, which costs as much as the 8 bits themselves: 2e-4. */
#define TEST_NAME "adamw_8bit"
#include "model_case.h"

#define GOLDEN NIB_TEST_DATA "/adamw/llama3_gqa_8bit.safetensors"

static void meets(const char *what, int step, double found, double expected, double tolerance)
{
    if (!(fabs(found - expected) <= tolerance * expected))
        fail_msg("step %d: %s %.9g, expected %.9g within %g of it", step, what, found, expected, tolerance);
}

static void eight_steps_are_those_of_bitsandbytes(void **state)
{
    nib_ops *ops = *state;
    nib_tensor_set *want, *documents = open_golden("llama3_gqa", "expected.safetensors");
    nib_parameter *p;
    must(nib_tensor_set_open(GOLDEN, &want));
    nib_model *model = open_model_with(
        ops, "llama3_gqa",
        (nib_model_options){
            .quantization = NIB_QUANT_NONE, .compute = NIB_DTYPE_F32, .full = true, .moments_8bit = true});
    must(nib_model_reserve(model, 1024, 1024, NIB_RECOMPUTE_NONE, true));
    for (int s = 0; s < GOLDEN_STEPS; s++) {
        double norm, loss = train_golden_step(ops, model, documents, s, &norm);
        meets("loss", s, loss, golden_number(want, "exact.losses", s), 2e-5);
        meets("gradient norm", s, norm, golden_number(want, "exact.grad_norms", s), 1e-4);
        meets("loss", s, loss, golden_number(want, "losses", s), 2e-4);
    }
    const int count = nib_model_parameters(model, &p);
    int narrow = 0, compared = 0;
    for (int i = 0; i < count; i++) {
        char name[192];
        snprintf(name, sizeof name, "narrow.%s", p[i].name);
        const bool expected = *golden(want, name)->data != 0;
        if (p[i].moments_8bit != expected) fail_msg("%s: moments of 8 bits: %d", p[i].name, p[i].moments_8bit);
        narrow += expected;
        snprintf(name, sizeof name, "final.%s", p[i].name);
        const nib_tensor_view *final = nib_tensor_set_find(want, name);
        if (final == NULL) continue;
        const double off = difference(p[i].master, (const float *) final->data, final->count);
        if (!(off <= 2e-4)) fail_msg("%s is off by %g of its norm", p[i].name, off);
        compared++;
    }
    assert_int_equal(compared, 4);
    assert_true(narrow > 0 && narrow < count);
    nib_model_close(model);
    nib_tensor_set_close(documents);
    nib_tensor_set_close(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eight_steps_are_those_of_bitsandbytes),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
