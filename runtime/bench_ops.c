#include "bench_ops.h"
#include "base/memory.h"
#include "bench.h"
#include "cpu/backend.h"
#include "device.h"
#include "model/config.h"
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A call is repeated for bench->seconds and at least this often. */
enum { LEAST_RUNS = 3 };
/* On a device calls are timed in rows of about this long, so that what it costs to start and to wait does not count. */
#define ROW_SECONDS 2e-3
enum { MOST_CALLS = 200 };

static nib_status time_calls(nib_ops_bench *bench, nib_ops_bench_call call, void *user, int calls, double *seconds)
{
    const double before = nib_bench_seconds();
    for (int i = 0; i < calls; i++) NIB_TRY(call(bench, user));
    NIB_TRY(bench->ops->synchronize(bench->ops));
    *seconds = (nib_bench_seconds() - before) / calls;
    return NIB_OK;
}

nib_status nib_ops_bench_time(nib_ops_bench *bench, nib_ops_bench_call call, void *user, nib_ops_bench_seconds *seconds)
{
    double taken;
    NIB_TRY(time_calls(bench, call, user, 1, &taken)); /* warm: primitives are made, pages are touched */
    NIB_TRY(time_calls(bench, call, user, 1, &taken));
    int calls = bench->cpu ? 1 : (int)(ROW_SECONDS / taken) + 1;
    if (calls > MOST_CALLS) calls = MOST_CALLS;
    const double begin = nib_bench_seconds();
    double sum = 0.0;
    int runs = 0;
    for (seconds->best = 1e30; runs < LEAST_RUNS || nib_bench_seconds() - begin < bench->seconds; runs++) {
        NIB_TRY(time_calls(bench, call, user, calls, &taken));
        if (taken < seconds->best) seconds->best = taken;
        sum += taken;
    }
    seconds->mean = sum / runs;
    return NIB_OK;
}

nib_status nib_ops_bench_upload(nib_ops_bench *bench, const void *host, size_t bytes, void *pointer_to_pointer)
{
    void **pointer = pointer_to_pointer;
    NIB_TRY(nib_arena_take(&bench->memory, (int64_t)bytes, 1, pointer));
    return bench->ops->upload(bench->ops, *pointer, host, bytes);
}

nib_status nib_ops_bench_bytes(nib_ops_bench *bench, int64_t n, uint8_t **bytes)
{
    uint8_t *host = nib_calloc((size_t)n, 1);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "bench ops: no memory for %lld bytes", (long long)n);
    for (int64_t i = 0; i < n; i++) host[i] = (uint8_t)((uint64_t)i * 0x9e3779b97f4a7c15u >> 56);
    const nib_status status = nib_ops_bench_upload(bench, host, (size_t)n, bytes);
    nib_free(host);
    return status;
}

nib_status nib_ops_bench_matrix(nib_ops_bench *bench, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *m)
{
    const size_t size = dtype == NIB_DTYPE_F32 ? 4 : 2;
    void *host = nib_calloc((size_t)(rows * columns), size);
    if (host == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "bench ops: no memory for %lld x %lld values", (long long)rows,
                        (long long)columns);
    for (int64_t i = 0; i < rows * columns; i++) {
        const float value = (float)((uint64_t)i * 0x9e3779b97f4a7c15u >> 40) * 0x1p-24f - 0.5f;
        if (dtype == NIB_DTYPE_F32)
            ((float *)host)[i] = value;
        else
            ((nib_bf16 *)host)[i] = nib_bf16_from_float(value);
    }
    *m = (nib_matrix){NULL, rows, columns, columns, dtype};
    const nib_status status = nib_ops_bench_upload(bench, host, (size_t)(rows * columns) * size, &m->data);
    nib_free(host);
    return status;
}

static void print(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_seconds seconds, double amount,
                  const char *unit, double bound_seconds)
{
    if (bench->json)
        printf("%s{\"op\": \"%s\", \"shape\": \"%s\", \"seconds\": %.4g, \"mean_seconds\": %.4g, \"%s_per_second\": "
               "%.4g, \"of_bound\": %.3f}",
               bench->results > 0 ? ",\n " : "[", op, shape, seconds.best, seconds.mean, unit, amount / seconds.best,
               bound_seconds / seconds.best);
    else
        printf("%-24s %-44s %10.1f us %8.1f G%s/s %5.0f %% of %s\n", op, shape, seconds.best * 1e6,
               amount / seconds.best * 1e-9, strcmp(unit, "bytes") == 0 ? "B" : "FLOP",
               bound_seconds / seconds.best * 100.0, strcmp(unit, "bytes") == 0 ? "a copy" : "a plain product");
    bench->results++;
    fflush(stdout);
}

nib_status nib_ops_bench_product(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                                 void *user, int64_t M, int64_t N, int64_t K, nib_dtype dtype)
{
    nib_ops_bench_seconds seconds;
    double bound = 0.0;
    NIB_TRY(nib_ops_bench_time(bench, call, user, &seconds));
    NIB_TRY(nib_ops_bench_plain_product(bench, M, N, K, dtype, &bound));
    print(bench, op, shape, seconds, 2.0 * (double)M * (double)N * (double)K, "flops", bound);
    return NIB_OK;
}

nib_status nib_ops_bench_copy(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                              void *user, double bytes)
{
    nib_ops_bench_seconds seconds;
    NIB_TRY(nib_ops_bench_time(bench, call, user, &seconds));
    print(bench, op, shape, seconds, bytes, "bytes", bytes / bench->bytes_per_second);
    return NIB_OK;
}

/* The backend's conversion between equal types is a copy; as large as the activations between gate and down, so about
 * as far beyond the caches as what is held against it. */
static nib_status run_copy(nib_ops_bench *bench, void *user)
{
    const nib_matrix *pair = user;
    return bench->ops->convert(bench->ops, pair[0], pair[1]);
}

static nib_status measure_copy(nib_ops_bench *bench)
{
    nib_matrix pair[2];
    nib_ops_bench_seconds seconds;
    const size_t mark = bench->memory.used;
    const int64_t rows = bench->shape.T, columns = 4 * bench->shape.F;
    for (int i = 0; i < 2; i++) NIB_TRY(nib_ops_bench_matrix(bench, rows, columns, NIB_DTYPE_F32, &pair[i]));
    NIB_TRY(nib_ops_bench_time(bench, run_copy, pair, &seconds));
    bench->bytes_per_second = 2.0 * (double)(rows * columns) * 4 / seconds.best;
    nib_arena_reset(&bench->memory, mark);
    return NIB_OK;
}

static nib_status run_rows(nib_ops_bench *bench, const nib_ops_bench_row *row, const char *only)
{
    for (; row->op != NULL; row++) {
        if (only != NULL && strcmp(only, row->op) != 0) continue;
        const size_t mark = bench->memory.used;
        NIB_TRY(row->run(bench));
        nib_arena_reset(&bench->memory, mark);
    }
    return NIB_OK;
}

static nib_status run_all(nib_ops_bench *bench, const char *only)
{
    NIB_TRY(measure_copy(bench));
    if (!bench->json)
        printf("%s; a copy reads and writes %.1f GB/s\n", bench->ops->device, bench->bytes_per_second * 1e-9);
    NIB_TRY(run_rows(bench, nib_bench_ops_product, only));
    NIB_TRY(run_rows(bench, nib_bench_ops_linear, only));
    NIB_TRY(run_rows(bench, nib_bench_ops_layer, only));
    if (bench->results == 0)
        return NIB_FAIL(NIB_ERROR_USAGE, "no op '%s' is benchmarked; without --op all of them are", only);
    if (bench->json) puts("]");
    return NIB_OK;
}

/* Room for the operands of any one op and of the plain product beside it: a generous bound, of which a CPU touches only
 * what is used. */
static size_t operand_bytes(nib_ops_bench_shape s)
{
    const int64_t widest = 2 * s.F + 4 * s.C + 4 * s.NH * s.HD;
    const int64_t weights = 4 * s.V * s.C + 12 * widest * s.C;
    const int64_t activations = 12 * s.T * widest;
    const int64_t adapter = 4 * 4 * nib_ops_bench_parameters(s);
    const int64_t rows = s.T * s.NH < NIB_OPS_BENCH_MOST ? s.T * s.NH : NIB_OPS_BENCH_MOST;
    const int64_t product = 4 * rows * NIB_OPS_BENCH_MOST + 4 * (rows + NIB_OPS_BENCH_MOST) * widest;
    return (size_t)(weights + activations + adapter + product) + ((size_t)8 << 20);
}

static nib_status bench_on(nib_ops_bench *bench, const char *only)
{
    const size_t bytes = operand_bytes(bench->shape);
    void *block;
    NIB_TRY(bench->ops->allocate(bench->ops, "operands", bytes, &block));
    bench->memory = (nib_arena){.name = "operands", .block = block, .capacity = bytes};
    const nib_status status = run_all(bench, only);
    bench->ops->release(bench->ops, block, bytes);
    return status;
}

/* Of SmolLM2-135M, unless a model is named. */
static const nib_ops_bench_shape usual = {
    .T = 2048, .document = 512, .C = 576, .V = 49152, .NH = 9, .NKV = 3, .HD = 64, .F = 1536, .R = 16, .layers = 30};

static nib_status shape_of_model(const char *path, nib_ops_bench_shape *shape)
{
    nib_model_config c;
    NIB_TRY(nib_model_config_read(path, &c));
    shape->C = c.hidden;
    shape->V = c.vocabulary;
    shape->NH = c.heads;
    shape->NKV = c.kv_heads;
    shape->HD = c.head_dim;
    shape->F = c.feed_forward;
    shape->layers = c.layers;
    return NIB_OK;
}

nib_status nib_bench_ops(int argc, char **argv)
{
    nib_ops_bench bench = {.shape = usual, .seconds = 0.3};
    const char *only = NULL, *model = NULL;
    nib_device device = NIB_DEVICE_AUTO;
    const nib_option options[] = {
        {.name = "--op", .kind = NIB_OPTION_TEXT, .value = &only},
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &model},
        {.name = "--tokens", .kind = NIB_OPTION_INTEGER, .value = &bench.shape.T, .low = 1, .high = 1 << 20},
        {.name = "--length", .kind = NIB_OPTION_INTEGER, .value = &bench.shape.document, .low = 1, .high = 1 << 20},
        {.name = "--seconds", .kind = NIB_OPTION_NUMBER, .value = &bench.seconds, .low = 0, .high = 600},
        {.name = "--device", .kind = NIB_OPTION_DEVICE, .value = &device},
        {.name = "--json", .kind = NIB_OPTION_FLAG, .value = &bench.json},
    };
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    if (bench.shape.document > bench.shape.T) bench.shape.document = bench.shape.T;
    if (model != NULL) NIB_TRY(shape_of_model(model, &bench.shape));
    NIB_TRY(nib_open_backend(device, NIB_DTYPE_BF16, 0, &bench.ops));
    bench.cpu = strcmp(bench.ops->name, "cpu") == 0;
    const nib_status status = bench_on(&bench, only);
    nib_close_backend(bench.ops);
    return status;
}
