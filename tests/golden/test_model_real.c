/* SmolLM2-135M-Instruct's real weights against transformers and peft: log-probabilities of prompts in 16 bits, and 20
 * QLoRA steps on 80 rows of GSM8K. Skipped where the model's file is not there: SMOLLM2_GGUF names it, else the cache
 * folder of launch/model. */
#include "base/json.h"
#include "formats/tensor_set.h"
#define TEST_NAME "real"
#include "model_case.h"

#define ROWS       4
#define STEPS      20
#define MAX_TOKENS 4096

static const char *model_path(void)
{
    static char path[4096];
    const char *named = getenv("SMOLLM2_GGUF"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (named != NULL)
        snprintf(path, sizeof path, "%s", named);
    else if (cache != NULL)
        snprintf(path, sizeof path, "%s/nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf", cache);
    else
        snprintf(path, sizeof path, "%s/.cache/nibble/models/SmolLM2-135M-Instruct.Q4_1.gguf", home ? home : "");
    return nib_file_exists(path) ? path : NULL;
}

static nib_tensor_set *open_expected(void)
{
    nib_tensor_set *set;
    must(nib_tensor_set_open(NIB_TEST_DATA "/real/smollm2_135m/expected.safetensors", &set));
    return set;
}

/* A log-probability is a sum over 30 layers in fp32 in another order; 5e-4 is 1e-6 of the logits' size times that
 * depth. Weights of Q4_1 that were not rounded to bf16, or a Q whose rows were not put back, are off by 1e-2 and by
 * units. */
static void log_probabilities_meet_transformers(void **state)
{
    nib_model_options options = {.path = model_path(), .quantization = NIB_QUANT_NONE, .compute = NIB_DTYPE_F32};
    if (options.path == NULL) skip();
    nib_model *model;
    nib_tensor_set *set = open_expected();
    must(nib_model_open(*state, &options, &model));
    must(nib_model_reserve(model, 64, 64, NIB_RECOMPUTE_NONE, false));
    for (int prompt = 0; prompt < 4; prompt++) {
        char name[64];
        int32_t id[64], position[64], end[64], row[64];
        float weight[64], nll[64];
        snprintf(name, sizeof name, "prompt%d.input_ids", prompt);
        const nib_tensor_view *ids = golden(set, name);
        int32_t T = (int32_t)ids->count;
        memcpy(id, ids->data, (size_t)T * sizeof *id);
        for (int32_t t = 0; t < T; t++) {
            position[t] = row[t] = t;
            end[t] = T;
            weight[t] = 1.0f;
        }
        nib_micro_batch batch = {.T = T,
                                 .id = id,
                                 .position = position,
                                 .end = end,
                                 .N = T - 1,
                                 .target_row = row,
                                 .target_label = id + 1,
                                 .target_weight = weight};
        must(nib_model_score_batch(model, &batch, nll));
        snprintf(name, sizeof name, "prompt%d.token_logprobs", prompt);
        for (int32_t t = 0; t < T - 1; t++) {
            double want = golden_number(set, name, t);
            if (!(fabs(want + (double)nll[t]) <= 5e-4)) fail_msg("%s[%d]: %.7g, expected %.7g", name, t, -nll[t], want);
        }
    }
    nib_model_close(model);
    nib_tensor_set_close(set);
}

static int32_t *read_ids(const nib_json *list)
{
    int32_t *ids = nib_calloc(list->length, sizeof *ids);
    int64_t i = 0;
    for (const nib_json *item = list->first; item != NULL; item = item->next) ids[i++] = (int32_t)item->integer;
    return ids;
}

/* The next rows of the file as one optimizer step. */
static void read_step(char **cursor, nib_pool *pool, nib_row rows[ROWS])
{
    for (int r = 0; r < ROWS; r++) {
        nib_json *root;
        char *line_end = strchr(*cursor, '\n');
        must(nib_json_parse("train_tokens", *cursor, (size_t)(line_end - *cursor), (nib_json_options){0}, pool, &root));
        *cursor = line_end + 1;
        const nib_json *list = nib_json_get(root, "input_ids");
        int32_t *ids = read_ids(list), *labels = read_ids(nib_json_get(root, "labels"));
        uint8_t *supervised = nib_calloc(list->length, 1);
        for (size_t i = 0; i < list->length; i++) supervised[i] = i > 0 && labels[i] != -100;
        rows[r] = (nib_row){.ids = ids, .supervised = supervised, .length = (int32_t)list->length, .weight = 1.0f};
        nib_free(labels);
    }
}

static double train_step(nib_ops *ops, nib_model *model, const nib_row *rows, int64_t step)
{
    nib_pack pack;
    nib_parameter *p;
    int64_t n = 0;
    double sum = 0;
    nib_clip clip = {0};
    nib_pack_options options = {.slots = 1, .micro_batch_tokens = MAX_TOKENS, .share_prefixes = true, .pack = true};
    must(nib_pack_step(rows, ROWS, options, &pack));
    float *nll = nib_calloc((size_t)pack.supervised_tokens, sizeof *nll);
    for (int b = 0; b < pack.micro_batches; b++) {
        nib_step_options scale = {.gradient_scale = (float)(1.0 / pack.supervised_weight)};
        must(nib_model_reserve(model, pack.micro_batch[b].T, pack.micro_batch[b].N, NIB_RECOMPUTE_NONE, true));
        must(nib_model_train_batch(model, &pack.micro_batch[b], scale, nll));
        for (int64_t i = 0; i < pack.micro_batch[b].N; i++) sum += (double)nll[i];
    }
    int count = nib_model_parameters(model, &p);
    for (int i = 0; i < count; i++) n += p[i].rows * p[i].columns;
    float *gradient = p[0].gradient;
    must(ops->global_norm(ops, 1, &gradient, &n, 1.0, &clip));
    const nib_adamw_factors factors = nib_adamw_factors_of((nib_adamw){5e-4, 0.9, 0.999, 1e-8, 0.0, step});
    for (int i = 0; i < count; i++)
        must(ops->adamw(ops, &factors, &clip, p[i].rows * p[i].columns, p[i].master, p[i].gradient, p[i].first_moment,
                        p[i].second_moment));
    must(ops->zero(ops, gradient, (size_t)n * sizeof(float)));
    must(nib_model_refresh(model));
    double loss = sum / (double)pack.supervised_tokens;
    nib_free(nll);
    nib_pack_free(&pack);
    return loss;
}

/* The golden run's A; its B is zero, as a new adapter's is. */
static void set_initial_adapter(nib_model *model)
{
    nib_parameter *p;
    nib_tensor_set *set;
    must(nib_tensor_set_open(NIB_TEST_DATA "/real/smollm2_135m/adapter_init_a.safetensors", &set));
    int count = nib_model_parameters(model, &p);
    assert_int_equal(nib_tensor_set_count(set) * 2, count);
    for (int i = 0; i < count; i++) {
        if (strstr(p[i].name, "lora_B") != NULL) continue;
        const nib_tensor_view *a = golden(set, p[i].name);
        must(nib_tensor_expect_shape(a, 2, p[i].rows, p[i].columns));
        memcpy(p[i].master, a->data, a->bytes);
    }
    must(nib_model_refresh(model));
    nib_tensor_set_close(set);
}

static void twenty_steps_meet_peft(void **state)
{
    nib_model_options options = {.path = model_path(),
                                 .quantization = NIB_QUANT_NF4,
                                 .compute = NIB_DTYPE_F32,
                                 .train = true,
                                 .lora = {.rank = 4, .alpha = 8, .all_linear = true},
                                 .cache_folder = CACHE_FOLDER};
    if (options.path == NULL) skip();
    nib_model *model;
    nib_tensor_set *set = open_expected();
    char *text;
    size_t length;
    must(nib_file_read(NIB_TEST_DATA "/real/smollm2_135m/train_tokens.jsonl", 1 << 20, &text, &length));
    must(nib_model_open(*state, &options, &model));
    set_initial_adapter(model);
    char *cursor = text;
    for (int s = 0; s < STEPS; s++) {
        nib_pool pool = {0};
        nib_row rows[ROWS];
        read_step(&cursor, &pool, rows);
        double loss = train_step(*state, model, rows, s + 1), want = golden_number(set, "train.losses", s);
        if (!(fabs(loss - want) <= 5e-4)) fail_msg("step %d: loss %.7g, expected %.7g", s, loss, want);
        for (int r = 0; r < ROWS; r++) {
            nib_free((void *)rows[r].ids);
            nib_free((void *)rows[r].supervised);
        }
        nib_pool_free(&pool);
    }
    nib_model_close(model);
    nib_free(text);
    nib_tensor_set_close(set);
}

static int setup(void **state)
{
    return nib_cpu_backend_create((size_t)256 << 20, (nib_ops **)state) == NIB_OK ? 0 : -1;
}

static int teardown(void **state)
{
    nib_cpu_backend_free(*state);
    return nib_file_remove_tree(CACHE_FOLDER) == NIB_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_probabilities_meet_transformers),
        cmocka_unit_test(twenty_steps_meet_peft),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
