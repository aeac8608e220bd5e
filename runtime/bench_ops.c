#include "bench_ops.h"
#include "bench.h"
#include "cpu/backend.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <string.h>

/* A call is repeated for this long and at least this often; the best time counts, since all disturbance is upwards. */
#define SECONDS 0.3
enum { LEAST_RUNS = 3 };
static const size_t memory_bytes = (size_t)3 << 30; /* address space: pages that no op touches cost nothing */
static const size_t scratch_bytes = (size_t)2 << 30;

nib_status nib_ops_bench_time(nib_ops_bench *bench, nib_ops_bench_call call, void *user, double *seconds)
{
    NIB_TRY(call(bench, user)); /* warm: primitives are made, pages are touched */
    *seconds = 1e30;
    const double begin = nib_bench_seconds();
    for (int run = 0; run < LEAST_RUNS || nib_bench_seconds() - begin < SECONDS; run++) {
        const double before = nib_bench_seconds();
        NIB_TRY(call(bench, user));
        const double taken = nib_bench_seconds() - before;
        if (taken < *seconds) *seconds = taken;
    }
    return NIB_OK;
}

nib_status nib_ops_bench_bytes(nib_ops_bench *bench, int64_t n, uint8_t **bytes)
{
    NIB_TRY(nib_arena_take(&bench->memory, n, 1, bytes));
    for (int64_t i = 0; i < n; i++) (*bytes)[i] = (uint8_t)((uint64_t)i * 0x9e3779b97f4a7c15u >> 56);
    return NIB_OK;
}

nib_status nib_ops_bench_matrix(nib_ops_bench *bench, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *m)
{
    *m = (nib_matrix){NULL, rows, columns, columns, dtype};
    NIB_TRY(nib_arena_take(&bench->memory, rows * columns, dtype == NIB_DTYPE_F32 ? 4 : 2, &m->data));
    for (int64_t i = 0; i < rows * columns; i++) {
        const float value = (float)((uint64_t)i * 0x9e3779b97f4a7c15u >> 40) * 0x1p-24f - 0.5f;
        if (dtype == NIB_DTYPE_F32)
            ((float *)m->data)[i] = value;
        else
            ((nib_bf16 *)m->data)[i] = nib_bf16_from_float(value);
    }
    return NIB_OK;
}

typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t arguments[3];
} plain_product;

static nib_status run_plain_product(nib_ops_bench *bench, void *user)
{
    (void)bench;
    const plain_product *p = user;
    if (dnnl_primitive_execute(p->primitive, p->stream, 3, p->arguments) != dnnl_success)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "bench ops: oneDNN failed to run a plain product");
    return NIB_OK;
}

static dnnl_status_t make_plain_product(plain_product *p, const nib_matrix operand[3])
{
    dnnl_memory_desc_t memory[3];
    dnnl_matmul_desc_t matmul;
    static const int argument[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_status_t status = dnnl_engine_create(&p->engine, dnnl_cpu, 0);
    if (status == dnnl_success) status = dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags);
    for (int i = 0; i < 3 && status == dnnl_success; i++) {
        const dnnl_dims_t size = {operand[i].rows, operand[i].columns};
        status = dnnl_memory_desc_init_by_tag(&memory[i], 2, size,
                                              operand[i].dtype == NIB_DTYPE_F32 ? dnnl_f32 : dnnl_bf16, dnnl_ab);
        p->arguments[i].arg = argument[i];
        if (status == dnnl_success)
            status = dnnl_memory_create(&p->arguments[i].memory, &memory[i], p->engine, operand[i].data);
    }
    if (status == dnnl_success) status = dnnl_matmul_desc_init(&matmul, &memory[0], &memory[1], NULL, &memory[2]);
    if (status == dnnl_success) status = dnnl_primitive_desc_create(&p->description, &matmul, NULL, p->engine, NULL);
    return status == dnnl_success ? dnnl_primitive_create(&p->primitive, p->description) : status;
}

static void free_plain_product(plain_product *p)
{
    if (p->primitive != NULL) dnnl_primitive_destroy(p->primitive);
    if (p->description != NULL) dnnl_primitive_desc_destroy(p->description);
    for (int i = 0; i < 3; i++)
        if (p->arguments[i].memory != NULL) dnnl_memory_destroy(p->arguments[i].memory);
    if (p->stream != NULL) dnnl_stream_destroy(p->stream);
    if (p->engine != NULL) dnnl_engine_destroy(p->engine);
}

/* Seconds of oneDNN's own product of dense operands with its own threads. On a CPU that has no bf16 product of its own,
 * the one in fp32: what a bf16 op has to keep up with there. */
static nib_status time_plain_product(nib_ops_bench *bench, int64_t M, int64_t N, int64_t K, nib_dtype dtype,
                                     double *seconds)
{
    plain_product p = {0};
    nib_matrix operand[3];
    if (strstr(nib_cpu_features(), "bf16") == NULL) dtype = NIB_DTYPE_F32;
    const size_t mark = bench->memory.used;
    NIB_TRY(nib_ops_bench_matrix(bench, M, K, dtype, &operand[0]));
    NIB_TRY(nib_ops_bench_matrix(bench, K, N, dtype, &operand[1]));
    NIB_TRY(nib_ops_bench_matrix(bench, M, N, dtype, &operand[2]));
    nib_status status = NIB_OK;
    if (make_plain_product(&p, operand) != dnnl_success)
        status = NIB_FAIL(NIB_ERROR_INTERNAL, "bench ops: oneDNN refuses a plain product");
    else
        status = nib_ops_bench_time(bench, run_plain_product, &p, seconds);
    free_plain_product(&p);
    nib_arena_reset(&bench->memory, mark);
    return status;
}

static void print(nib_ops_bench *bench, const char *op, const char *shape, double seconds, double amount,
                  const char *unit, double bound_seconds)
{
    if (bench->json)
        printf("%s{\"op\": \"%s\", \"shape\": \"%s\", \"seconds\": %.4g, \"%s_per_second\": %.4g, \"of_bound\": %.3f}",
               bench->results > 0 ? ",\n " : "[", op, shape, seconds, unit, amount / seconds, bound_seconds / seconds);
    else
        printf("%-24s %-34s %10.1f us %8.1f G%s/s %5.0f %% of %s\n", op, shape, seconds * 1e6, amount / seconds * 1e-9,
               strcmp(unit, "bytes") == 0 ? "B" : "FLOP", bound_seconds / seconds * 100.0,
               strcmp(unit, "bytes") == 0 ? "a copy" : "a plain product");
    bench->results++;
    fflush(stdout);
}

nib_status nib_ops_bench_product(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                                 void *user, int64_t M, int64_t N, int64_t K, nib_dtype dtype)
{
    double seconds, bound = 0.0;
    NIB_TRY(nib_ops_bench_time(bench, call, user, &seconds));
    NIB_TRY(time_plain_product(bench, M, N, K, dtype, &bound));
    print(bench, op, shape, seconds, 2.0 * (double)M * (double)N * (double)K, "flops", bound);
    return NIB_OK;
}

nib_status nib_ops_bench_copy(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                              void *user, double bytes)
{
    double seconds;
    NIB_TRY(nib_ops_bench_time(bench, call, user, &seconds));
    print(bench, op, shape, seconds, bytes, "bytes", bytes / bench->bytes_per_second);
    return NIB_OK;
}

/* The backend's conversion between equal types is a copy by all threads; 64 MB are beyond most caches. */
static nib_status run_copy(nib_ops_bench *bench, void *user)
{
    const nib_matrix *pair = user;
    return bench->ops->convert(bench->ops, pair[0], pair[1]);
}

static nib_status measure_copy(nib_ops_bench *bench)
{
    nib_matrix pair[2];
    double seconds;
    const size_t mark = bench->memory.used;
    for (int i = 0; i < 2; i++) NIB_TRY(nib_ops_bench_matrix(bench, 1024, 16384, NIB_DTYPE_F32, &pair[i]));
    NIB_TRY(nib_ops_bench_time(bench, run_copy, pair, &seconds));
    bench->bytes_per_second = 2.0 * 1024 * 16384 * 4 / seconds;
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
    void *block;
    NIB_TRY(bench->ops->allocate(bench->ops, "operands", memory_bytes, &block));
    bench->memory = (nib_arena){.name = "operands", .block = block, .capacity = memory_bytes};
    nib_status status;
    NIB_TRY_GOTO(measure_copy(bench), done);
    if (!bench->json)
        printf("%s; a copy reads and writes %.1f GB/s\n", nib_cpu_features(), bench->bytes_per_second * 1e-9);
    NIB_TRY_GOTO(run_rows(bench, nib_bench_ops_linear, only), done);
    NIB_TRY_GOTO(run_rows(bench, nib_bench_ops_layer, only), done);
    if (bench->results == 0)
        status = NIB_FAIL(NIB_ERROR_USAGE, "no op '%s' is benchmarked; without --op all of them are", only);
    else if (bench->json)
        puts("]");
done:
    bench->ops->release(bench->ops, block, memory_bytes);
    return status;
}

nib_status nib_bench_ops(int argc, char **argv)
{
    nib_ops_bench bench = {0};
    const char *only = NULL;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            bench.json = true;
        else if (strcmp(argv[i], "--op") == 0 && i + 1 < argc)
            only = argv[++i];
        else
            return NIB_FAIL(NIB_ERROR_USAGE, "unknown argument or missing value: '%s'", argv[i]);
    }
    NIB_TRY(nib_cpu_backend_create(scratch_bytes, &bench.ops));
    const nib_status status = run_all(&bench, only);
    nib_cpu_backend_free(bench.ops);
    return status;
}
