/* Whole training steps on random tokens: forward, backward, norm, AdamW. */
#include "base/log.h"
#include "base/memory.h"
#include "base/random.h"
#include "bench.h"
#include "data/pack.h"
#include "open.h"
#include "ops_timer.h"
#include "optim/optimizer.h"
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 5

typedef struct {
    const char *model;
    nib_device device;
    int64_t batch, length, rank;
    nib_dtype compute;
    bool json, random, breakdown, fp8;
} step_bench;

static nib_status read_options(int argc, char **argv, step_bench *o)
{
    *o = (step_bench){.batch = 4, .length = 512, .rank = 16, .compute = NIB_DTYPE_BF16};
    const nib_option options[] = {
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &o->model, .required = true},
        {.name = "--random", .kind = NIB_OPTION_FLAG, .value = &o->random},
        {.name = "--batch", .kind = NIB_OPTION_INTEGER, .value = &o->batch, .low = 1, .high = 1 << 20},
        {.name = "--length", .kind = NIB_OPTION_INTEGER, .value = &o->length, .low = 2, .high = 1 << 20},
        {.name = "--rank", .kind = NIB_OPTION_INTEGER, .value = &o->rank, .low = 1, .high = 4096},
        {.name = "--compute", .kind = NIB_OPTION_COMPUTE, .value = &o->compute},
        {.name = "--fp8", .kind = NIB_OPTION_FLAG, .value = &o->fp8},
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &o->device},
        {.name = "--breakdown", .kind = NIB_OPTION_FLAG, .value = &o->breakdown},
        {.name = "--json", .kind = NIB_OPTION_FLAG, .value = &o->json},
    };
    return nib_options_read(argc, argv, options, sizeof options / sizeof *options);
}

/* `batch` rows of random ids, every token but the first supervised. */
static nib_status random_pack(const step_bench *o, int64_t vocabulary, nib_pack *pack)
{
    int64_t tokens = o->batch * o->length;
    int32_t *ids = nib_calloc((size_t)tokens, sizeof *ids);
    uint8_t *supervised = nib_calloc((size_t)tokens, 1);
    nib_row *rows = nib_calloc((size_t)o->batch, sizeof *rows);
    nib_status status;
    if (ids == NULL || supervised == NULL || rows == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld random tokens", (long long)tokens);
    } else {
        for (int64_t i = 0; i < tokens; i++) {
            uint32_t word[4];
            nib_philox(0, 0, (uint64_t)i, word);
            ids[i] = (int32_t)(word[0] % (uint64_t)vocabulary);
            supervised[i] = i % o->length > 0;
        }
        for (int64_t r = 0; r < o->batch; r++)
            rows[r] = (nib_row){.ids = ids + r * o->length,
                                .supervised = supervised + r * o->length,
                                .length = (int32_t)o->length,
                                .weight = 1.0f};
        nib_pack_options packing = {.slots = 1, .micro_batch_tokens = tokens, .share_prefixes = true, .pack = true};
        status = nib_pack_step(rows, o->batch, packing, pack);
    }
    nib_free(ids);
    nib_free(supervised);
    nib_free(rows);
    return status;
}

static nib_status one_step(nib_ops *ops, nib_model *model, const nib_pack *pack, int number, float *nll)
{
    const nib_step_options step = {.gradient_scale = (float)(1.0 / pack->supervised_weight)};
    const nib_optimizer_options optimizer = {
        .adamw = {.learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .step = number},
        .max_norm = 1.0};
    double norm;
    NIB_TRY(nib_optimizer_zero(ops, model));
    NIB_TRY(nib_model_train_batch(model, &pack->micro_batch[0], step, nll));
    NIB_TRY(nib_optimizer_step(ops, model, &optimizer, &norm));
    return ops->synchronize(ops);
}

/* The best step's time; with a timer, the times of the last step's ops are left in it. */
static nib_status time_steps(nib_ops *ops, nib_ops *timer, nib_model *model, const nib_pack *pack, double *best,
                             double *loss)
{
    float *nll = nib_calloc((size_t)pack->supervised_tokens, sizeof *nll);
    if (nll == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the losses");
    nib_status status = NIB_OK;
    for (int s = 0; s < STEPS; s++) {
        if (timer != NULL) nib_ops_timer_reset(timer);
        const double start = nib_bench_seconds();
        NIB_TRY_GOTO(one_step(ops, model, pack, s + 1, nll), done);
        const double seconds = nib_bench_seconds() - start;
        if (s == 0 || seconds < *best) *best = seconds;
    }
    *loss = 0;
    for (int64_t i = 0; i < pack->supervised_tokens; i++) *loss += nll[i];
    *loss /= (double)pack->supervised_tokens;
done:
    nib_free(nll);
    return status;
}

/* {"linear_forward": {"calls": 120, "seconds": 0.1}, ...}, or lines of the same, of the ops that were called. */
static void report_ops(const step_bench *o, nib_ops *timer)
{
    const nib_op_time *times;
    const int count = nib_ops_timer_times(timer, &times);
    double sum = 0.0;
    const char *separator = "";
    if (o->json) fputs(", \"ops\": {", stdout);
    for (int i = 0; i < count; i++) {
        if (times[i].calls == 0) continue;
        sum += times[i].seconds;
        if (o->json)
            printf("%s\"%s\": {\"calls\": %lld, \"seconds\": %.6f}", separator, times[i].op, (long long)times[i].calls,
                   times[i].seconds);
        else
            printf("  %-22s %6lld calls %10.2f ms\n", times[i].op, (long long)times[i].calls, 1e3 * times[i].seconds);
        separator = ", ";
    }
    if (o->json)
        printf("}, \"ops_seconds\": %.6f", sum);
    else
        printf("  %-22s %19.2f ms\n", "sum", 1e3 * sum);
}

/* Memory that this process takes on the device so far: what was left before less what is left now; on the CPU, its own
 * peak. Arenas never shrink. */
static nib_status memory_left(nib_ops *backend, size_t *bytes)
{
    *bytes = 0;
    return backend->memory_left == NULL ? NIB_OK : backend->memory_left(backend, bytes);
}

static size_t peak_bytes(nib_ops *backend, size_t before)
{
    size_t now;
    if (backend->memory_left == NULL || memory_left(backend, &now) != NIB_OK) return nib_bench_peak_bytes();
    return before > now ? before - now : 0;
}

static void report(const step_bench *o, nib_model *model, nib_ops *timer, double seconds, double loss, size_t peak)
{
    const nib_memory_class *classes;
    int count = nib_model_memory(model, &classes);
    size_t plan = 0;
    for (int i = 0; i < count; i++) plan += classes[i].bytes;
    double rate = (double)(o->batch * o->length) / seconds;
    if (o->json) {
        printf("{\"tokens_per_second\": %.1f, \"seconds\": %.4f, \"loss\": %.6f, \"peak_bytes\": %zu, \"plan_bytes\": "
               "%zu",
               rate, seconds, loss, peak, plan);
        if (timer != NULL) report_ops(o, timer);
        puts("}");
        return;
    }
    printf("%.1f tokens/s   %.3f s a step   loss %.4f   peak %.2f GB\n", rate, seconds, loss, (double)peak / 1e9);
    for (int i = 0; i < count; i++) printf("  %-16s %8.1f MB\n", classes[i].name, (double)classes[i].bytes / 1e6);
    if (timer != NULL) report_ops(o, timer);
}

nib_status nib_bench_step(int argc, char **argv)
{
    step_bench o;
    nib_ops *backend = NULL, *timer = NULL;
    nib_model *model = NULL;
    nib_pack pack = {0};
    double seconds = 0, loss = 0;
    size_t before;
    nib_status status;
    NIB_TRY(read_options(argc, argv, &o));
    NIB_TRY(nib_open_backend(o.device, o.compute, 0, &backend));
    NIB_TRY_GOTO(memory_left(backend, &before), done);
    if (o.breakdown) NIB_TRY_GOTO(nib_ops_timer_create(backend, &timer), done);
    nib_ops *ops = o.breakdown ? timer : backend;
    nib_model_options opening = {.path = o.model,
                                 .random = o.random,
                                 .quantization = NIB_QUANT_NF4,
                                 .compute = o.compute,
                                 .fp8 = o.fp8,
                                 .lora = {.rank = o.rank, .alpha = 2.0 * (double)o.rank, .all_linear = true},
                                 .train = true};
    NIB_TRY_GOTO(nib_model_open(ops, &opening, &model), done);
    NIB_TRY_GOTO(random_pack(&o, nib_model_get_config(model)->vocabulary, &pack), done);
    NIB_TRY_GOTO(nib_model_reserve(model, pack.micro_batch[0].T, pack.micro_batch[0].N, NIB_RECOMPUTE_NONE, true),
                 done);
    NIB_TRY_GOTO(time_steps(ops, timer, model, &pack, &seconds, &loss), done);
    report(&o, model, timer, seconds, loss, peak_bytes(backend, before));
done:
    nib_pack_free(&pack);
    nib_model_close(model);
    nib_ops_timer_free(timer);
    nib_close_backend(backend);
    return status;
}
