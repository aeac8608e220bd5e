/* Rows of the embedding that are trained with an adapter: PEFT's losses and gradients of an untied model, transformers'
 * gradients of a tied one; the same bits whatever is computed again; files; refusals. */
#define TEST_NAME "token_rows"
#include "model_case.h"

#include "optim/optimizer.h"

#define PEFT NIB_TEST_DATA "/peft/llama3_gqa.token_rows"

/* Tolerances as in test_model.c: 1e-5 for the loss, 1e-4 of a gradient's norm; without the rows the loss is off by
 * 1e-2.
 */
static void untied_rows_meet_peft(void **state)
{
    packed p;
    nib_parameter *parameter;
    nib_tensor_set *documents = open_golden("llama3_gqa", "expected.safetensors"), *want;
    must(nib_tensor_set_open(PEFT "/expected.safetensors", &want));
    pack_documents(&p, documents);
    nib_model *model = open_trained(*state, "llama3_gqa", NIB_DTYPE_F32, PEFT, NULL, 0);
    must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, true));
    double loss = train_once(*state, model, &p), expected = golden_number(want, "loss", 0);
    if (!(fabs(loss - expected) <= 1e-5 * expected)) fail_msg("loss %.9g, expected %.9g", loss, expected);
    int count = nib_model_parameters(model, &parameter);
    assert_int_equal(count, 3 * 7 * 2 + 1);
    for (int i = 0; i < count; i++) {
        char name[256];
        snprintf(name, sizeof name, "grad.%s", parameter[i].name);
        double off = difference(parameter[i].gradient, (const float *)golden(want, name)->data,
                                parameter[i].rows * parameter[i].columns);
        if (!(off <= 1e-4)) fail_msg("%s: gradient off by %g of its norm", parameter[i].name, off);
    }
    nib_model_close(model);
    nib_tensor_set_close(want);
    nib_tensor_set_close(documents);
}

/* A fresh adapter is the base, so that the gradient of its rows is the base's own, which a tied head has a part in. */
static void fresh_rows_meet_full_gradients(void **state)
{
    static const char *const names[] = {"llama_tied", "llama3_gqa"};
    for (int m = 0; m < 2; m++) {
        packed p;
        nib_tensor_set *set = open_golden(names[m], "expected.safetensors");
        nib_tensor_set *full = open_golden(names[m], "expected_full_gradients.safetensors");
        pack_documents(&p, set);
        int32_t tokens[3];
        choose_tokens(&p, tokens);
        nib_model *model = open_trained(*state, names[m], NIB_DTYPE_F32, NULL, tokens, 3);
        must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, true));
        double loss = train_once(*state, model, &p), expected = golden_number(set, "base.loss", 0);
        if (!(fabs(loss - expected) <= 1e-5 * expected)) fail_msg("loss %.9g, expected %.9g", loss, expected);
        const nib_parameter *rows = token_rows_of(model);
        const float *want = (const float *)golden(full, "model.embed_tokens.weight")->data;
        for (int i = 0; i < 3; i++) {
            const float *row = want + tokens[i] * rows->columns;
            double off = difference(rows->gradient + i * rows->columns, row, rows->columns);
            if (!(off <= 1e-4)) fail_msg("%s: row of token %d is off by %g of its norm", names[m], tokens[i], off);
        }
        nib_model_close(model);
        nib_tensor_set_close(full);
        nib_tensor_set_close(set);
    }
}

/* Two steps of a tied model under each recompute policy, then the adapter as a file: every bit is the same, and a model
 * that loads the file computes the loss that the trained one had. */
static void steps_and_files_are_exact(void **state)
{
    static const int32_t tokens[] = {17, 5};
    packed p;
    nib_ops *ops = *state;
    float *first = NULL;
    int64_t n = 0;
    nib_tensor_set *set = open_golden("llama_tied", "expected.safetensors"), *saved;
    pack_documents(&p, set);
    for (int policy = NIB_RECOMPUTE_NONE; policy <= NIB_RECOMPUTE_LAYER; policy++) {
        nib_model *model = open_trained(ops, "llama_tied", NIB_DTYPE_F32, NULL, tokens, 2), *loaded;
        const nib_parameter *rows = token_rows_of(model);
        const nib_optimizer_options optimizer = {
            .adamw = {.learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .step = 1}, .max_norm = 1};
        double norm, loss = 0;
        must(nib_model_reserve(model, p.T, p.N, (nib_recompute)policy, true));
        for (int step = 0; step < 3; step++) {
            must(nib_optimizer_zero(ops, model));
            loss = train_once(ops, model, &p);
            if (step < 2) must(nib_optimizer_step(ops, model, &optimizer, &norm));
        }
        n = rows->rows * rows->columns;
        if (first == NULL) {
            first = nib_calloc((size_t)n, sizeof *first);
            memcpy(first, rows->master, (size_t)n * sizeof *first);
        }
        assert_memory_equal(first, rows->master, (size_t)n * sizeof *first);
        must(nib_model_save_adapter(model, CACHE_FOLDER "/saved", NULL));
        nib_model_close(model);
        loaded = open_trained(ops, "llama_tied", NIB_DTYPE_F32, CACHE_FOLDER "/saved", NULL, 0);
        must(nib_model_reserve(loaded, p.T, p.N, (nib_recompute)policy, true));
        assert_true(train_once(ops, loaded, &p) == loss);
        nib_model_close(loaded);
    }
    must(nib_tensor_set_open(CACHE_FOLDER "/saved/adapter_model.safetensors", &saved));
    assert_memory_equal(golden(saved, TOKEN_ROWS)->data, first, (size_t)n * sizeof *first);
    char *json;
    size_t length;
    must(nib_file_read(CACHE_FOLDER "/saved/adapter_config.json", 1 << 20, &json, &length));
    assert_non_null(strstr(json, "\"trainable_token_indices\": [\n    17,\n    5\n  ],"));
    nib_free(json);
    nib_free(first);
    nib_tensor_set_close(saved);
    nib_tensor_set_close(set);
}

static void write_tokens(const char *value)
{
    char text[1024];
    int n = snprintf(text, sizeof text,
                     "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": [\"q_proj\"], "
                     "\"trainable_token_indices\": %s}",
                     value);
    must(nib_file_make_folders(CACHE_FOLDER "/bad"));
    must(nib_file_replace(CACHE_FOLDER "/bad/adapter_config.json", text, (size_t)n));
}

static void what_is_no_row_is_refused(void **state)
{
    static const char *const cases[][2] = {{"[5, 320]", "token 320, the model has 320"},
                                           {"[5, 6, 5]", "token 5 is there twice"},
                                           {"[-1]", "must hold token ids"},
                                           {"[1.5]", "must hold token ids"},
                                           {"7", "must be a list of tokens"},
                                           {"{\"lm_head\": [5]}", "rows of \"lm_head\""},
                                           {"{\"embed_tokens\": 5}", "must be a list of tokens"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nib_model *model;
        nib_model_options options = {.path = NIB_TEST_DATA "/models/llama_tied",
                                     .quantization = NIB_QUANT_NONE,
                                     .compute = NIB_DTYPE_F32,
                                     .adapter = CACHE_FOLDER "/bad"};
        write_tokens(cases[i][0]);
        assert_int_equal(nib_model_open(*state, &options, &model), NIB_ERROR_DATA);
        if (strstr(nib_error_message(), cases[i][1]) == NULL)
            fail_msg("\"%s\" lacks \"%s\"", nib_error_message(), cases[i][1]);
    }
}

static int setup(void **state)
{
    nib_file_remove_tree(CACHE_FOLDER);
    return nib_cpu_backend_create(SCRATCH_BYTES, (nib_ops **)state) == NIB_OK ? 0 : -1;
}

static int teardown(void **state)
{
    nib_cpu_backend_free(*state);
    return nib_file_remove_tree(CACHE_FOLDER) == NIB_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(untied_rows_meet_peft),
        cmocka_unit_test(fresh_rows_meet_full_gradients),
        cmocka_unit_test(steps_and_files_are_exact),
        cmocka_unit_test(what_is_no_row_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
