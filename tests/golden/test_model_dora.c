/* DoRA adapters in a whole model: PEFT's losses and gradients over bf16 and NF4 weights; a fresh one changes nothing;
 * the same bits whatever is computed again; files; merging. */
#define TEST_NAME "dora"
#include "model_case.h"

#include "export/merge.h"

#define PEFT      NIB_TEST_DATA "/peft/llama3_gqa.dora"
#define MAGNITUDE "base_model.model.model.layers.1.mlp.down_proj.lora_magnitude_vector"

/* llama3_gqa: for training from an adapter or, if NULL, with a fresh one; or for scoring with it. */
static nib_model *open_dora(nib_ops *ops, const char *path, const char *adapter, nib_quantization quantization,
                            bool train)
{
    nib_model *model;
    nib_model_options options = {
        .path = path,
        .quantization = quantization,
        .compute = NIB_DTYPE_F32,
        .train = train,
        .adapter = train ? NULL : adapter,
        .lora = {.rank = 4, .alpha = 8, .dora = true, .all_linear = true, .init_adapter = adapter},
        .cache_folder = CACHE_FOLDER};
    must(nib_model_open(ops, &options, &model));
    return model;
}

static nib_model *open_training(nib_ops *ops, const char *adapter, nib_quantization quantization)
{
    return open_dora(ops, NIB_TEST_DATA "/models/llama3_gqa", adapter, quantization, true);
}

static const nib_parameter *find(nib_model *model, const char *name)
{
    nib_parameter *p;
    int count = nib_model_parameters(model, &p);
    for (int i = 0; i < count; i++)
        if (strcmp(p[i].name, name) == 0) return &p[i];
    fail_msg("no parameter %s", name);
    return NULL;
}

/* Tolerances as in test_model.c: 1e-5 for the loss, 1e-4 of a gradient's norm; as plain LoRA the loss is off by 1e-3.
 */
static void adapters_meet_peft(void **state)
{
    static const char *const folders[] = {PEFT, PEFT "_nf4"};
    packed p;
    pack_golden(&p, "llama3_gqa");
    for (int i = 0; i < 2; i++) {
        char file[4096];
        nib_parameter *parameter;
        nib_tensor_set *want;
        snprintf(file, sizeof file, "%s/expected.safetensors", folders[i]);
        must(nib_tensor_set_open(file, &want));
        nib_model *model = open_training(*state, folders[i], i == 0 ? NIB_QUANT_NONE : NIB_QUANT_NF4);
        must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, true));
        double loss = train_once(*state, model, &p), expected = golden_number(want, "loss", 0);
        if (!(fabs(loss - expected) <= 1e-5 * expected)) fail_msg("loss %.9g, expected %.9g", loss, expected);
        int count = nib_model_parameters(model, &parameter);
        assert_int_equal(count, 3 * 7 * 3);
        for (int j = 0; j < count; j++) {
            char name[256];
            const bool vector = strstr(parameter[j].name, "magnitude") != NULL;
            snprintf(name, sizeof name, "grad.%s%s", parameter[j].name, vector ? ".weight" : "");
            double off = difference(parameter[j].gradient, (const float *)golden(want, name)->data,
                                    parameter[j].rows * parameter[j].columns);
            if (!(off <= 1e-4)) fail_msg("%s: gradient off by %g of its norm", parameter[j].name, off);
        }
        nib_model_close(model);
        nib_tensor_set_close(want);
    }
}

/* Magnitudes begin as the norms of the base's rows. */
static void a_fresh_adapter_is_the_base(void **state)
{
    packed p;
    nib_tensor_set *set = open_golden("llama3_gqa", "expected.safetensors");
    nib_tensor_set *base = open_golden("llama3_gqa", "model.safetensors");
    pack_documents(&p, set);
    nib_model *model = open_training(*state, NULL, NIB_QUANT_NONE);
    must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, true));
    double loss = train_once(*state, model, &p), expected = golden_number(set, "base.loss", 0);
    if (!(fabs(loss - expected) <= 1e-5 * expected)) fail_msg("loss %.9g, expected %.9g", loss, expected);
    const nib_parameter *magnitude = find(model, MAGNITUDE);
    const nib_tensor_view *view = golden(base, "model.layers.1.mlp.down_proj.weight");
    float *w = nib_calloc((size_t)view->count, sizeof *w);
    must(nib_tensor_read_float(view, 0, view->count, w));
    assert_int_equal(magnitude->columns, view->shape[0]);
    for (int64_t n = 0; n < view->shape[0]; n++) {
        double square = 0;
        for (int64_t k = 0; k < view->shape[1]; k++)
            square += (double)w[n * view->shape[1] + k] * (double)w[n * view->shape[1] + k];
        assert_true(fabs((double)magnitude->master[n] - sqrt(square)) <= 1e-6 * sqrt(square));
    }
    nib_free(w);
    nib_model_close(model);
    nib_tensor_set_close(base);
    nib_tensor_set_close(set);
}

/* Two steps under each recompute policy, then the adapter as a file: every bit is the same, and a model that loads the
 * file computes the loss that the trained one had. */
static void steps_and_files_are_exact(void **state)
{
    packed p;
    nib_ops *ops = *state;
    double first = 0;
    nib_tensor_set *saved;
    pack_golden(&p, "llama3_gqa");
    for (int policy = NIB_RECOMPUTE_NONE; policy <= NIB_RECOMPUTE_LAYER; policy++) {
        nib_model *model = open_training(ops, NULL, NIB_QUANT_NF4), *loaded;
        const nib_optimizer_options optimizer = {
            .adamw = {.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .step = 1}, .max_norm = 1};
        double norm, loss = 0;
        must(nib_model_reserve(model, p.T, p.N, (nib_recompute)policy, true));
        for (int step = 0; step < 3; step++) {
            must(nib_optimizer_zero(ops, model));
            loss = train_once(ops, model, &p);
            if (step < 2) must(nib_optimizer_step(ops, model, &optimizer, &norm));
        }
        if (policy == NIB_RECOMPUTE_NONE) first = loss;
        assert_true(loss == first);
        must(nib_model_save_adapter(model, CACHE_FOLDER "/saved", NULL));
        must(nib_tensor_set_open(CACHE_FOLDER "/saved/adapter_model.safetensors", &saved));
        must(nib_tensor_expect_shape(golden(saved, MAGNITUDE), 1, find(model, MAGNITUDE)->columns));
        nib_tensor_set_close(saved);
        nib_model_close(model);
        loaded = open_training(ops, CACHE_FOLDER "/saved", NIB_QUANT_NF4);
        must(nib_model_reserve(loaded, p.T, p.N, (nib_recompute)policy, true));
        assert_true(train_once(ops, loaded, &p) == loss);
        nib_model_close(loaded);
    }
}

/* Every row of a merged weight points where W + scale B A does and has its magnitude; here by what the model computes:
 * weights are rounded to bf16 once, which moves a logit by some 2^-9 of itself and the mean of 100 losses by less. */
static void merging_keeps_the_loss(void **state)
{
    packed p;
    float nll[1024];
    double sum = 0;
    char *config;
    size_t length;
    nib_merge_summary summary;
    nib_tensor_set *want;
    pack_golden(&p, "llama3_gqa");
    nib_micro_batch batch = as_batch(&p);
    must(nib_tensor_set_open(PEFT "/expected.safetensors", &want));
    must(nib_export_merged(NIB_TEST_DATA "/models/llama3_gqa", PEFT, CACHE_FOLDER "/merged", &summary));
    assert_int_equal(summary.adapted, 3 * 7);
    must(nib_file_read(NIB_TEST_DATA "/models/llama3_gqa/config.json", 1 << 20, &config, &length));
    must(nib_file_replace(CACHE_FOLDER "/merged/config.json", config, length));
    nib_free(config);
    nib_model *model = open_dora(*state, CACHE_FOLDER "/merged", NULL, NIB_QUANT_NONE, false);
    must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, false));
    must(nib_model_score_batch(model, &batch, nll));
    for (int64_t i = 0; i < p.N; i++) sum += (double)nll[i] / (double)p.N;
    const double expected = golden_number(want, "loss", 0);
    if (!(fabs(sum - expected) <= 5e-4 * expected)) fail_msg("merged: loss %.9g, expected %.9g", sum, expected);
    nib_model_close(model);
    nib_tensor_set_close(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adapters_meet_peft),
        cmocka_unit_test(a_fresh_adapter_is_the_base),
        cmocka_unit_test(steps_and_files_are_exact),
        cmocka_unit_test(merging_keeps_the_loss),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
