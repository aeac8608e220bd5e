/* Linear layers over NF4 with LoRA, and NF4 itself. */
#include "bench_ops.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    nib_linear linear;
    nib_matrix x, u, y, dx;
} layer;

/* The four linears of a layer as the model has them: what reads the same input is one. */
enum { LINEARS = 4 };
static nib_linear linear_of(nib_ops_bench_shape s, int which)
{
    const int64_t queries = s.NH * s.HD, keys = s.NKV * s.HD;
    const nib_linear all[LINEARS] = {
        {.name = "qkv", .K = s.C, .parts = 3, .part = {{.rows = queries}, {.rows = keys}, {.rows = keys}}},
        {.name = "o", .K = queries, .parts = 1, .part = {{.rows = s.C}}},
        {.name = "gate, up", .K = s.C, .parts = 2, .part = {{.rows = s.F}, {.rows = s.F}}},
        {.name = "down", .K = s.F, .parts = 1, .part = {{.rows = s.C}}},
    };
    return all[which];
}

int64_t nib_ops_bench_parameters(nib_ops_bench_shape s)
{
    int64_t sum = 0;
    for (int which = 0; which < LINEARS; which++) {
        const nib_linear linear = linear_of(s, which);
        for (int p = 0; p < linear.parts; p++) sum += s.R * (linear.K + linear.part[p].rows);
    }
    return s.layers * sum;
}

/* Double quantised, as training has it. */
static nib_status random_nf4(nib_ops_bench *bench, int64_t n, nib_nf4 *nf4)
{
    uint8_t *codes, *absmax_codes;
    nib_matrix nested;
    float *map;
    const int64_t blocks = (n + 63) / 64;
    NIB_TRY(nib_ops_bench_bytes(bench, (n + 1) / 2, &codes));
    NIB_TRY(nib_ops_bench_bytes(bench, blocks, &absmax_codes));
    NIB_TRY(nib_ops_bench_matrix(bench, 1, (blocks + 255) / 256, NIB_DTYPE_F32, &nested));
    NIB_TRY(nib_ops_bench_upload(bench, nib_nf4_dynamic_map, sizeof nib_nf4_dynamic_map, &map));
    *nf4 = (nib_nf4){.codes = codes,
                     .absmax_codes = absmax_codes,
                     .nested_absmax = nested.data,
                     .nested_map = map,
                     .nested_offset = 1.0f};
    return NIB_OK;
}

static nib_status make_layer(nib_ops_bench *bench, int which, int64_t T, int64_t rank, nib_dtype dtype, layer *l)
{
    *l = (layer){.linear = linear_of(bench->shape, which)};
    nib_linear *linear = &l->linear;
    for (int p = 0; p < linear->parts; p++) {
        nib_linear_part *part = &linear->part[p];
        nib_matrix da, db;
        NIB_TRY(random_nf4(bench, part->rows * linear->K, &part->nf4));
        if (rank == 0) continue;
        part->lora = (nib_lora){.rank = rank, .scale = 2.0f};
        NIB_TRY(nib_ops_bench_matrix(bench, rank, linear->K, dtype, &part->lora.a));
        NIB_TRY(nib_ops_bench_matrix(bench, part->rows, rank, dtype, &part->lora.b));
        NIB_TRY(nib_ops_bench_matrix(bench, rank, linear->K, NIB_DTYPE_F32, &da));
        NIB_TRY(nib_ops_bench_matrix(bench, part->rows, rank, NIB_DTYPE_F32, &db));
        part->lora.da = da.data;
        part->lora.db = db.data;
    }
    if (rank > 0) NIB_TRY(nib_ops_bench_matrix(bench, T, nib_linear_ranks(linear), dtype, &l->u));
    NIB_TRY(nib_ops_bench_matrix(bench, T, linear->K, dtype, &l->x));
    NIB_TRY(nib_ops_bench_matrix(bench, T, nib_linear_outputs(linear), dtype, &l->y));
    return nib_ops_bench_matrix(bench, T, linear->K, dtype, &l->dx);
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

/* Makes every part DoRA's, with gains of about 1. */
static nib_status add_magnitudes(nib_ops_bench *bench, layer *l)
{
    for (int p = 0; p < l->linear.parts; p++) {
        nib_linear_part *part = &l->linear.part[p];
        nib_matrix vector[4]; /* magnitude, norm, gain, dmagnitude */
        for (int i = 0; i < 4; i++) NIB_TRY(nib_ops_bench_matrix(bench, 1, part->rows, NIB_DTYPE_F32, &vector[i]));
        part->lora.dora = (nib_dora){vector[0].data, vector[1].data, vector[2].data, vector[3].data};
        NIB_TRY(bench->ops->dora_norm(bench->ops, part, l->linear.K));
    }
    return NIB_OK;
}

/* fp8: nothing where the device does not have it. */
static nib_status run_trained(nib_ops_bench *bench, const char *op, nib_ops_bench_call call, bool fp8, bool dora)
{
    if (fp8 && !bench->ops->fp8) return NIB_OK;
    const int64_t T = bench->shape.T, R = bench->shape.R;
    for (int which = 0; which < LINEARS; which++) {
        for (int wide = 0; wide <= (bench->cpu ? 1 : 0); wide++) {
            const nib_dtype dtype = wide ? NIB_DTYPE_F32 : NIB_DTYPE_BF16;
            const size_t mark = bench->memory.used;
            char text[80];
            layer l;
            NIB_TRY(make_layer(bench, which, T, R, dtype, &l));
            l.linear.fp8_forward = l.linear.fp8_backward = fp8;
            if (dora) NIB_TRY(add_magnitudes(bench, &l));
            const int64_t outputs = nib_linear_outputs(&l.linear);
            snprintf(text, sizeof text, "%s, T %d, %d -> %d, r %d, %s", l.linear.name, (int)T, (int)l.linear.K,
                     (int)outputs, (int)R, nib_dtype_name(dtype));
            NIB_TRY(nib_ops_bench_product(bench, op, text, call, &l, T, outputs, l.linear.K, dtype));
            nib_arena_reset(&bench->memory, mark);
        }
    }
    return NIB_OK;
}

static nib_status run_forward(nib_ops_bench *bench)
{
    NIB_TRY(run_trained(bench, "linear_forward", call_forward, false, false));
    return run_trained(bench, "linear_forward_fp8", call_forward, true, false);
}

static nib_status run_backward(nib_ops_bench *bench)
{
    NIB_TRY(run_trained(bench, "linear_backward", call_backward, false, false));
    return run_trained(bench, "linear_backward_fp8", call_backward, true, false);
}

static nib_status run_dora_forward(nib_ops_bench *bench)
{
    return run_trained(bench, "linear_forward_dora", call_forward, false, true);
}
static nib_status run_dora_backward(nib_ops_bench *bench)
{
    return run_trained(bench, "linear_backward_dora", call_backward, false, true);
}

static nib_status call_norms(nib_ops_bench *bench, void *user)
{
    const layer *l = user;
    for (int p = 0; p < l->linear.parts; p++)
        NIB_TRY(bench->ops->dora_norm(bench->ops, &l->linear.part[p], l->linear.K));
    return NIB_OK;
}

/* Half a byte a weight is read, and 2 R flops done with it. */
static nib_status run_norms(nib_ops_bench *bench)
{
    for (int which = 0; which < LINEARS; which++) {
        const size_t mark = bench->memory.used;
        char text[80];
        layer l;
        NIB_TRY(make_layer(bench, which, 1, bench->shape.R, NIB_DTYPE_BF16, &l));
        NIB_TRY(add_magnitudes(bench, &l));
        const int64_t outputs = nib_linear_outputs(&l.linear);
        snprintf(text, sizeof text, "%s, %d x %d, r %d", l.linear.name, (int)outputs, (int)l.linear.K,
                 (int)bench->shape.R);
        NIB_TRY(nib_ops_bench_copy(bench, "dora_norm", text, call_norms, &l,
                                   (double)(outputs * l.linear.K) * (0.5 + 1.0 / 64)));
        nib_arena_reset(&bench->memory, mark);
    }
    return NIB_OK;
}

/* call with the named choice switched off, which leaves one way for the weights of many rows. */
static nib_status call_without(nib_ops_bench *bench, nib_ops_bench_call call, void *user, const char *choice)
{
    nib_ops *ops = bench->ops;
    const uint32_t before = ops->plain;
    for (int i = 0; i < ops->choices; i++)
        if (strcmp(ops->choice[i], choice) == 0) ops->use_plain(ops, before | 1u << i);
    const nib_status status = call(bench, user);
    ops->use_plain(ops, before);
    return status;
}
static nib_status call_dequantized(nib_ops_bench *bench, void *user)
{
    return call_without(bench, call_forward, user, "nf4_matmul_hopper");
}
static nib_status call_decoded(nib_ops_bench *bench, void *user)
{
    return call_without(bench, call_forward, user, "matmul");
}
static nib_status call_dx_dequantized(nib_ops_bench *bench, void *user)
{
    return call_without(bench, call_backward, user, "nf4_matmul_hopper_backward");
}
static nib_status call_dx_decoded(nib_ops_bench *bench, void *user)
{
    return call_without(bench, call_backward, user, "matmul");
}

/* The two ways of y and dx with NF4 weights, without adapter: dequantised for cublasLt, and on Hopper decoded in
 * registers. */
static nib_status run_way(nib_ops_bench *bench, const char *op, nib_ops_bench_call call)
{
    const int64_t T = bench->shape.T;
    for (int which = 0; which < LINEARS && strstr(bench->ops->device, "sm_90") != NULL; which++) {
        const size_t mark = bench->memory.used;
        char text[80];
        layer l;
        NIB_TRY(make_layer(bench, which, T, 0, NIB_DTYPE_BF16, &l));
        const int64_t outputs = nib_linear_outputs(&l.linear);
        snprintf(text, sizeof text, "%s, T %d, %d -> %d", l.linear.name, (int)T, (int)l.linear.K, (int)outputs);
        NIB_TRY(nib_ops_bench_product(bench, op, text, call, &l, T, outputs, l.linear.K, NIB_DTYPE_BF16));
        nib_arena_reset(&bench->memory, mark);
    }
    return NIB_OK;
}

static nib_status run_dequantized(nib_ops_bench *bench)
{
    return run_way(bench, "linear_dequantized", call_dequantized);
}
static nib_status run_decoded(nib_ops_bench *bench) { return run_way(bench, "linear_decoded", call_decoded); }
static nib_status run_dx_dequantized(nib_ops_bench *bench)
{
    return run_way(bench, "linear_dx_dequantized", call_dx_dequantized);
}
static nib_status run_dx_decoded(nib_ops_bench *bench) { return run_way(bench, "linear_dx_decoded", call_dx_decoded); }

/* A few rows, as in generation: bounded by reading half a byte a weight. */
static nib_status run_few_rows(nib_ops_bench *bench)
{
    static const int64_t rows[] = {1, 8, 32};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int which = 0; which < LINEARS; which++) {
            const size_t mark = bench->memory.used;
            char text[80];
            layer l;
            NIB_TRY(make_layer(bench, which, rows[i], 0, NIB_DTYPE_BF16, &l));
            const int64_t outputs = nib_linear_outputs(&l.linear);
            snprintf(text, sizeof text, "%s, T %d, %d -> %d", l.linear.name, (int)rows[i], (int)l.linear.K,
                     (int)outputs);
            NIB_TRY(nib_ops_bench_copy(bench, "linear_few_rows", text, call_forward, &l,
                                       (double)(outputs * l.linear.K) * (0.5 + 1.0 / 64)));
            nib_arena_reset(&bench->memory, mark);
        }
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
    const int64_t rows = bench->shape.F, columns = bench->shape.C;
    char text[64];
    quantised q;
    snprintf(text, sizeof text, "%d x %d to bf16", (int)rows, (int)columns);
    NIB_TRY(random_nf4(bench, rows * columns, &q.nf4));
    NIB_TRY(nib_ops_bench_matrix(bench, rows, columns, NIB_DTYPE_BF16, &q.weight));
    return nib_ops_bench_copy(bench, "nf4_dequantize", text, call_dequantize, &q,
                              (double)(rows * columns) * (0.5 + 1.0 / 64 + 2.0));
}

static nib_status run_quantize(nib_ops_bench *bench)
{
    const int64_t rows = bench->shape.F, columns = bench->shape.C, n = rows * columns;
    char text[64];
    quantised q;
    nib_matrix absmax;
    snprintf(text, sizeof text, "%d x %d", (int)rows, (int)columns);
    NIB_TRY(nib_ops_bench_matrix(bench, rows, columns, NIB_DTYPE_F32, &q.weight));
    NIB_TRY(nib_ops_bench_bytes(bench, (n + 1) / 2, &q.codes));
    NIB_TRY(nib_ops_bench_matrix(bench, 1, (n + 63) / 64, NIB_DTYPE_F32, &absmax));
    q.absmax = absmax.data;
    return nib_ops_bench_copy(bench, "nf4_quantize", text, call_quantize, &q, (double)n * (4.0 + 0.5 + 4.0 / 64));
}

const nib_ops_bench_row nib_bench_ops_linear[] = {
    {"linear_forward", run_forward},
    {"linear_backward", run_backward},
    {"linear_dequantized", run_dequantized},
    {"linear_decoded", run_decoded},
    {"linear_dx_dequantized", run_dx_dequantized},
    {"linear_dx_decoded", run_dx_decoded},
    {"linear_few_rows", run_few_rows},
    {"nf4_dequantize", run_dequantize},
    {"nf4_quantize", run_quantize},
    {"dora_norm", run_norms},
    {"linear_forward_dora", run_dora_forward},
    {"linear_backward_dora", run_dora_backward},
    {0},
};
