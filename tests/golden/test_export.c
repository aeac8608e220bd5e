/* Merging against its definition, W + (alpha / r) B A, computed here in double from the files that PEFT wrote. */
#define TEST_NAME "export"
#include "model_case.h"

#include "export/difference.h"
#include "export/merge.h"

#define ALPHA_OVER_RANK 2.0 /* alpha 8, r 4 */

static void read_all(const nib_tensor_set *set, const char *name, float *out)
{
    const nib_tensor_view *view = golden(set, name);
    must(nib_tensor_read_float(view, 0, view->count, out));
}

static float *read_tensor(const nib_tensor_set *set, const char *name)
{
    float *values = nib_calloc((size_t)golden(set, name)->count, sizeof *values);
    assert_non_null(values);
    read_all(set, name, values);
    return values;
}

/* Checks one tensor of the merged file; returns whether the adapter has a part in it. */
static bool check_tensor(const nib_tensor_view *merged, const nib_tensor_set *base, const nib_tensor_set *adapter)
{
    char a_name[256], b_name[256];
    int stem = (int)strlen(merged->name) - (int)strlen(".weight");
    snprintf(a_name, sizeof a_name, "base_model.model.%.*s.lora_A.weight", stem, merged->name);
    snprintf(b_name, sizeof b_name, "base_model.model.%.*s.lora_B.weight", stem, merged->name);
    const nib_tensor_view *a_view = nib_tensor_set_find(adapter, a_name);
    float *w = read_tensor(base, merged->name), *got = nib_calloc((size_t)merged->count, sizeof *got);
    must(nib_tensor_read_float(merged, 0, merged->count, got));
    if (a_view == NULL) {
        assert_memory_equal(got, w, (size_t)merged->count * sizeof *got);
    } else {
        float *a = read_tensor(adapter, a_name), *b = read_tensor(adapter, b_name);
        int64_t R = a_view->shape[0], K = a_view->shape[1];
        for (int64_t i = 0; i < merged->count; i++) {
            double want = w[i];
            for (int64_t r = 0; r < R; r++)
                want += ALPHA_OVER_RANK * (double)b[i / K * R + r] * (double)a[r * K + i % K];
            /* half a unit of the last of bf16's eight bits, and what fp32 sums may add to it */
            assert_true(fabs((double)got[i] - want) <= 0x1.01p-8 * fabs(want) + 1e-6);
        }
        nib_free(a);
        nib_free(b);
    }
    nib_free(w);
    nib_free(got);
    return a_view != NULL;
}

static void merged_weights_are_the_sum(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3_gqa", "llama_tied", "mistral_window", "qwen2", "qwen3"};
    for (int i = 0; i < 5; i++) {
        char model[512], adapter_folder[600], file[640];
        nib_merge_summary summary;
        nib_tensor_set *merged, *adapter, *base = open_golden(names[i], "model.safetensors");
        snprintf(model, sizeof model, NIB_TEST_DATA "/models/%s", names[i]);
        snprintf(adapter_folder, sizeof adapter_folder, "%s/adapter", model);
        snprintf(file, sizeof file, "%s/adapter_model.safetensors", adapter_folder);
        must(nib_tensor_set_open(file, &adapter));
        must(nib_export_merged(model, adapter_folder, "merge_test", &summary));
        must(nib_tensor_set_open("merge_test/model.safetensors", &merged));
        assert_int_equal(summary.shards, 1);
        assert_int_equal((long long)nib_tensor_set_count(merged), summary.tensors);
        long long adapted = 0;
        for (size_t t = 0; t < nib_tensor_set_count(merged); t++)
            adapted += check_tensor(nib_tensor_set_at(merged, t), base, adapter);
        assert_int_equal(adapted, summary.adapted);
        assert_int_equal(2 * adapted, (long long)nib_tensor_set_count(adapter));
        nib_tensor_set_close(merged);
        nib_tensor_set_close(adapter);
        nib_tensor_set_close(base);
        must(nib_file_remove_tree("merge_test"));
    }
}

static void the_difference_of_a_model_to_itself_is_none(void **state)
{
    (void)state;
    const int32_t ids[] = {5, 17, 3, 60, 21, 8};
    nib_prompt prompts[] = {{ids, 6}, {ids, 4}};
    nib_logit_difference same, other;
    nib_ops *ops;
    must(nib_cpu_backend_create(SCRATCH_BYTES, &ops));
    nib_model_options base = {.path = NIB_TEST_DATA "/models/llama3_gqa", .quantization = NIB_QUANT_NONE},
                      adapted = base;
    adapted.adapter = NIB_TEST_DATA "/models/llama3_gqa/adapter";
    must(nib_export_difference(ops, &base, &base, prompts, 2, &same));
    assert_true(same.max_abs == 0.0 && same.mean_kl == 0.0 && same.same_best == 1.0);
    assert_int_equal(same.positions, 6); /* the second prompt is a beginning of the first */
    must(nib_export_difference(ops, &base, &adapted, prompts, 2, &other));
    assert_true(other.max_abs > 0.01 && other.mean_kl > 1e-6);
    nib_cpu_backend_free(ops);
}

/* Logits of six tokens, and the bytes that hold base weights. */
static float *logits_of(nib_ops *ops, nib_model_options options, bool stream_layers, int64_t *n, size_t *base)
{
    enum { T = 6 };
    int32_t id[T] = {5, 17, 3, 60, 21, 8}, position[T] = {0, 1, 2, 3, 4, 5}, end[T] = {6, 6, 6, 6, 6, 6};
    nib_micro_batch batch = {.T = T, .id = id, .position = position, .end = end};
    const nib_memory_class *memory;
    nib_model *model;
    options.stream_layers = stream_layers;
    must(nib_model_open(ops, &options, &model));
    must(nib_model_reserve(model, T, 0, NIB_RECOMPUTE_NONE, false));
    *n = T * nib_model_get_config(model)->vocabulary;
    float *logits = nib_calloc((size_t)*n, sizeof *logits);
    assert_non_null(logits);
    for (int pass = 0; pass < 2; pass++) must(nib_model_logits(model, &batch, logits)); /* the second reads anew */
    nib_model_memory(model, &memory);
    assert_string_equal(memory[0].name, "base weights");
    *base = memory[0].bytes;
    nib_model_close(model);
    return logits;
}

/* A model whose layers are read when they are used holds one of them, and computes what it does with all. */
static void streamed_layers_change_no_bit(void **state)
{
    (void)state;
    static const struct {
        const char *model, *adapter;
        nib_quantization quantization;
    } cases[] = {{"models/llama3_gqa", "models/llama3_gqa/adapter", NIB_QUANT_NONE},
                 {"models/llama3_gqa", "models/llama3_gqa/adapter", NIB_QUANT_NF4},
                 {"models/llama3_gqa", "peft/llama3_gqa.dora", NIB_QUANT_NONE},
                 {"models/qwen3", "models/qwen3/adapter", NIB_QUANT_NONE}};
    nib_ops *ops;
    must(nib_cpu_backend_create(SCRATCH_BYTES, &ops));
    for (int i = 0; i < 4; i++) {
        char model[512], adapter[512];
        nib_model_config config;
        int64_t n;
        size_t held, streamed;
        snprintf(model, sizeof model, NIB_TEST_DATA "/%s", cases[i].model);
        snprintf(adapter, sizeof adapter, NIB_TEST_DATA "/%s", cases[i].adapter);
        must(nib_model_config_read(model, &config));
        nib_model_options options = {.path = model,
                                     .adapter = adapter,
                                     .quantization = cases[i].quantization,
                                     .compute = NIB_DTYPE_F32,
                                     .cache_folder = CACHE_FOLDER};
        float *want = logits_of(ops, options, false, &n, &held), *got = logits_of(ops, options, true, &n, &streamed);
        assert_memory_equal(got, want, (size_t)n * sizeof *want);
        /* Gate, up and down alone of all layers but one, in two bytes or half a byte each. */
        const int64_t freed = (config.layers - 1) * 3 * config.hidden * config.feed_forward;
        assert_true(config.layers > 1);
        assert_true(held - streamed >= (size_t)(cases[i].quantization == NIB_QUANT_NONE ? 2 * freed : freed / 2));
        nib_free(want);
        nib_free(got);
    }
    must(nib_file_remove_tree(CACHE_FOLDER));
    nib_cpu_backend_free(ops);
}

static void an_adapter_of_another_model_is_refused(void **state)
{
    (void)state;
    nib_merge_summary summary;
    assert_int_equal(nib_export_merged(NIB_TEST_DATA "/models/llama_tied", NIB_TEST_DATA "/models/llama3_gqa/adapter",
                                       "merge_refused", &summary),
                     NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "adapter"));
    assert_false(nib_file_exists("merge_refused/model.safetensors"));
    must(nib_file_remove_tree("merge_refused"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merged_weights_are_the_sum),
        cmocka_unit_test(the_difference_of_a_model_to_itself_is_none),
        cmocka_unit_test(streamed_layers_change_no_bit),
        cmocka_unit_test(an_adapter_of_another_model_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
