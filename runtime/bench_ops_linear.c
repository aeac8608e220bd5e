/* Linear layers over NF4 with LoRA, and NF4 itself. */
#include "bench_ops.h"

#include <stdio.h>

enum { RANK = 16 };

/* Linears of SmolLM2-135M and of Llama 3 8B, with as many tokens as fit a quick run. */
typedef struct {
    const char *name;
    int64_t T, K, outputs;
} linear_shape;
static const linear_shape trained[] = {
    {"135M qkv", 2048, 576, 960}, {"135M gate, up", 2048, 576, 3072}, {"135M down", 2048, 1536, 576},
    {"8B o", 512, 4096, 4096},    {"8B down", 512, 14336, 4096},
};
static const linear_shape generated[] = {
    {"135M qkv", 1, 576, 960}, {"135M gate, up", 1, 576, 3072}, {"135M down", 1, 1536, 576},
    {"8B o", 1, 4096, 4096},   {"8B gate, up", 1, 4096, 28672}, {"8B o", 8, 4096, 4096},
    {"8B o", 32, 4096, 4096},
};

typedef struct {
    nib_linear linear;
    nib_matrix x, u, y, dx;
} layer;

static nib_status random_nf4(nib_ops_bench *bench, int64_t n, nib_nf4 *nf4)
{
    uint8_t *codes;
    nib_matrix absmax;
    NIB_TRY(nib_ops_bench_bytes(bench, n / 2, &codes));
    NIB_TRY(nib_ops_bench_matrix(bench, 1, n / 64, NIB_DTYPE_F32, &absmax));
    *nf4 = (nib_nf4){.codes = codes, .absmax = absmax.data};
    return NIB_OK;
}

static nib_status make_layer(nib_ops_bench *bench, linear_shape s, int64_t rank, nib_dtype dtype, layer *l)
{
    *l = (layer){.linear = {.name = s.name, .K = s.K, .parts = 1}};
    nib_linear_part *part = &l->linear.part[0];
    nib_matrix da, db;
    part->rows = s.outputs;
    part->lora = (nib_lora){.rank = rank, .scale = 2.0f};
    NIB_TRY(random_nf4(bench, s.outputs * s.K, &part->nf4));
    NIB_TRY(nib_ops_bench_matrix(bench, rank, s.K, dtype, &part->lora.a));
    NIB_TRY(nib_ops_bench_matrix(bench, s.outputs, rank, dtype, &part->lora.b));
    NIB_TRY(nib_ops_bench_matrix(bench, rank, s.K, NIB_DTYPE_F32, &da));
    NIB_TRY(nib_ops_bench_matrix(bench, s.outputs, rank, NIB_DTYPE_F32, &db));
    part->lora.da = da.data;
    part->lora.db = db.data;
    NIB_TRY(nib_ops_bench_matrix(bench, s.T, s.K, dtype, &l->x));
    NIB_TRY(nib_ops_bench_matrix(bench, s.T, rank, dtype, &l->u));
    NIB_TRY(nib_ops_bench_matrix(bench, s.T, s.outputs, dtype, &l->y));
    return nib_ops_bench_matrix(bench, s.T, s.K, dtype, &l->dx);
}

static nib_status call_forward(nib_ops_bench *bench, void *user)
{
    const layer *l = user;
    return bench->ops->linear_forward(bench->ops, &l->linear, l->x, (nib_dropout){0}, l->u, l->y);
}

static nib_status call_backward(nib_ops_bench *bench, void *user)
{
    const layer *l = user;
    return bench->ops->linear_backward(bench->ops, &l->linear, l->x, (nib_dropout){0}, l->u, l->y, false, l->dx);
}

static nib_status run_trained(nib_ops_bench *bench, const char *op, nib_ops_bench_call call)
{
    static const nib_dtype dtypes[] = {NIB_DTYPE_BF16, NIB_DTYPE_F32};
    for (size_t i = 0; i < sizeof trained / sizeof *trained; i++) {
        for (int t = 0; t < 2; t++) {
            const linear_shape s = trained[i];
            const size_t mark = bench->memory.used;
            char text[64];
            layer l;
            snprintf(text, sizeof text, "%s, T %d, r %d, %s", s.name, (int)s.T, (int)RANK, nib_dtype_name(dtypes[t]));
            NIB_TRY(make_layer(bench, s, RANK, dtypes[t], &l));
            NIB_TRY(nib_ops_bench_product(bench, op, text, call, &l, s.T, s.outputs, s.K, dtypes[t]));
            nib_arena_reset(&bench->memory, mark);
        }
    }
    return NIB_OK;
}

static nib_status run_forward(nib_ops_bench *bench) { return run_trained(bench, "linear_forward", call_forward); }
static nib_status run_backward(nib_ops_bench *bench) { return run_trained(bench, "linear_backward", call_backward); }

/* A few rows, as in generation: bounded by reading half a byte a weight. */
static nib_status run_few_rows(nib_ops_bench *bench)
{
    for (size_t i = 0; i < sizeof generated / sizeof *generated; i++) {
        const linear_shape s = generated[i];
        const size_t mark = bench->memory.used;
        char text[64];
        layer l;
        snprintf(text, sizeof text, "%s, T %d", s.name, (int)s.T);
        NIB_TRY(make_layer(bench, s, 0, NIB_DTYPE_BF16, &l));
        NIB_TRY(nib_ops_bench_copy(bench, "linear_few_rows", text, call_forward, &l,
                                   (double)(s.outputs * s.K) * (0.5 + 4.0 / 64)));
        nib_arena_reset(&bench->memory, mark);
    }
    return NIB_OK;
}

typedef struct {
    nib_nf4 nf4;
    nib_matrix weight;
    uint8_t *codes;
    float *absmax;
} quantised;

static nib_status call_dequantize(nib_ops_bench *bench, void *user)
{
    const quantised *q = user;
    return bench->ops->nf4_dequantize(bench->ops, &q->nf4, q->weight);
}

static nib_status call_quantize(nib_ops_bench *bench, void *user)
{
    const quantised *q = user;
    return bench->ops->nf4_quantize(bench->ops, q->weight.data, q->weight.rows * q->weight.columns, q->codes,
                                    q->absmax);
}

static nib_status run_dequantize(nib_ops_bench *bench)
{
    static const int64_t sizes[][2] = {{3072, 576}, {14336, 4096}};
    for (int i = 0; i < 2; i++) {
        const int64_t n = sizes[i][0] * sizes[i][1];
        char text[64];
        quantised q;
        snprintf(text, sizeof text, "%d x %d to bf16", (int)sizes[i][0], (int)sizes[i][1]);
        NIB_TRY(random_nf4(bench, n, &q.nf4));
        NIB_TRY(nib_ops_bench_matrix(bench, sizes[i][0], sizes[i][1], NIB_DTYPE_BF16, &q.weight));
        NIB_TRY(
            nib_ops_bench_copy(bench, "nf4_dequantize", text, call_dequantize, &q, (double)n * (0.5 + 4.0 / 64 + 2.0)));
    }
    return NIB_OK;
}

static nib_status run_quantize(nib_ops_bench *bench)
{
    const int64_t n = 4096 * 4096;
    quantised q;
    nib_matrix absmax;
    NIB_TRY(nib_ops_bench_matrix(bench, 4096, 4096, NIB_DTYPE_F32, &q.weight));
    NIB_TRY(nib_ops_bench_bytes(bench, n / 2, &q.codes));
    NIB_TRY(nib_ops_bench_matrix(bench, 1, n / 64, NIB_DTYPE_F32, &absmax));
    q.absmax = absmax.data;
    return nib_ops_bench_copy(bench, "nf4_quantize", "4096 x 4096", call_quantize, &q,
                              (double)n * (4.0 + 0.5 + 4.0 / 64));
}

const nib_ops_bench_row nib_bench_ops_linear[] = {
    {"linear_forward", run_forward},    {"linear_backward", run_backward}, {"linear_few_rows", run_few_rows},
    {"nf4_dequantize", run_dequantize}, {"nf4_quantize", run_quantize},    {0},
};
