/* Checkpoints as they come: NF4 quantised ahead of time by transformers, and damaged ones. */
#define TEST_NAME "source"
#include "formats/safetensors_writer.h"
#include "model_case.h"

#define GOLDEN CACHE_FOLDER "/model"

static nib_status open_path(nib_ops *ops, const char *path, nib_quantization quantization, nib_model **model)
{
    nib_model_options options = {
        .path = path, .quantization = quantization, .compute = NIB_DTYPE_F32, .cache_folder = CACHE_FOLDER};
    return nib_model_open(ops, &options, model);
}

static void copy_file(const char *from, const char *to)
{
    nib_file file;
    must(nib_file_map(&file, from));
    must(nib_file_replace(to, file.data, file.size));
    nib_file_unmap(&file);
}

typedef enum { KEEP, MISSING, SURPLUS, WRONG_SHAPE, NOT_A_NUMBER } damage;

/* llama3_gqa's checkpoint with one fault, at model.norm.weight where a tensor is meant. */
static void write_checkpoint(damage fault)
{
    nib_tensor_set *set = open_golden("llama3_gqa", "model.safetensors");
    nib_safetensors_writer *writer;
    nib_bf16 not_a_number = {0x7fc0};
    must(nib_file_make_folders(GOLDEN));
    copy_file(NIB_TEST_DATA "/models/llama3_gqa/config.json", GOLDEN "/config.json");
    must(nib_safetensors_writer_begin(GOLDEN "/model.safetensors", &writer));
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
            const nib_tensor_view *t = nib_tensor_set_at(set, i);
            bool here = strcmp(t->name, "model.norm.weight") == 0;
            int64_t shortened[1] = {t->count - 1};
            if (here && fault == MISSING) continue;
            bool cut = here && fault == WRONG_SHAPE;
            if (pass == 0) {
                must(nib_safetensors_writer_declare(writer, t->name, t->dtype, t->rank, cut ? shortened : t->shape));
                continue;
            }
            uint64_t first = here && fault == NOT_A_NUMBER ? 2 : 0;
            if (first > 0) must(nib_safetensors_writer_data(writer, &not_a_number, 2));
            must(nib_safetensors_writer_data(writer, t->data + first, t->bytes - first - (cut ? 2 : 0)));
        }
        if (fault != SURPLUS) continue;
        if (pass == 0)
            must(nib_safetensors_writer_declare(writer, "model.extra.weight", NIB_DTYPE_BF16, 1, (int64_t[]){1}));
        else
            must(nib_safetensors_writer_data(writer, &not_a_number, 2));
    }
    must(nib_safetensors_writer_finish(writer, NULL));
    nib_tensor_set_close(set);
}

static void damaged_checkpoints_are_refused(void **state)
{
    static const struct {
        damage fault;
        const char *message;
    } cases[] = {{MISSING, "\"model.norm.weight\" is missing"},
                 {SURPLUS, "\"model.extra.weight\" is not one of"},
                 {WRONG_SHAPE, "has shape [95], expected [96]"},
                 {NOT_A_NUMBER, "\"model.norm.weight\" holds NaN or Inf"}};
    nib_model *model;
    write_checkpoint(KEEP);
    must(open_path(*state, GOLDEN, NIB_QUANT_NONE, &model));
    nib_model_close(model);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int quantized = 0; quantized < 2; quantized++) {
            write_checkpoint(cases[i].fault);
            nib_quantization quantization = quantized ? NIB_QUANT_NF4 : NIB_QUANT_NONE;
            assert_int_equal(open_path(*state, GOLDEN, quantization, &model), NIB_ERROR_DATA);
            if (strstr(nib_error_message(), cases[i].message) == NULL)
                fail_msg("\"%s\" lacks \"%s\"", nib_error_message(), cases[i].message);
        }
}

static double loss_as(nib_ops *ops, const char *path, const char *documents, nib_quantization quantization)
{
    packed p;
    nib_model *model;
    nib_tensor_set *set = open_golden(documents, "expected.safetensors");
    float nll[1024];
    double sum = 0;
    pack_documents(&p, set);
    nib_micro_batch batch = as_batch(&p);
    must(open_path(ops, path, quantization, &model));
    must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, false));
    must(nib_model_score_batch(model, &batch, nll));
    for (int64_t i = 0; i < p.N; i++) sum += (double)nll[i];
    nib_model_close(model);
    nib_tensor_set_close(set);
    return sum;
}

static double loss_of(nib_ops *ops, const char *path) { return loss_as(ops, path, "llama3_gqa", NIB_QUANT_NF4); }

/* The golden model in F32, moved by `step` along the gradient that torch found. Returns the gradient's squared norm. */
static double write_moved(float step)
{
    nib_tensor_set *set = open_golden("llama_tied", "model.safetensors");
    nib_tensor_set *gradients = open_golden("llama_tied", "expected_full_gradients.safetensors");
    nib_safetensors_writer *writer;
    double square = 0;
    must(nib_file_make_folders(GOLDEN));
    copy_file(NIB_TEST_DATA "/models/llama_tied/config.json", GOLDEN "/config.json");
    must(nib_safetensors_writer_begin(GOLDEN "/model.safetensors", &writer));
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
            const nib_tensor_view *t = nib_tensor_set_at(set, i);
            if (pass == 0) {
                must(nib_safetensors_writer_declare(writer, t->name, NIB_DTYPE_F32, t->rank, t->shape));
                continue;
            }
            const float *gradient = (const float *)golden(gradients, t->name)->data;
            float *values = nib_calloc((size_t)t->count, sizeof *values);
            must(nib_tensor_read_float(t, 0, t->count, values));
            for (int64_t k = 0; k < t->count; k++) {
                values[k] += step * gradient[k];
                square += (double)gradient[k] * (double)gradient[k];
            }
            must(nib_safetensors_writer_data(writer, values, (uint64_t)t->count * sizeof *values));
            nib_free(values);
        }
    must(nib_safetensors_writer_finish(writer, NULL));
    nib_tensor_set_close(gradients);
    nib_tensor_set_close(set);
    return square;
}

/* A step this small is lost on most weights in bf16. Computed in fp32 it moves the mean loss by step times the squared
 * norm; the sum's rounding (1e-6 of the loss) and the second order leave less than a tenth of that. Quantised to NF4
 * the model is the one of the bf16 weights, since it is rounded first. */
static void f32_weights_are_exact_in_fp32(void **state)
{
    const float step = 1e-3f;
    double square = write_moved(0),
           bf16 = loss_as(*state, NIB_TEST_DATA "/models/llama_tied", "llama_tied", NIB_QUANT_NONE);
    double targets = 0;
    nib_tensor_set *set = open_golden("llama_tied", "expected.safetensors");
    packed p;
    pack_documents(&p, set);
    targets = (double)p.N;
    assert_true(loss_as(*state, GOLDEN, "llama_tied", NIB_QUANT_NONE) == bf16);
    assert_true(loss_as(*state, GOLDEN, "llama_tied", NIB_QUANT_NF4) ==
                loss_as(*state, NIB_TEST_DATA "/models/llama_tied", "llama_tied", NIB_QUANT_NF4));
    write_moved(step);
    double moved = (loss_as(*state, GOLDEN, "llama_tied", NIB_QUANT_NONE) - bf16) / targets;
    double want = (double)step * square;
    if (!(fabs(moved - want) <= 0.1 * want)) fail_msg("the loss moved by %g, expected %g", moved, want);
    nib_tensor_set_close(set);
}

/* transformers' own double quantised checkpoint holds the weights that we quantise ourselves: same bits, same loss.
 * Single quantised scales differ by up to the 8-bit step (1e-2 of a scale), which moves the loss by less than 1e-3. */
static void ready_made_nf4_is_loaded_as_it_is(void **state)
{
    double ours = loss_of(*state, NIB_TEST_DATA "/models/llama3_gqa");
    double twice = loss_of(*state, NIB_TEST_DATA "/nf4/llama_bnb_nf4_double");
    double once = loss_of(*state, NIB_TEST_DATA "/nf4/llama_bnb_nf4");
    assert_true(twice == ours);
    assert_true(once != ours && fabs(once - ours) < 1e-3 * ours);
}

static void nf4_checkpoint_is_no_16_bit_base(void **state)
{
    nib_model *model;
    assert_int_equal(open_path(*state, NIB_TEST_DATA "/nf4/llama_bnb_nf4", NIB_QUANT_NONE, &model), NIB_ERROR_CONFIG);
    assert_non_null(strstr(nib_error_message(), "NF4"));
}

/* Codes of other values would be read as NF4's without a word. */
static void other_values_than_nf4s_are_refused(void **state)
{
    static const char path[] = NIB_TEST_DATA "/nf4/llama_bnb_nf4_double";
    nib_tensor_set *set;
    nib_safetensors_writer *writer;
    nib_model *model;
    must(nib_file_make_folders(GOLDEN));
    copy_file(NIB_TEST_DATA "/nf4/llama_bnb_nf4_double/config.json", GOLDEN "/config.json");
    must(nib_tensor_set_open(path, &set));
    must(nib_safetensors_writer_begin(GOLDEN "/model.safetensors", &writer));
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *t = nib_tensor_set_at(set, i);
        must(nib_safetensors_writer_declare(writer, t->name, t->dtype, t->rank, t->shape));
    }
    for (size_t i = 0; i < nib_tensor_set_count(set); i++) {
        const nib_tensor_view *t = nib_tensor_set_at(set, i);
        float map[16];
        bool here = strcmp(t->name, "model.layers.0.mlp.up_proj.weight.quant_map") == 0;
        if (here) must(nib_tensor_read_float(t, 0, 16, map));
        map[3] = here ? -0.4f : 0;
        must(nib_safetensors_writer_data(writer, here ? (const void *)map : t->data, t->bytes));
    }
    must(nib_safetensors_writer_finish(writer, NULL));
    nib_tensor_set_close(set);
    assert_int_equal(open_path(*state, GOLDEN, NIB_QUANT_NF4, &model), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "quant_map of tensor \"model.layers.0.mlp.up_proj.weight\""));
}

static void unknown_configurations_are_refused(void **state)
{
    static const char *const cases[][2] = {
        {"\"model_type\": \"mamba\"", "model type \"mamba\""},
        {"\"model_type\": \"llama\", \"hidden_act\": \"relu\"", "hidden_act \"relu\""},
        {"\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 4}", "\"longrope\""},
        {"\"model_type\": \"qwen2\", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"beta_slow\": 40}",
         "beta_slow 40"},
        {"\"model_type\": \"qwen2\", \"rope_theta\": 1, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}",
         "rope_theta above 1"},
        {"\"model_type\": \"qwen2\", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"truncate\": false}",
         "\"truncate\" true"},
        {"\"model_type\": \"qwen3\", \"sliding_window\": 64, \"use_sliding_window\": true, \"max_window_layers\": 3",
         "max_window_layers 3"},
        {"\"model_type\": \"llama\", \"num_key_value_heads\": 3", "no multiple of 3"},
        {"\"model_type\": \"llama\", \"head_dim\": 15", "head_dim is 15"},
        {"\"model_type\": \"llama\", \"hidden_size\": -1", "hidden_size"}};
    (void)state;
    must(nib_file_make_folders(GOLDEN));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024];
        nib_model_config config;
        int n = snprintf(text, sizeof text,
                         "{\"vocab_size\": 320, %s\"num_hidden_layers\": 1, \"num_attention_heads\": 4, "
                         "\"intermediate_size\": 8, %s}",
                         strstr(cases[i][0], "hidden_size") != NULL ? "" : "\"hidden_size\": 64, ", cases[i][0]);
        must(nib_file_replace(GOLDEN "/config.json", text, (size_t)n));
        assert_int_equal(nib_model_config_read(GOLDEN, &config), NIB_ERROR_DATA);
        if (strstr(nib_error_message(), cases[i][1]) == NULL)
            fail_msg("\"%s\" lacks \"%s\"", nib_error_message(), cases[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_checkpoints_are_refused),    cmocka_unit_test(ready_made_nf4_is_loaded_as_it_is),
        cmocka_unit_test(nf4_checkpoint_is_no_16_bit_base),   cmocka_unit_test(other_values_than_nf4s_are_refused),
        cmocka_unit_test(unknown_configurations_are_refused), cmocka_unit_test(f32_weights_are_exact_in_fp32),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
