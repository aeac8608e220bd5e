/* nibble bench generate: one prompt of random tokens through the model, then greedy decoding. */
#include "bench.h"
#include "open.h"
#include "options.h"

#include "base/random.h"
#include "model/generate.h"

#include <stdio.h>

#define REPETITIONS 3 /* the best is reported */

typedef struct {
    const char *model, *adapter;
    int64_t prompt_tokens, new_tokens;
    nib_quantization quantization;
    nib_dtype compute;
    nib_device device;
    bool json, random;
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    *a = (arguments){.prompt_tokens = 512, .new_tokens = 100, .compute = NIB_DTYPE_BF16, .quantization = NIB_QUANT_NF4};
    const nib_option options[] = {
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &a->model, .required = true},
        {.name = "--random", .kind = NIB_OPTION_FLAG, .value = &a->random},
        {.name = "--adapter", .kind = NIB_OPTION_PATH, .value = &a->adapter},
        {.name = "--prompt-tokens", .kind = NIB_OPTION_INTEGER, .value = &a->prompt_tokens, .low = 1, .high = 1e6},
        {.name = "--new-tokens", .kind = NIB_OPTION_INTEGER, .value = &a->new_tokens, .low = 2, .high = 1e6},
        {.name = "--quant", .kind = NIB_OPTION_QUANT, .value = &a->quantization},
        {.name = "--compute", .kind = NIB_OPTION_COMPUTE, .value = &a->compute},
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &a->device},
        {.name = "--json", .kind = NIB_OPTION_FLAG, .value = &a->json},
    };
    return nib_options_read(argc, argv, options, sizeof options / sizeof *options);
}

/* When the first token came, and the last. */
typedef struct {
    double first, last;
    int64_t tokens;
} stopwatch;

static bool note_token(void *user, int sequence, int32_t id)
{
    stopwatch *watch = user;
    (void)sequence;
    (void)id;
    watch->last = nib_bench_seconds();
    if (watch->tokens++ == 0) watch->first = watch->last;
    return true;
}

typedef struct {
    double prefill, decode; /* seconds, the best of all repetitions */
    size_t generator_bytes;
} timing;

static nib_status measure(nib_model *model, const arguments *a, timing *best)
{
    nib_generator *generator = NULL;
    nib_status status;
    int32_t *ids = nib_calloc((size_t)a->prompt_tokens, sizeof *ids);
    if (ids == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a prompt of %lld tokens", (long long)a->prompt_tokens);
        goto done;
    }
    for (int64_t i = 0; i < a->prompt_tokens; i++) {
        uint32_t word[4];
        nib_philox(0, 0, (uint64_t)i, word);
        ids[i] = (int32_t)(word[0] % (uint32_t)nib_model_get_config(model)->vocabulary);
    }
    NIB_TRY_GOTO(nib_generator_create(model, a->prompt_tokens + a->new_tokens, 1, &generator), done);
    nib_generate_options options = {.max_new_tokens = a->new_tokens, .top_p = 1.0};
    nib_prompt prompt = {ids, (int32_t)a->prompt_tokens};
    for (int i = 0; i < REPETITIONS; i++) {
        stopwatch watch = {0};
        double begun = nib_bench_seconds();
        NIB_TRY_GOTO(nib_generate(generator, &prompt, 1, &options, note_token, &watch), done);
        double prefill = watch.first - begun, decode = watch.last - watch.first;
        if (i == 0 || prefill < best->prefill) best->prefill = prefill;
        if (i == 0 || decode < best->decode) best->decode = decode;
    }
    best->generator_bytes = nib_generator_bytes(generator);
done:
    nib_generator_free(generator);
    nib_free(ids);
    return status;
}

static void print_result(const arguments *a, const timing *best)
{
    double prefill = (double)a->prompt_tokens / best->prefill, decode = (double)(a->new_tokens - 1) / best->decode;
    if (a->json)
        printf("{\"prefill_tokens_per_second\": %.2f, \"decode_tokens_per_second\": %.2f, \"prompt_tokens\": %lld, "
               "\"new_tokens\": %lld, \"cache_bytes\": %zu, \"peak_bytes\": %zu}\n",
               prefill, decode, (long long)a->prompt_tokens, (long long)a->new_tokens, best->generator_bytes,
               nib_bench_peak_bytes());
    else
        printf("prompt   %8.1f tokens/s   (%lld tokens, %.3f s)\ndecode   %8.1f tokens/s   (%lld tokens, %.3f s)\n"
               "memory   %8.1f MiB peak\n",
               prefill, (long long)a->prompt_tokens, best->prefill, decode, (long long)(a->new_tokens - 1),
               best->decode, (double)nib_bench_peak_bytes() / 1048576.0);
}

nib_status nib_bench_generate(int argc, char **argv)
{
    arguments a;
    nib_ops *ops = NULL;
    nib_model *model = NULL;
    timing best = {0};
    nib_status status;
    NIB_TRY_GOTO(read_arguments(argc, argv, &a), done);
    NIB_TRY_GOTO(nib_open_backend(a.device, a.compute, 0, &ops), done);
    nib_model_options open = {.path = a.model,
                              .random = a.random,
                              .quantization = a.quantization,
                              .compute = a.compute,
                              .adapter = a.adapter};
    NIB_TRY_GOTO(nib_model_open(ops, &open, &model), done);
    NIB_TRY_GOTO(measure(model, &a, &best), done);
    print_result(&a, &best);
done:
    nib_model_close(model);
    nib_close_backend(ops);
    return status;
}
