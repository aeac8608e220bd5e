/* The plain matrix product that ops are held against: oneDNN's own on the CPU, with its own threads; elsewhere the
 * backend's product with a dense weight, which on a GPU is cuBLASLt's and nothing else. */
#include "bench_ops.h"
#include "cpu/backend.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t arguments[3];
} onednn_product;

static nib_status run_onednn(nib_ops_bench *bench, void *user)
{
    (void)bench;
    const onednn_product *p = user;
    if (dnnl_primitive_execute(p->primitive, p->stream, 3, p->arguments) != dnnl_success)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "bench ops: oneDNN failed to run a plain product");
    return NIB_OK;
}

static dnnl_status_t make_onednn(onednn_product *p, const nib_matrix operand[3])
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

static void free_onednn(onednn_product *p)
{
    if (p->primitive != NULL) dnnl_primitive_destroy(p->primitive);
    if (p->description != NULL) dnnl_primitive_desc_destroy(p->description);
    for (int i = 0; i < 3; i++)
        if (p->arguments[i].memory != NULL) dnnl_memory_destroy(p->arguments[i].memory);
    if (p->stream != NULL) dnnl_stream_destroy(p->stream);
    if (p->engine != NULL) dnnl_engine_destroy(p->engine);
}

static nib_status time_onednn(nib_ops_bench *bench, const nib_matrix operand[3], nib_ops_bench_seconds *seconds)
{
    onednn_product p = {0};
    nib_status status = NIB_OK;
    if (make_onednn(&p, operand) != dnnl_success)
        status = NIB_FAIL(NIB_ERROR_INTERNAL, "bench ops: oneDNN refuses a plain product");
    else
        status = nib_ops_bench_time(bench, run_onednn, &p, seconds);
    free_onednn(&p);
    return status;
}

static nib_status run_dense(nib_ops_bench *bench, void *user)
{
    const nib_matrix *operand = user;
    nib_linear linear = {.name = "plain product", .K = operand[0].columns, .parts = 1};
    linear.part[0] = (nib_linear_part){.rows = operand[1].rows, .dense = operand[1]};
    return bench->ops->linear_forward(bench->ops, &linear, operand[0], (nib_dropout){0}, (nib_matrix){0}, operand[2]);
}

static nib_status time_product(nib_ops_bench *bench, int64_t M, int64_t N, int64_t K, nib_dtype dtype,
                               nib_ops_bench_seconds *seconds)
{
    nib_matrix operand[3];
    NIB_TRY(nib_ops_bench_matrix(bench, M, K, dtype, &operand[0]));
    if (bench->cpu)
        NIB_TRY(nib_ops_bench_matrix(bench, K, N, dtype, &operand[1]));
    else
        NIB_TRY(nib_ops_bench_matrix(bench, N, K, dtype, &operand[1]));
    NIB_TRY(nib_ops_bench_matrix(bench, M, N, dtype, &operand[2]));
    return bench->cpu ? time_onednn(bench, operand, seconds) : nib_ops_bench_time(bench, run_dense, operand, seconds);
}

nib_status nib_ops_bench_plain_product(nib_ops_bench *bench, int64_t M, int64_t N, int64_t K, nib_dtype dtype,
                                       double *seconds)
{
    /* On a CPU that has no bf16 product of its own, the one in fp32: what a bf16 op has to keep up with there. */
    if (bench->cpu && strstr(nib_cpu_features(), "bf16") == NULL) dtype = NIB_DTYPE_F32;
    const int64_t rows = M < NIB_OPS_BENCH_MOST ? M : NIB_OPS_BENCH_MOST,
                  columns = N < NIB_OPS_BENCH_MOST ? N : NIB_OPS_BENCH_MOST;
    const size_t mark = bench->memory.used;
    nib_ops_bench_seconds taken = {0};
    const nib_status status = time_product(bench, rows, columns, K, dtype, &taken);
    nib_arena_reset(&bench->memory, mark);
    *seconds = taken.best * (double)M / (double)rows * ((double)N / (double)columns);
    return status;
}

/* Square, as large as the model's widest product: the rate that this device reaches, and, repeated for a minute, keeps.
 */
static nib_status run_plain(nib_ops_bench *bench)
{
    const nib_ops_bench_shape s = bench->shape;
    const int64_t size = s.F < NIB_OPS_BENCH_MOST / 2 ? s.F : NIB_OPS_BENCH_MOST / 2;
    nib_matrix operand[3];
    char text[64];
    for (int i = 0; i < 3; i++) NIB_TRY(nib_ops_bench_matrix(bench, size, size, NIB_DTYPE_BF16, &operand[i]));
    snprintf(text, sizeof text, "%d x %d x %d, BF16", (int)size, (int)size, (int)size);
    return nib_ops_bench_product(bench, "plain_product", text, run_dense, operand, size, size, size, NIB_DTYPE_BF16);
}

const nib_ops_bench_row nib_bench_ops_product[] = {{"plain_product", run_plain}, {0}};
