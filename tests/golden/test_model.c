/* Losses, logits, gradients and training steps against transformers, peft and bitsandbytes on tiny models: llama_tied
 * (tied head, all biases, linear rope scaling), llama3_gqa (grouped heads, Llama 3's rope), mistral_window (a window
 * shorter than the documents), qwen2 (biases of queries, keys and values, YaRN) and qwen3 (normed queries and keys).
 *
 * Tolerances: the golden values are fp32 computed in another order of summation. A loss averages some hundred rows, so
 * 1e-5; a logit is a sum over a few layers, 2e-4 of the logits' range; a gradient tensor 1e-4 of its norm; eight
 * optimizer steps let such differences grow, 1e-3. A missing bias, a wrong rope factor or a swapped head moves the
 * loss by 1e-3 and more. */
#define TEST_NAME "golden"
#include "model_case.h"

static const char *const names[] = {"llama_tied", "llama3_gqa", "mistral_window", "qwen2", "qwen3"};
#define MODELS 5

static void check_logits(nib_model *model, packed *p, const nib_tensor_set *set, const char *tag)
{
    int64_t V = nib_model_get_config(model)->vocabulary;
    float *logits = nib_calloc((size_t)(p->T * V), sizeof *logits);
    nib_micro_batch batch = as_batch(p);
    must(nib_model_logits(model, &batch, logits));
    for (int64_t d = 0, at = 0; d < DOCUMENTS; d++) {
        char name[64];
        snprintf(name, sizeof name, "%s.doc%lld.logits", tag, (long long)d);
        const nib_tensor_view *want = golden(set, name);
        const float *values = (const float *)want->data;
        float low = INFINITY, high = -INFINITY, worst = 0;
        for (int64_t i = 0; i < want->count; i++) {
            low = fminf(low, values[i]);
            high = fmaxf(high, values[i]);
            worst = fmaxf(worst, fabsf(values[i] - logits[at + i]));
        }
        at += want->count;
        if (!(worst <= 2e-4f * (high - low))) fail_msg("%s: off by %g in a range of %g", name, worst, high - low);
    }
    nib_free(logits);
}

static void check_gradients(nib_model *model, const nib_tensor_set *set, const char *prefix)
{
    nib_parameter *parameters;
    int count = nib_model_parameters(model, &parameters);
    assert_true(count > 0);
    for (int i = 0; i < count; i++) {
        char name[256];
        snprintf(name, sizeof name, "%s%s", prefix, parameters[i].name);
        const nib_tensor_view *want = golden(set, name);
        assert_int_equal(want->count, parameters[i].rows * parameters[i].columns);
        double off = difference(parameters[i].gradient, (const float *)want->data, want->count);
        if (!(off <= 1e-4)) fail_msg("gradient of %s is off by %g of its norm", name, off);
    }
}

static void check_loss(double loss, const nib_tensor_set *set, const char *name)
{
    double want = golden_number(set, name, 0);
    if (!(fabs(loss - want) <= 1e-5 * want)) fail_msg("%s: %.9g, expected %.9g", name, loss, want);
}

static void adapters_meet_peft(void **state)
{
    nib_ops *ops = *state;
    for (int m = 0; m < MODELS; m++)
        for (int quantized = 0; quantized < 2; quantized++) {
            packed p;
            nib_tensor_set *set = open_golden(names[m], "expected.safetensors");
            nib_model *model =
                open_model(ops, names[m], quantized ? NIB_QUANT_NF4 : NIB_QUANT_NONE, NIB_DTYPE_F32, false);
            pack_documents(&p, set);
            must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, true));
            check_loss(train_once(ops, model, &p), set, quantized ? "nf4.loss" : "lora.loss");
            check_gradients(model, set, quantized ? "nf4.grad." : "lora.grad.");
            check_logits(model, &p, set, quantized ? "nf4" : "lora");
            nib_model_close(model);
            nib_tensor_set_close(set);
        }
}

static void every_weight_is_trained(void **state)
{
    nib_ops *ops = *state;
    for (int m = 0; m < MODELS; m++) {
        packed p;
        nib_tensor_set *set = open_golden(names[m], "expected.safetensors");
        nib_tensor_set *gradients = open_golden(names[m], "expected_full_gradients.safetensors");
        nib_model *model = open_model(ops, names[m], NIB_QUANT_NONE, NIB_DTYPE_F32, true);
        nib_parameter *parameters;
        pack_documents(&p, set);
        must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, true));
        check_loss(train_once(ops, model, &p), set, "base.loss");
        check_gradients(model, gradients, "");
        assert_int_equal(nib_model_parameters(model, &parameters), (int)nib_tensor_set_count(gradients));
        check_logits(model, &p, set, "base");
        nib_model_close(model);
        nib_tensor_set_close(gradients);
        nib_tensor_set_close(set);
    }
}

/* Gradients of layers as they were when the watch was told of them. */
typedef struct {
    nib_ops *ops;
    nib_model *model;
    float *found;
    int64_t from, to;
    int calls;
} told_layers;

static nib_status keep_told(void *user, int64_t begin, int64_t n)
{
    told_layers *told = user;
    nib_parameter *parameters;
    nib_model_parameters(told->model, &parameters);
    if (told->calls++ == 0) told->to = begin + n;
    assert_true(told->calls == 1 || begin + n == told->from);
    told->from = begin;
    return told->ops->download(told->ops, told->found + begin, parameters[0].gradient + begin,
                               (size_t)n * sizeof(float));
}

/* Of every layer, from the last down; what belongs to none is not told of. */
static void layers_are_told_of_when_their_gradients_are_complete(void **state)
{
    enum { LAYERS = 3 }; /* of llama3_gqa */
    nib_ops *ops = *state;
    packed p;
    pack_golden(&p, "llama3_gqa");
    for (int full = 0; full < 2; full++)
        for (int policy = NIB_RECOMPUTE_NONE; policy <= NIB_RECOMPUTE_LAYER; policy++) {
            nib_model *model =
                open_model(ops, "llama3_gqa", full ? NIB_QUANT_NONE : NIB_QUANT_NF4, NIB_DTYPE_F32, full != 0);
            nib_micro_batch batch = as_batch(&p);
            nib_parameter *parameters;
            int64_t n, of_layers = 0;
            float nll[1024];
            int count = nib_model_parameters(model, &parameters);
            for (int i = 0; i < count; i++)
                if (strstr(parameters[i].name, "layers.") != NULL)
                    of_layers += parameters[i].rows * parameters[i].columns;
            must(nib_model_reserve(model, p.T, p.N, (nib_recompute)policy, true));
            float *before = download_gradients(ops, model, &n);
            told_layers told = {.ops = ops, .model = model, .found = before};
            must(nib_model_train_batch(model, &batch,
                                       (nib_step_options){.gradient_scale = 1, .watch = {keep_told, &told}}, nll));
            float *after = download_gradients(ops, model, &n);
            assert_int_equal(told.calls, LAYERS);
            assert_int_equal(told.to - told.from, of_layers);
            assert_memory_equal(before + told.from, after + told.from, (size_t)of_layers * sizeof *after);
            nib_free(before);
            nib_free(after);
            nib_model_close(model);
        }
}

static void eight_steps_meet_the_golden_run(void **state)
{
    nib_ops *ops = *state;
    for (int m = 0; m < MODELS; m++) {
        nib_tensor_set *set = open_golden(names[m], "expected.safetensors");
        nib_model *model = open_model(ops, names[m], NIB_QUANT_NF4, NIB_DTYPE_F32, false);
        nib_parameter *parameters;
        must(nib_model_reserve(model, 1024, 1024, NIB_RECOMPUTE_NONE, true));
        train_eight_steps(ops, model, names[m], set, 1e-3, 1e-3);
        int count = nib_model_parameters(model, &parameters);
        for (int i = 0; i < count; i++) {
            char name[256];
            snprintf(name, sizeof name, "train.final.%s", parameters[i].name);
            const nib_tensor_view *want = golden(set, name);
            double off = difference(parameters[i].master, (const float *)want->data, want->count);
            if (!(off <= 1e-3)) fail_msg("%s is off by %g of its norm", name, off);
        }
        nib_model_close(model);
        nib_tensor_set_close(set);
    }
}

/* Of a model's golden documents: its adapter's, or every weight's. */
static float *gradients(nib_ops *ops, const char *name, bool full, nib_dtype compute, nib_recompute recompute,
                        int64_t *n)
{
    packed p;
    pack_golden(&p, name);
    return gradients_of(ops, name, full, compute, recompute, &p, n);
}

static void recomputing_changes_no_bit(void **state)
{
    nib_ops *ops = *state;
    for (int kind = 0; kind < 4 * MODELS; kind++) {
        int64_t n;
        const bool full = kind & 1;
        const nib_dtype compute = kind & 2 ? NIB_DTYPE_BF16 : NIB_DTYPE_F32;
        float *none = gradients(ops, names[kind / 4], full, compute, NIB_RECOMPUTE_NONE, &n);
        for (int policy = NIB_RECOMPUTE_GATE_UP; policy <= NIB_RECOMPUTE_LAYER; policy++) {
            float *other = gradients(ops, names[kind / 4], full, compute, (nib_recompute)policy, &n);
            assert_memory_equal(none, other, (size_t)n * sizeof *none);
            nib_free(other);
        }
        nib_free(none);
    }
}

static void threads_change_no_bit(void **state)
{
    nib_ops *ops = *state;
    const int before = omp_get_max_threads();
    for (int kind = 0; kind < 4 * MODELS; kind++) {
        int64_t n;
        const bool full = kind & 1;
        const nib_dtype compute = kind & 2 ? NIB_DTYPE_BF16 : NIB_DTYPE_F32;
        omp_set_num_threads(1);
        float *one = gradients(ops, names[kind / 4], full, compute, NIB_RECOMPUTE_NONE, &n);
        for (int threads = 2; threads <= 3; threads++) {
            omp_set_num_threads(threads);
            float *more = gradients(ops, names[kind / 4], full, compute, NIB_RECOMPUTE_NONE, &n);
            assert_memory_equal(one, more, (size_t)n * sizeof *one);
            nib_free(more);
        }
        nib_free(one);
    }
    omp_set_num_threads(before);
}

/* bf16 keeps 8 bits: a relative step of 2^-9 on every stored activation. Over 3 layers the gradient as a whole stays
 * within 3 % of fp32's; a wrong kernel is off by its whole norm. */
static void bf16_stays_near_fp32(void **state)
{
    nib_ops *ops = *state;
    int64_t n;
    float *wide = gradients(ops, "llama3_gqa", false, NIB_DTYPE_F32, NIB_RECOMPUTE_NONE, &n);
    float *narrow = gradients(ops, "llama3_gqa", false, NIB_DTYPE_BF16, NIB_RECOMPUTE_NONE, &n);
    double off = difference(narrow, wide, n);
    if (!(off <= 0.03) || off == 0) fail_msg("bf16 gradients are off by %g of fp32's norm", off);
    nib_free(wide);
    nib_free(narrow);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adapters_meet_peft),
        cmocka_unit_test(every_weight_is_trained),
        cmocka_unit_test(layers_are_told_of_when_their_gradients_are_complete),
        cmocka_unit_test(eight_steps_meet_the_golden_run),
        cmocka_unit_test(recomputing_changes_no_bit),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(bf16_stays_near_fp32),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
