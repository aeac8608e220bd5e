/* Adapters as files, by PEFT's rules; shared prefixes; the NF4 cache; refusals. Golden values: PEFT's own losses. */
#include "data/pack.h"
#define TEST_NAME "adapter"
#include "model_case.h"

#include "model/rehearsal.h"

#include <unistd.h>

#define PEFT NIB_TEST_DATA "/peft/llama3_gqa."

static nib_status open_scored(nib_ops *ops, const char *model_name, const char *adapter, nib_quantization quantization,
                              nib_model **model)
{
    char path[4096];
    snprintf(path, sizeof path, NIB_TEST_DATA "/models/%s", model_name);
    nib_model_options options = {.path = path,
                                 .quantization = quantization,
                                 .compute = NIB_DTYPE_F32,
                                 .adapter = adapter,
                                 .cache_folder = CACHE_FOLDER};
    return nib_model_open(ops, &options, model);
}

static double score(nib_model *model, packed *p)
{
    nib_micro_batch batch = as_batch(p);
    float nll[1024];
    double sum = 0;
    must(nib_model_reserve(model, p->T, p->N, NIB_RECOMPUTE_NONE, false));
    must(nib_model_score_batch(model, &batch, nll));
    for (int64_t i = 0; i < p->N; i++) sum += (double)nll[i];
    return sum / (double)p->N;
}

/* Of llama3_gqa's documents; adapter may be NULL. */
static double golden_loss(nib_ops *ops, const char *adapter, nib_quantization quantization)
{
    packed p;
    nib_model *model;
    pack_golden(&p, "llama3_gqa");
    must(open_scored(ops, "llama3_gqa", adapter, quantization, &model));
    double loss = score(model, &p);
    nib_model_close(model);
    return loss;
}

static void variants_meet_peft(void **state)
{
    static const char *const variants[] = {"patterns", "some_layers", "rslora", "token_rows"};
    for (int v = 0; v < 4; v++) {
        char folder[4096], file[4200];
        nib_tensor_set *set;
        snprintf(folder, sizeof folder, PEFT "%s", variants[v]);
        snprintf(file, sizeof file, "%s/expected.safetensors", folder);
        must(nib_tensor_set_open(file, &set));
        double loss = golden_loss(*state, folder, NIB_QUANT_NONE), want = golden_number(set, "loss", 0);
        /* As in test_model.c; an adapter whose pattern is ignored is off by 1e-2. */
        if (!(fabs(loss - want) <= 1e-5 * want)) fail_msg("%s: loss %.9g, expected %.9g", variants[v], loss, want);
        nib_tensor_set_close(set);
    }
}

static void what_is_not_computed_is_refused(void **state)
{
    nib_model *model;
    assert_int_equal(open_scored(*state, "llama3_gqa", PEFT "modules_to_save", NIB_QUANT_NONE, &model), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "modules_to_save"));
}

static void foreign_adapter_is_refused(void **state)
{
    nib_model *model;
    const char *folder = NIB_TEST_DATA "/models/llama_tied/adapter";
    assert_int_equal(open_scored(*state, "llama3_gqa", folder, NIB_QUANT_NONE, &model), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "has shape [4, 64], expected [4, 96]"));
}

static void saved_adapter_is_the_same(void **state)
{
    const char *golden_folder = NIB_TEST_DATA "/models/llama3_gqa/adapter", *folder = CACHE_FOLDER "/saved";
    nib_model *model;
    nib_tensor_set *want, *found;
    must(open_scored(*state, "llama3_gqa", golden_folder, NIB_QUANT_NONE, &model));
    must(nib_model_save_adapter(model, folder, "base \"model\""));
    nib_model_close(model);
    must(nib_tensor_set_open(NIB_TEST_DATA "/models/llama3_gqa/adapter/adapter_model.safetensors", &want));
    must(nib_tensor_set_open(CACHE_FOLDER "/saved/adapter_model.safetensors", &found));
    assert_int_equal(nib_tensor_set_count(want), nib_tensor_set_count(found));
    for (size_t i = 0; i < nib_tensor_set_count(want); i++) {
        const nib_tensor_view *a = nib_tensor_set_at(want, i), *b = golden(found, a->name);
        assert_int_equal(a->bytes, b->bytes);
        assert_memory_equal(a->data, b->data, a->bytes);
    }
    nib_tensor_set_close(want);
    nib_tensor_set_close(found);
    assert_true(golden_loss(*state, folder, NIB_QUANT_NONE) == golden_loss(*state, golden_folder, NIB_QUANT_NONE));
}

/* A: uniform in +-1/sqrt(K), so its variance is 1/(3 K); B: zero; another seed, other values. */
static void initial_adapter_is_kaiming(void **state)
{
    float first[2];
    for (int seed = 0; seed < 2; seed++) {
        nib_model_options options = {.path = NIB_TEST_DATA "/models/llama3_gqa",
                                     .quantization = NIB_QUANT_NONE,
                                     .compute = NIB_DTYPE_F32,
                                     .train = true,
                                     .seed = (uint64_t)seed,
                                     .lora = {.rank = 16, .alpha = 32, .all_linear = true}};
        nib_model *model;
        nib_parameter *p;
        must(nib_model_open(*state, &options, &model));
        assert_int_equal(nib_model_parameters(model, &p), 3 * 7 * 2);
        first[seed] = p[0].master[0];
        double square = 0, bound = 1 / sqrt((double)p[0].columns);
        for (int64_t i = 0; i < p[0].rows * p[0].columns; i++) {
            assert_true(fabs((double)p[0].master[i]) <= bound);
            square += (double)p[0].master[i] * (double)p[0].master[i];
        }
        square /= (double)(p[0].rows * p[0].columns);
        assert_true(fabs(square * 3 * (double)p[0].columns - 1) < 0.15); /* 1,536 samples: deviation 0.023 */
        for (int64_t i = 0; i < p[1].rows * p[1].columns; i++) assert_true(p[1].master[i] == 0.0f);
        nib_model_close(model);
    }
    assert_true(first[0] != first[1]);
}

/* Rows with common beginnings, one a prefix of another, two equal, one alone. */
static void pack_rows(bool share, nib_pack *pack)
{
    static const int32_t ids[6][12] = {{5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
                                       {5, 6, 7, 8, 9, 10, 21, 22, 23, 24},
                                       {5, 6, 7, 8, 31, 32, 33, 34, 35},
                                       {5, 6, 7, 8, 9, 10},
                                       {41, 42, 43, 44, 45},
                                       {5, 6, 7, 8, 31, 32, 33, 34, 35}};
    static const int32_t length[6] = {12, 10, 9, 6, 5, 9};
    static const uint8_t supervised[12] = {0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    nib_row rows[6];
    for (int r = 0; r < 6; r++)
        rows[r] = (nib_row){.ids = ids[r], .supervised = supervised, .length = length[r], .weight = 1.0f};
    nib_pack_options options = {.slots = 1, .micro_batch_tokens = 1024, .share_prefixes = share, .pack = true};
    must(nib_pack_step(rows, 6, options, pack));
}

static void shared_prefixes_change_only_the_order_of_sums(void **state)
{
    nib_model *model[2];
    nib_parameter *p[2];
    int64_t tokens[2];
    for (int share = 0; share < 2; share++) {
        nib_pack pack;
        float nll[256];
        pack_rows(share == 1, &pack);
        assert_int_equal(pack.micro_batches, 1);
        tokens[share] = pack.computed_tokens;
        model[share] = open_model(*state, "llama3_gqa", NIB_QUANT_NF4, NIB_DTYPE_F32, false);
        must(nib_model_reserve(model[share], pack.micro_batch[0].T, pack.micro_batch[0].N, NIB_RECOMPUTE_NONE, true));
        nib_step_options scale = {.gradient_scale = (float)(1.0 / pack.supervised_weight)};
        must(nib_model_train_batch(model[share], &pack.micro_batch[0], scale, nll));
        nib_pack_free(&pack);
    }
    assert_true(tokens[1] < tokens[0]);
    int count = nib_model_parameters(model[0], &p[0]);
    nib_model_parameters(model[1], &p[1]);
    for (int i = 0; i < count; i++) {
        double off = difference(p[1][i].gradient, p[0][i].gradient, p[0][i].rows * p[0][i].columns);
        if (!(off <= 1e-5)) fail_msg("%s: shared and unshared gradients differ by %g of the norm", p[0][i].name, off);
    }
    nib_model_close(model[0]);
    nib_model_close(model[1]);
}

/* Arenas and scratch of a rehearsed step, and of the step. */
static void step_memory(nib_ops *ops, const nib_model_options *options, nib_recompute policy, const nib_pack *pack,
                        nib_memory_class classes[16], int *count)
{
    nib_model *model;
    const nib_memory_class *taken;
    const nib_micro_batch *batch = &pack->micro_batch[0];
    float *nll = nib_calloc((size_t)batch->N, sizeof *nll);
    assert_non_null(nll);
    ops->scratch->peak = 0;
    must(nib_model_open(ops, options, &model));
    must(nib_model_reserve(model, batch->T, batch->N, policy, true));
    must(nib_model_train_batch(model, batch, (nib_step_options){.gradient_scale = 1}, nll));
    *count = nib_model_memory(model, &taken);
    memcpy(classes, taken, (size_t)*count * sizeof *classes);
    nib_model_close(model);
    nib_free(nll);
}

static void rehearsal_takes_what_the_step_takes(void **state)
{
    nib_model_options options = {.path = NIB_TEST_DATA "/models/llama_tied",
                                 .quantization = NIB_QUANT_NF4,
                                 .compute = NIB_DTYPE_BF16,
                                 .train = true,
                                 .cache_folder = CACHE_FOLDER,
                                 .lora = {.rank = 8, .alpha = 16, .all_linear = true}};
    int32_t ids[200];
    uint8_t supervised[200];
    nib_ops *rehearsal;
    nib_pack pack;
    must(nib_rehearsal_create(*state, &rehearsal));
    for (int i = 0; i < 200; i++) {
        ids[i] = i % 97;
        supervised[i] = i % 3 == 0;
    }
    nib_row rows[2] = {{.ids = ids, .supervised = supervised, .length = 200, .weight = 1},
                       {.ids = ids + 50, .supervised = supervised, .length = 130, .weight = 1}};
    must(nib_pack_step(rows, 2, (nib_pack_options){.slots = 1, .micro_batch_tokens = 512, .pack = true}, &pack));
    static const int32_t tokens[] = {5, 17};
    options.lora.tokens = tokens;
    for (int variant = 0; variant < 18; variant++) {
        nib_recompute policy = (nib_recompute)(variant % 3);
        nib_memory_class plan[16], taken[16];
        int planned, count;
        options.compute = variant / 3 % 2 == 0 ? NIB_DTYPE_BF16 : NIB_DTYPE_F32;
        options.lora.token_count = variant / 6 == 1 ? 2 : 0;
        options.lora.dora = variant / 6 == 2;
        step_memory(rehearsal, &options, policy, &pack, plan, &planned);
        step_memory(*state, &options, policy, &pack, taken, &count);
        assert_int_equal(count, planned);
        for (int i = 0; i < planned; i++) {
            assert_string_equal(plan[i].name, taken[i].name);
            assert_true(plan[i].bytes > 0);
            assert_int_equal(plan[i].bytes, taken[i].bytes);
        }
    }
    nib_pack_free(&pack);
    rehearsal->close(rehearsal);
}

/* One byte of the cache changed, then the cache cut short: both are seen and the cache is written again. */
static void damaged_cache_is_rebuilt(void **state)
{
    double loss = golden_loss(*state, NULL, NIB_QUANT_NF4);
    FILE *list = popen("ls " CACHE_FOLDER "/nf4-*/model.safetensors", "r");
    char path[2][4096] = {{0}};
    assert_non_null(list);
    int files = 0;
    while (files < 2 && fgets(path[files], sizeof path[0], list) != NULL) files++;
    pclose(list);
    assert_in_range(files, 1, 2);
    for (int damage = 0; damage < 2; damage++) {
        for (int f = 0; f < files; f++) {
            path[f][strcspn(path[f], "\n")] = 0;
            FILE *file = fopen(path[f], "r+b");
            assert_non_null(file);
            assert_int_equal(fseek(file, -1000, SEEK_END), 0);
            if (damage == 0) assert_int_equal(fputc('Z', file), 'Z');
            if (damage == 1) assert_int_equal(ftruncate(fileno(file), ftell(file)), 0);
            fclose(file);
        }
        assert_true(golden_loss(*state, NULL, NIB_QUANT_NF4) == loss);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_meet_peft),
        cmocka_unit_test(what_is_not_computed_is_refused),
        cmocka_unit_test(foreign_adapter_is_refused),
        cmocka_unit_test(saved_adapter_is_the_same),
        cmocka_unit_test(initial_adapter_is_kaiming),
        cmocka_unit_test(shared_prefixes_change_only_the_order_of_sums),
        cmocka_unit_test(rehearsal_takes_what_the_step_takes),
        cmocka_unit_test(damaged_cache_is_rebuilt),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
