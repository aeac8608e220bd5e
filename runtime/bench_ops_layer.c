/* The ops between the linears: norms, rotary, attention, SwiGLU, embedding, loss, AdamW. */
#include "base/memory.h"
#include "bench_ops.h"

#include <stdio.h>

#define HEAD_ROWS 8 /* tokens that a recipe adds */

/* All the operands that the calls below take, made once. */
typedef struct {
    int64_t T, targets, parameters;
    nib_matrix x, dx, gate_up, h, q, k, v, out, dq, dk, dv, head, norm, moment[4], table;
    int32_t *position, *end, *token, *label;
    float *lse, *nll, *weight;
    nib_clip *clip;
    nib_adamw_factors *factors;
    nib_moments_8bit quantised;
    int32_t range_begin[2];
    nib_cache_range range;
} operands;

static nib_attention_shape attention_of(const nib_ops_bench *b)
{
    return (nib_attention_shape){
        .heads = b->shape.NH, .kv_heads = b->shape.NKV, .head_dim = b->shape.HD, .scale = 0.125f};
}

static nib_status make_matrices(nib_ops_bench *bench, operands *o)
{
    const nib_ops_bench_shape s = bench->shape;
    const struct {
        nib_matrix *matrix;
        int64_t rows, columns;
        nib_dtype dtype;
    } all[] = {
        {&o->x, s.T, s.C, NIB_DTYPE_BF16},           {&o->dx, s.T, s.C, NIB_DTYPE_BF16},
        {&o->gate_up, s.T, 2 * s.F, NIB_DTYPE_BF16}, {&o->h, s.T, s.F, NIB_DTYPE_BF16},
        {&o->q, s.T, s.NH * s.HD, NIB_DTYPE_BF16},   {&o->k, s.T, s.NKV * s.HD, NIB_DTYPE_BF16},
        {&o->v, s.T, s.NKV * s.HD, NIB_DTYPE_BF16},  {&o->out, s.T, s.NH * s.HD, NIB_DTYPE_BF16},
        {&o->dq, s.T, s.NH * s.HD, NIB_DTYPE_BF16},  {&o->dk, s.T, s.NKV * s.HD, NIB_DTYPE_BF16},
        {&o->dv, s.T, s.NKV * s.HD, NIB_DTYPE_BF16}, {&o->head, s.V, s.C, NIB_DTYPE_BF16},
        {&o->norm, 1, s.C, NIB_DTYPE_F32},           {&o->table, s.T, s.HD, NIB_DTYPE_F32},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        NIB_TRY(nib_ops_bench_matrix(bench, all[i].rows, all[i].columns, all[i].dtype, all[i].matrix));
    NIB_TRY(nib_arena_take(&bench->memory, s.NH * s.T, sizeof *o->lse, &o->lse));
    return nib_arena_take(&bench->memory, o->targets, sizeof *o->nll, &o->nll);
}

/* Documents of equal length; the targets are the first rows. */
static nib_status make_tokens(nib_ops_bench *bench, operands *o)
{
    const nib_ops_bench_shape s = bench->shape;
    const size_t bytes = (size_t)s.T * sizeof(int32_t);
    int32_t *host = nib_calloc((size_t)s.T * 5, sizeof *host), *array[4];
    float *weight = (float *)(host + 4 * s.T);
    nib_status status = NIB_OK;
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "bench ops: no memory for %lld tokens", (long long)s.T);
    for (int i = 0; i < 4; i++) array[i] = host + i * s.T;
    for (int64_t t = 0; t < s.T; t++) {
        const int64_t end = (t / s.document + 1) * s.document;
        array[0][t] = (int32_t)(t % s.document);
        array[1][t] = (int32_t)(end < s.T ? end : s.T);
        array[2][t] = (int32_t)((uint64_t)t * 2654435761u % (uint64_t)s.V);
        array[3][t] = (int32_t)((uint64_t)t * 2246822519u % (uint64_t)s.V);
        weight[t] = 1.0f;
    }
    int32_t **device[] = {&o->position, &o->end, &o->token, &o->label};
    for (int i = 0; i < 4; i++) NIB_TRY_GOTO(nib_ops_bench_upload(bench, array[i], bytes, device[i]), done);
    NIB_TRY_GOTO(nib_ops_bench_upload(bench, weight, bytes, &o->weight), done);
done:
    nib_free(host);
    return status;
}

static nib_status make(nib_ops_bench *bench, operands *o)
{
    const nib_ops_bench_shape s = bench->shape;
    o->T = s.T;
    o->targets = s.document;
    o->range_begin[1] = 1;
    o->range = (nib_cache_range){0, (int32_t)s.T};
    NIB_TRY(make_matrices(bench, o));
    return make_tokens(bench, o);
}

static nib_tree tree_of(const operands *o) { return (nib_tree){o->T, o->position, o->end}; }

static nib_status call_rmsnorm_forward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->rmsnorm_forward(b->ops, o->x, NULL, 1, o->norm.data, 1e-5f, o->dx);
}
static nib_status call_rmsnorm_backward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    nib_matrix dy = nib_matrix_columns(o->gate_up, 0, b->shape.C);
    return b->ops->rmsnorm_backward(b->ops, o->x, 1, o->norm.data, 1e-5f, dy, o->dx, NULL);
}
static nib_status call_layernorm_forward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->layernorm_forward(b->ops, o->x, NULL, o->norm.data, o->norm.data, 1e-5f, o->dx);
}
static nib_status call_layernorm_backward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    nib_matrix dy = nib_matrix_columns(o->gate_up, 0, b->shape.C);
    return b->ops->layernorm_backward(b->ops, o->x, o->norm.data, 1e-5f, dy, o->dx, NULL, NULL);
}
static nib_status call_rotary_interleaved(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->rotary(b->ops, o->q, b->shape.NH, b->shape.HD, o->table.data, b->shape.HD / 2,
                          NIB_ROTARY_INTERLEAVED, false);
}
static nib_status call_rotary(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->rotary(b->ops, o->q, b->shape.NH, b->shape.HD, o->table.data, b->shape.HD / 2, NIB_ROTARY_HALF_SPLIT,
                          false);
}
static nib_status call_attention_forward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->attention_forward(b->ops, attention_of(b), tree_of(o), o->q, o->k, o->v, o->out, o->lse);
}
static nib_status call_attention_backward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    nib_matrix dout = nib_matrix_columns(o->gate_up, 0, b->shape.NH * b->shape.HD);
    return b->ops->attention_backward(b->ops, attention_of(b), tree_of(o), o->q, o->k, o->v, o->out, o->lse, dout,
                                      o->dq, o->dk, o->dv);
}
static nib_status call_attention_cached(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->attention_cached(b->ops, attention_of(b), nib_matrix_rows(o->q, 0, 1), o->k, o->v, o->range_begin,
                                    &o->range, nib_matrix_rows(o->out, 0, 1));
}
static nib_status call_glu_forward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->glu_forward(b->ops, NIB_ACTIVATION_SILU, o->gate_up, o->h);
}
static nib_status call_glu_backward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->glu_backward(b->ops, NIB_ACTIVATION_SILU, o->h, o->gate_up);
}
static nib_status call_embedding(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->embedding_forward(b->ops, o->token, o->head, 1.0f, o->x);
}
static nib_status call_loss(nib_ops_bench *b, void *user)
{
    operands *o = user;
    const nib_targets targets = {o->targets, o->position, o->label, o->weight};
    return b->ops->linear_cross_entropy(b->ops, o->x, o->head, 0.0f, targets, 1.0f / (float)o->targets, o->nll, o->dx,
                                        NULL);
}
/* The first tokens' rows. */
static nib_status call_head_rows(nib_ops_bench *b, void *user)
{
    operands *o = user;
    const nib_targets targets = {o->targets, o->position, o->label, o->weight};
    return b->ops->head_rows_backward(b->ops, o->x, o->head, targets, 1.0f / (float)o->targets, o->nll, HEAD_ROWS,
                                      o->token, o->norm.data);
}
static nib_status call_sample(nib_ops_bench *b, void *user)
{
    operands *o = user;
    const int64_t position = 0;
    const nib_sampling sampling = {.temperature = 0.7, .top_p = 0.95, .top_k = 50};
    return b->ops->sample(b->ops, sampling, o->table.data, 1, b->shape.V, &position, o->token);
}
static nib_status call_adamw(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->adamw(b->ops, o->factors, o->clip, o->parameters, o->moment[0].data, o->moment[1].data,
                         o->moment[2].data, o->moment[3].data);
}

/* Bytes that an op must read and write, in bf16 unless said otherwise. */
static nib_status bandwidth(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                            double bytes)
{
    operands o = {0};
    NIB_TRY(make(bench, &o));
    return nib_ops_bench_copy(bench, op, shape, call, &o, bytes);
}

static double activation_bytes(const nib_ops_bench *b, int64_t columns) { return 2.0 * (double)(b->shape.T * columns); }

static const char *shape_text(char text[64], int64_t rows, int64_t columns)
{
    snprintf(text, 64, "%d x %d", (int)rows, (int)columns);
    return text;
}

static nib_status run_rmsnorm_forward(nib_ops_bench *b)
{
    char text[64];
    return bandwidth(b, "rmsnorm_forward", shape_text(text, b->shape.T, b->shape.C), call_rmsnorm_forward,
                     2.0 * activation_bytes(b, b->shape.C));
}
static nib_status run_rmsnorm_backward(nib_ops_bench *b)
{
    char text[64];
    return bandwidth(b, "rmsnorm_backward", shape_text(text, b->shape.T, b->shape.C), call_rmsnorm_backward,
                     4.0 * activation_bytes(b, b->shape.C));
}
static nib_status run_layernorm_forward(nib_ops_bench *b)
{
    char text[64];
    return bandwidth(b, "layernorm_forward", shape_text(text, b->shape.T, b->shape.C), call_layernorm_forward,
                     2.0 * activation_bytes(b, b->shape.C));
}
static nib_status run_layernorm_backward(nib_ops_bench *b)
{
    char text[64];
    return bandwidth(b, "layernorm_backward", shape_text(text, b->shape.T, b->shape.C), call_layernorm_backward,
                     4.0 * activation_bytes(b, b->shape.C));
}
static nib_status run_rotary(nib_ops_bench *b)
{
    char text[64];
    const double bytes = 2.0 * activation_bytes(b, b->shape.NH * b->shape.HD) + 2.0 * activation_bytes(b, b->shape.HD);
    snprintf(text, sizeof text, "%d x %d heads of %d", (int)b->shape.T, (int)b->shape.NH, (int)b->shape.HD);
    NIB_TRY(bandwidth(b, "rotary", text, call_rotary, bytes));
    snprintf(text, sizeof text, "%d x %d heads of %d, interleaved", (int)b->shape.T, (int)b->shape.NH,
             (int)b->shape.HD);
    return bandwidth(b, "rotary", text, call_rotary_interleaved, bytes);
}
static nib_status run_glu_forward(nib_ops_bench *b)
{
    char text[64];
    return bandwidth(b, "glu_forward", shape_text(text, b->shape.T, b->shape.F), call_glu_forward,
                     3.0 * activation_bytes(b, b->shape.F));
}
static nib_status run_glu_backward(nib_ops_bench *b)
{
    char text[64];
    return bandwidth(b, "glu_backward", shape_text(text, b->shape.T, b->shape.F), call_glu_backward,
                     5.0 * activation_bytes(b, b->shape.F));
}
static nib_status run_embedding(nib_ops_bench *b)
{
    char text[64];
    snprintf(text, sizeof text, "%d of %d x %d", (int)b->shape.T, (int)b->shape.V, (int)b->shape.C);
    return bandwidth(b, "embedding_forward", text, call_embedding, 2.0 * activation_bytes(b, b->shape.C));
}
static nib_status run_attention_cached(nib_ops_bench *b)
{
    char text[64];
    snprintf(text, sizeof text, "1 query, %d keys, %d/%d heads", (int)b->shape.T, (int)b->shape.NH, (int)b->shape.NKV);
    return bandwidth(b, "attention_cached", text, call_attention_cached,
                     2.0 * activation_bytes(b, b->shape.NKV * b->shape.HD));
}

/* A first step that clips nothing. */
static nib_status upload_step(nib_ops_bench *b, operands *o)
{
    const nib_clip clip = {.norm = 1.0, .scale = 1.0f};
    const nib_adamw_factors factors = nib_adamw_factors_of(
        (nib_adamw){.learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .step = 1});
    NIB_TRY(nib_ops_bench_upload(b, &clip, sizeof clip, &o->clip));
    return nib_ops_bench_upload(b, &factors, sizeof factors, &o->factors);
}

static nib_status run_adamw(nib_ops_bench *b)
{
    operands o = {.parameters = nib_ops_bench_parameters(b->shape)};
    char text[64];
    for (int i = 0; i < 4; i++) NIB_TRY(nib_ops_bench_matrix(b, 1, o.parameters, NIB_DTYPE_F32, &o.moment[i]));
    /* a second moment is not negative */
    NIB_TRY(b->ops->zero(b->ops, o.moment[3].data, (size_t)o.parameters * sizeof(float)));
    NIB_TRY(upload_step(b, &o));
    snprintf(text, sizeof text, "%.1f M parameters, fp32", (double)o.parameters * 1e-6);
    return nib_ops_bench_copy(b, "adamw", text, call_adamw, &o, 7.0 * (double)o.parameters * 4);
}

static nib_status call_adamw_8bit(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->adamw_8bit(b->ops, o->factors, o->clip, o->parameters, o->moment[0].data, o->moment[1].data,
                              o->quantised);
}
static nib_status run_adamw_8bit(nib_ops_bench *b)
{
    operands o = {.parameters = nib_ops_bench_parameters(b->shape)};
    const int64_t blocks = (o.parameters + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK;
    float *maps;
    char text[64];
    for (int i = 0; i < 2; i++) NIB_TRY(nib_ops_bench_matrix(b, 1, o.parameters, NIB_DTYPE_F32, &o.moment[i]));
    for (int i = 2; i < 4; i++) NIB_TRY(nib_ops_bench_matrix(b, 1, blocks, NIB_DTYPE_F32, &o.moment[i]));
    NIB_TRY(nib_ops_bench_bytes(b, o.parameters, &o.quantised.first));
    NIB_TRY(nib_ops_bench_bytes(b, o.parameters, &o.quantised.second));
    NIB_TRY(nib_arena_take(&b->memory, 512, sizeof *maps, &maps));
    NIB_TRY(b->ops->upload(b->ops, maps, nib_nf4_dynamic_map, 256 * sizeof *maps));
    NIB_TRY(b->ops->upload(b->ops, maps + 256, nib_dynamic_map_unsigned, 256 * sizeof *maps));
    NIB_TRY(upload_step(b, &o));
    o.quantised.maps = maps;
    o.quantised.first_absmax = o.moment[2].data;
    o.quantised.second_absmax = o.moment[3].data;
    NIB_TRY(b->ops->zero(b->ops, o.quantised.second_absmax, (size_t)blocks * sizeof(float))); /* never negative */
    snprintf(text, sizeof text, "%.1f M parameters, 8-bit moments", (double)o.parameters * 1e-6);
    return nib_ops_bench_copy(b, "adamw_8bit", text, call_adamw_8bit, &o, 16.0 * (double)o.parameters);
}

/* A slot that completes three levels of the tree: what every eighth does. */
static nib_status call_tree_sum(nib_ops_bench *b, void *user)
{
    operands *o = user;
    const float *const left[] = {o->moment[1].data, o->moment[2].data, o->moment[3].data};
    return b->ops->tree_sum(b->ops, o->moment[0].data, 3, left, o->parameters, o->moment[1].data);
}
static nib_status run_tree_sum(nib_ops_bench *b)
{
    operands o = {.parameters = nib_ops_bench_parameters(b->shape)};
    char text[64];
    for (int i = 0; i < 4; i++) NIB_TRY(nib_ops_bench_matrix(b, 1, o.parameters, NIB_DTYPE_F32, &o.moment[i]));
    snprintf(text, sizeof text, "%.1f M gradients, 3 levels, fp32", (double)o.parameters * 1e-6);
    return nib_ops_bench_copy(b, "tree_sum", text, call_tree_sum, &o, 6.0 * (double)o.parameters * 4);
}

/* One row of logits, read once, is what it cannot do without. */
static nib_status run_sample(nib_ops_bench *b)
{
    operands o = {0};
    char text[64];
    NIB_TRY(nib_ops_bench_matrix(b, 1, b->shape.V, NIB_DTYPE_F32, &o.table));
    NIB_TRY(nib_arena_take(&b->memory, 1, sizeof *o.token, &o.token));
    snprintf(text, sizeof text, "1 x %d, top-k 50, top-p 0.95", (int)b->shape.V);
    return nib_ops_bench_copy(b, "sample", text, call_sample, &o, 4.0 * (double)b->shape.V);
}

/* As many operations as the visible half of each document's square takes: two products of depth HD forward, five
 * backward; the plain product has these operations at the depth and width of a head. */
static nib_status run_attention(nib_ops_bench *bench, const char *op, nib_ops_bench_call call, int64_t products)
{
    const nib_ops_bench_shape s = bench->shape;
    operands o = {0};
    char text[80];
    NIB_TRY(make(bench, &o));
    NIB_TRY(call_attention_forward(bench, &o)); /* backward reads its lse */
    snprintf(text, sizeof text, "%d in documents of %d, %d/%d heads of %d", (int)s.T, (int)s.document, (int)s.NH,
             (int)s.NKV, (int)s.HD);
    const int64_t columns = (s.document * products + 1) / 2;
    return nib_ops_bench_product(bench, op, text, call, &o, s.T * s.NH, columns, s.HD, NIB_DTYPE_BF16);
}
static nib_status run_attention_forward(nib_ops_bench *b)
{
    return run_attention(b, "attention_forward", call_attention_forward, 2);
}
static nib_status run_attention_backward(nib_ops_bench *b)
{
    return run_attention(b, "attention_backward", call_attention_backward, 5);
}

/* Logits and their gradient through the head: two products. */
static nib_status run_loss(nib_ops_bench *b)
{
    operands o = {0};
    char text[64];
    NIB_TRY(make(b, &o));
    snprintf(text, sizeof text, "%d targets, %d x %d", (int)o.targets, (int)b->shape.C, (int)b->shape.V);
    return nib_ops_bench_product(b, "linear_cross_entropy", text, call_loss, &o, 2 * o.targets, b->shape.V, b->shape.C,
                                 NIB_DTYPE_BF16);
}

/* Every target's row of x is read twice, and what it adds up to written once; the selected rows stay in the cache. */
static nib_status run_head_rows(nib_ops_bench *b)
{
    operands o = {0};
    char text[64];
    NIB_TRY(make(b, &o));
    NIB_TRY(nib_ops_bench_matrix(b, HEAD_ROWS, b->shape.C, NIB_DTYPE_F32, &o.norm));
    NIB_TRY(call_loss(b, &o)); /* its nll is read */
    snprintf(text, sizeof text, "%d targets, %d rows of %d", (int)o.targets, HEAD_ROWS, (int)b->shape.C);
    return nib_ops_bench_copy(b, "head_rows_backward", text, call_head_rows, &o,
                              2.0 * 2.0 * (double)(o.targets * b->shape.C));
}

const nib_ops_bench_row nib_bench_ops_layer[] = {
    {"embedding_forward", run_embedding},
    {"rmsnorm_forward", run_rmsnorm_forward},
    {"rmsnorm_backward", run_rmsnorm_backward},
    {"layernorm_forward", run_layernorm_forward},
    {"layernorm_backward", run_layernorm_backward},
    {"rotary", run_rotary},
    {"attention_forward", run_attention_forward},
    {"attention_backward", run_attention_backward},
    {"attention_cached", run_attention_cached},
    {"glu_forward", run_glu_forward},
    {"glu_backward", run_glu_backward},
    {"linear_cross_entropy", run_loss},
    {"head_rows_backward", run_head_rows},
    {"sample", run_sample},
    {"tree_sum", run_tree_sum},
    {"adamw", run_adamw},
    {"adamw_8bit", run_adamw_8bit},
    {0},
};
