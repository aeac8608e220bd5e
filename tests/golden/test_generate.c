/* Generation against transformers' greedy tokens on SmolLM2-135M, and, on a tiny Llama, against the forward pass
 * without a cache (which test_model.c holds to its golden logits).
 *
 * Tokens are compared exactly: computing in fp32, two paths differ in a logit by about 1e-6 of the logits'
 * range; clear_best makes sure that the best two lie ten times that far apart wherever tokens are compared. */
#define TEST_NAME "generate"
#include "model_case.h"

#include "model/generate.h"

#define CLEAR_GAP 1e-5f
enum { MAX_NEW = 12, MAX_PROMPTS = 20, MAX_LENGTH = 200 };

/* What a run produced. */
typedef struct {
    int32_t ids[MAX_PROMPTS][64];
    int count[MAX_PROMPTS];
} output;

static bool keep_token(void *user, int sequence, int32_t id)
{
    output *out = user;
    out->ids[sequence][out->count[sequence]++] = id;
    return true;
}

static nib_model *open_for_generation(nib_ops *ops, const char *path, const char *adapter)
{
    nib_model_options options = {
        .path = path, .quantization = NIB_QUANT_NONE, .compute = NIB_DTYPE_F32, .adapter = adapter};
    nib_model *model;
    must(nib_model_open(ops, &options, &model));
    return model;
}

/* A golden model with its adapter. */
static nib_model *open_named(nib_ops *ops, const char *name)
{
    char path[512], adapter[600];
    snprintf(path, sizeof path, NIB_TEST_DATA "/models/%s", name);
    snprintf(adapter, sizeof adapter, "%s/adapter", path);
    return open_for_generation(ops, path, adapter);
}

static nib_model *open_tiny(nib_ops *ops) { return open_named(ops, "llama3_gqa"); }

static void run_batch(nib_model *model, const nib_prompt *prompts, int count, int64_t max_new, output *out)
{
    nib_generator *generator;
    nib_generate_options options = {.max_new_tokens = max_new, .top_p = 1.0};
    int64_t capacity = 0;
    for (int i = 0; i < count; i++) capacity += prompts[i].length + max_new;
    memset(out, 0, sizeof *out);
    must(nib_generator_create(model, capacity, count, &generator));
    must(nib_generate(generator, prompts, count, &options, keep_token, out));
    nib_generator_free(generator);
}

static void smollm2_greedy_tokens_are_those_of_transformers(void **state)
{
    (void)state;
    enum { PROMPTS = 4, GOLDEN_NEW = 24 };
    const char *path = getenv("NIBBLE_TEST_MODEL");
    if (path == NULL) {
        print_message("NIBBLE_TEST_MODEL names no SmolLM2-135M-Instruct GGUF (launch/model fetches it): skipped\n");
        skip();
    }
    nib_tensor_set *set;
    nib_ops *ops;
    must(nib_tensor_set_open(NIB_TEST_DATA "/real/smollm2_135m/expected.safetensors", &set));
    must(nib_cpu_backend_create((size_t)256 << 20, &ops));
    nib_model *model = open_for_generation(ops, path, NULL);
    int32_t greedy[PROMPTS][64];
    nib_prompt prompts[PROMPTS];
    static output out;
    for (int p = 0; p < PROMPTS; p++) {
        char name[64];
        snprintf(name, sizeof name, "prompt%d.greedy", p);
        const nib_tensor_view *view = golden(set, name);
        memcpy(greedy[p], view->data, (size_t)view->bytes);
        prompts[p] = (nib_prompt){greedy[p], (int32_t)view->count - GOLDEN_NEW};
        run_batch(model, &prompts[p], 1, GOLDEN_NEW, &out);
        assert_int_equal(out.count[0], GOLDEN_NEW);
        assert_memory_equal(out.ids[0], greedy[p] + prompts[p].length, GOLDEN_NEW * sizeof(int32_t));
    }
    run_batch(model, prompts, PROMPTS, GOLDEN_NEW, &out);
    for (int p = 0; p < PROMPTS; p++)
        assert_memory_equal(out.ids[p], greedy[p] + prompts[p].length, GOLDEN_NEW * sizeof(int32_t));
    nib_model_close(model);
    nib_cpu_backend_free(ops);
    nib_tensor_set_close(set);
}

/* The largest logit's id; no rounding may decide which it is. */
static int32_t clear_best(const float *logits, int64_t V)
{
    int64_t best = 0;
    float smallest = logits[0], second = -INFINITY;
    for (int64_t v = 1; v < V; v++) {
        if (logits[v] > logits[best]) best = v;
        smallest = fminf(smallest, logits[v]);
    }
    for (int64_t v = 0; v < V; v++)
        if (v != best) second = fmaxf(second, logits[v]);
    assert_true(logits[best] - second > CLEAR_GAP * (logits[best] - smallest));
    return (int32_t)best;
}

/* Greedy tokens without a cache: the whole sequence through the model for every token. */
static void decode_without_cache(nib_model *model, nib_prompt prompt, int new_tokens, int32_t *ids)
{
    static packed p;
    int64_t V = nib_model_get_config(model)->vocabulary;
    float *logits = nib_calloc((size_t)((prompt.length + new_tokens) * V), sizeof *logits);
    must(nib_model_reserve(model, prompt.length + new_tokens, 0, NIB_RECOMPUTE_NONE, false));
    p = (packed){.T = prompt.length};
    memcpy(p.id, prompt.ids, (size_t)prompt.length * sizeof(int32_t));
    for (int n = 0; n < new_tokens; n++, p.T++) {
        for (int64_t t = 0; t < p.T; t++) {
            p.position[t] = (int32_t)t;
            p.end[t] = (int32_t)p.T;
        }
        nib_micro_batch batch = as_batch(&p);
        must(nib_model_logits(model, &batch, logits));
        ids[n] = p.id[p.T] = clear_best(logits + (p.T - 1) * V, V);
    }
    nib_free(logits);
}

/* Prompts over two levels of shared prefixes: two equal ones, one a prefix of another, some that share nothing, and
 * more tokens in all than one forward pass takes. */
static int make_prompts(int32_t ids[MAX_PROMPTS][MAX_LENGTH], nib_prompt *prompts, int64_t V)
{
    for (int p = 0; p < MAX_PROMPTS; p++) {
        int family = p % 3, length = 40 + 7 * (p % 13);
        if (family == 2) length += 60;
        for (int i = 0; i < length; i++) {
            int stream = family == 2 ? 100 + p : i < 20 ? family : i < 30 ? 10 * family + p % 4 : 1000 + p;
            ids[p][i] = (int32_t)((i * 37 + stream * 101 + i * i * 7) % V);
        }
        prompts[p] = (nib_prompt){ids[p], length};
    }
    prompts[5] = prompts[8];                /* equal */
    prompts[7] = (nib_prompt){ids[10], 25}; /* a prefix of another */
    prompts[9] = (nib_prompt){ids[12], prompts[12].length - 1};
    return MAX_PROMPTS;
}

/* The state: the model's name. */
static void a_batch_with_shared_prefixes_equals_decoding_without_a_cache(void **state)
{
    static int32_t ids[MAX_PROMPTS][MAX_LENGTH];
    static output together, alone;
    nib_prompt prompts[MAX_PROMPTS];
    nib_ops *ops;
    must(nib_cpu_backend_create(SCRATCH_BYTES, &ops));
    nib_model *model = open_named(ops, *state);
    int count = make_prompts(ids, prompts, nib_model_get_config(model)->vocabulary);
    run_batch(model, prompts, count, MAX_NEW, &together);
    for (int p = 0; p < count; p++) {
        int32_t want[MAX_NEW];
        decode_without_cache(model, prompts[p], MAX_NEW, want);
        assert_int_equal(together.count[p], MAX_NEW);
        assert_memory_equal(together.ids[p], want, sizeof want);
        run_batch(model, &prompts[p], 1, MAX_NEW, &alone);
        assert_memory_equal(alone.ids[0], want, sizeof want);
    }
    nib_model_close(model);
    nib_cpu_backend_free(ops);
}

static void a_conversation_continues_from_its_cache(void **state)
{
    (void)state;
    static int32_t ids[MAX_PROMPTS][MAX_LENGTH];
    nib_prompt prompts[MAX_PROMPTS];
    nib_ops *ops;
    nib_generator *generator;
    must(nib_cpu_backend_create(SCRATCH_BYTES, &ops));
    nib_model *model = open_tiny(ops);
    make_prompts(ids, prompts, nib_model_get_config(model)->vocabulary);
    nib_generate_options options = {.max_new_tokens = MAX_NEW, .top_p = 1.0};
    must(nib_generator_create(model, 160, 1, &generator));
    int32_t turns[3][MAX_LENGTH];
    int lengths[] = {40, 100, 70}; /* grows; then goes back to an earlier turn and on from there */
    for (int t = 0; t < 3; t++) {
        static output out;
        int32_t want[MAX_NEW];
        int kept = t == 0 ? 0 : 40 + (t == 1 ? MAX_NEW : 5);
        memcpy(turns[t], prompts[2].ids, (size_t)lengths[t] * sizeof(int32_t));
        if (t > 0) memcpy(turns[t], turns[t - 1], (size_t)kept * sizeof(int32_t));
        memset(&out, 0, sizeof out);
        must(nib_generate_continue(generator, (nib_prompt){turns[t], lengths[t]}, &options, keep_token, &out));
        decode_without_cache(model, (nib_prompt){turns[t], lengths[t]}, MAX_NEW, want);
        assert_int_equal(out.count[0], MAX_NEW);
        assert_memory_equal(out.ids[0], want, sizeof want);
        memcpy(turns[t] + lengths[t], out.ids[0], sizeof want);
    }
    static output full;
    must(nib_generate_continue(generator, (nib_prompt){ids[2], 155}, &options, keep_token, &full));
    assert_int_equal(full.count[0], 160 - 155 + 1); /* every row is taken, and the last token needs none */
    assert_int_equal(nib_generate_continue(generator, (nib_prompt){ids[2], 161}, &options, keep_token, &full),
                     NIB_ERROR_DATA);
    nib_generator_free(generator);
    nib_model_close(model);
    nib_cpu_backend_free(ops);
}

static bool two_tokens(void *user, int sequence, int32_t id)
{
    keep_token(user, sequence, id);
    return ((output *)user)->count[sequence] < 2;
}

static void sequences_end_at_stops_and_by_the_callback(void **state)
{
    (void)state;
    static int32_t ids[MAX_PROMPTS][MAX_LENGTH];
    static output free_run, out;
    nib_prompt prompts[MAX_PROMPTS];
    nib_ops *ops;
    nib_generator *generator;
    must(nib_cpu_backend_create(SCRATCH_BYTES, &ops));
    nib_model *model = open_tiny(ops);
    make_prompts(ids, prompts, nib_model_get_config(model)->vocabulary);
    run_batch(model, prompts, 6, MAX_NEW, &free_run);
    must(nib_generator_create(model, 2000, 6, &generator));

    int32_t stop = free_run.ids[1][4];
    nib_generate_options options = {.max_new_tokens = MAX_NEW, .top_p = 1.0, .stop = &stop, .stop_count = 1};
    must(nib_generate(generator, prompts, 6, &options, keep_token, &out));
    for (int p = 0; p < 6; p++) {
        int want = 0;
        while (want < MAX_NEW && free_run.ids[p][want] != stop) want++;
        assert_int_equal(out.count[p], want);
        assert_memory_equal(out.ids[p], free_run.ids[p], (size_t)want * sizeof(int32_t));
    }
    assert_true(out.count[1] <= 4);

    memset(&out, 0, sizeof out);
    must(nib_generate(generator, prompts, 6, &(nib_generate_options){.max_new_tokens = MAX_NEW, .top_p = 1.0},
                      two_tokens, &out));
    for (int p = 0; p < 6; p++) assert_int_equal(out.count[p], 2);
    nib_generator_free(generator);
    nib_model_close(model);
    nib_cpu_backend_free(ops);
}

static void sampled_text_does_not_depend_on_the_batch(void **state)
{
    (void)state;
    static int32_t ids[MAX_PROMPTS][MAX_LENGTH];
    static output together, alone, other_seed;
    nib_prompt prompts[MAX_PROMPTS];
    nib_ops *ops;
    nib_generator *generator;
    must(nib_cpu_backend_create(SCRATCH_BYTES, &ops));
    nib_model *model = open_tiny(ops);
    make_prompts(ids, prompts, nib_model_get_config(model)->vocabulary);
    must(nib_generator_create(model, 2000, 6, &generator));
    nib_generate_options options = {.max_new_tokens = MAX_NEW, .temperature = 1.3, .top_p = 0.95, .seed = 7};
    must(nib_generate(generator, prompts, 6, &options, keep_token, &together));
    for (int p = 0; p < 6; p++) {
        memset(&alone, 0, sizeof alone);
        must(nib_generate(generator, &prompts[p], 1, &options, keep_token, &alone));
        assert_memory_equal(alone.ids[0], together.ids[p], MAX_NEW * sizeof(int32_t));
    }
    options.seed = 8;
    must(nib_generate(generator, prompts, 6, &options, keep_token, &other_seed));
    assert_memory_not_equal(other_seed.ids[0], together.ids[0], MAX_NEW * sizeof(int32_t));
    nib_generator_free(generator);
    nib_model_close(model);
    nib_cpu_backend_free(ops);
}

static void a_model_in_training_is_left_as_it_was(void **state)
{
    (void)state;
    static int32_t ids[MAX_PROMPTS][MAX_LENGTH];
    static output out;
    static packed documents;
    nib_prompt prompts[MAX_PROMPTS];
    nib_ops *ops;
    must(nib_cpu_backend_create(SCRATCH_BYTES, &ops));
    nib_tensor_set *set = open_golden("llama3_gqa", "expected.safetensors");
    pack_documents(&documents, set);
    nib_model *model = open_model(ops, "llama3_gqa", NIB_QUANT_NONE, NIB_DTYPE_F32, false);
    must(nib_model_reserve(model, documents.T, documents.N, NIB_RECOMPUTE_NONE, true));
    double before = train_once(ops, model, &documents);
    make_prompts(ids, prompts, nib_model_get_config(model)->vocabulary);
    run_batch(model, prompts, 3, MAX_NEW, &out);
    double after = train_once(ops, model, &documents);
    assert_memory_equal(&before, &after, sizeof before);
    nib_model_close(model);
    nib_cpu_backend_free(ops);
    nib_tensor_set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smollm2_greedy_tokens_are_those_of_transformers),
        {"batches: llama3_gqa", a_batch_with_shared_prefixes_equals_decoding_without_a_cache, NULL, NULL, "llama3_gqa"},
        {"batches: window", a_batch_with_shared_prefixes_equals_decoding_without_a_cache, NULL, NULL, "mistral_window"},
        {"batches: qwen2", a_batch_with_shared_prefixes_equals_decoding_without_a_cache, NULL, NULL, "qwen2"},
        {"batches: qwen3", a_batch_with_shared_prefixes_equals_decoding_without_a_cache, NULL, NULL, "qwen3"},
        cmocka_unit_test(a_conversation_continues_from_its_cache),
        cmocka_unit_test(sequences_end_at_stops_and_by_the_callback),
        cmocka_unit_test(sampled_text_does_not_depend_on_the_batch),
        cmocka_unit_test(a_model_in_training_is_left_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
