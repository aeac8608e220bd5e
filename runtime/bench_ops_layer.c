/* The ops between the linears: norms, rotary, attention, SwiGLU, embedding, loss, AdamW; at T tokens of SmolLM2-135M.
 */
#include "bench_ops.h"

#include <stdio.h>

enum { T = 2048, C = 576, F = 1536, NH = 9, NKV = 3, HD = 64, V = 49152, N = 512, PARAMETERS = 4884480 };

/* All the operands that the calls below take, made once. */
typedef struct {
    nib_matrix x, dx, gate_up, h, q, k, v, out, dq, dk, dv, head, norm, moment[4], table;
    int32_t *position, *end, *token, *label;
    float *lse, *nll, *weight;
    int32_t range_begin[2];
    nib_cache_range range;
} operands;

static const nib_attention_shape attention = {.heads = NH, .kv_heads = NKV, .head_dim = HD, .scale = 0.125f};

static nib_status make(nib_ops_bench *bench, operands *o)
{
    const struct {
        nib_matrix *matrix;
        int64_t rows, columns;
        nib_dtype dtype;
    } all[] = {
        {&o->x, T, C, NIB_DTYPE_BF16},           {&o->dx, T, C, NIB_DTYPE_BF16},
        {&o->gate_up, T, 2 * F, NIB_DTYPE_BF16}, {&o->h, T, F, NIB_DTYPE_BF16},
        {&o->q, T, NH * HD, NIB_DTYPE_BF16},     {&o->k, T, NKV * HD, NIB_DTYPE_BF16},
        {&o->v, T, NKV * HD, NIB_DTYPE_BF16},    {&o->out, T, NH * HD, NIB_DTYPE_BF16},
        {&o->dq, T, NH * HD, NIB_DTYPE_BF16},    {&o->dk, T, NKV * HD, NIB_DTYPE_BF16},
        {&o->dv, T, NKV * HD, NIB_DTYPE_BF16},   {&o->head, V, C, NIB_DTYPE_BF16},
        {&o->norm, 1, C, NIB_DTYPE_F32},         {&o->table, T, HD, NIB_DTYPE_F32},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        NIB_TRY(nib_ops_bench_matrix(bench, all[i].rows, all[i].columns, all[i].dtype, all[i].matrix));
    for (int i = 0; i < 4; i++) NIB_TRY(nib_ops_bench_matrix(bench, 1, PARAMETERS, NIB_DTYPE_F32, &o->moment[i]));
    float *second = o->moment[3].data; /* a second moment is not negative */
    for (int64_t i = 0; i < PARAMETERS; i++) second[i] = second[i] * second[i];
    int32_t **index[] = {&o->position, &o->end, &o->token, &o->label};
    for (int i = 0; i < 4; i++) NIB_TRY(nib_arena_take(&bench->memory, T, sizeof(int32_t), index[i]));
    NIB_TRY(nib_arena_take(&bench->memory, NH * T, sizeof *o->lse, &o->lse));
    NIB_TRY(nib_arena_take(&bench->memory, N, sizeof *o->nll, &o->nll));
    NIB_TRY(nib_arena_take(&bench->memory, N, sizeof *o->weight, &o->weight));
    for (int32_t t = 0; t < T; t++) { /* four documents of 512 tokens */
        o->position[t] = t % 512;
        o->end[t] = t / 512 * 512 + 512;
        o->token[t] = (int32_t)((uint32_t)t * 2654435761u % V);
        o->label[t] = (int32_t)((uint32_t)t * 2246822519u % V);
    }
    for (int i = 0; i < N; i++) o->weight[i] = 1.0f;
    o->range_begin[1] = 1;
    o->range = (nib_cache_range){0, T};
    return NIB_OK;
}

static nib_tree tree_of(const operands *o) { return (nib_tree){T, o->position, o->end}; }

static nib_status call_rmsnorm_forward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->rmsnorm_forward(b->ops, o->x, NULL, o->norm.data, 1e-5f, o->out);
}
static nib_status call_rmsnorm_backward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->rmsnorm_backward(b->ops, o->x, o->norm.data, 1e-5f, o->out, o->dx, NULL);
}
static nib_status call_rotary(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->rotary(b->ops, o->q, NH, HD, o->table.data, HD / 2, false);
}
static nib_status call_attention_forward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->attention_forward(b->ops, attention, tree_of(o), o->q, o->k, o->v, o->out, o->lse);
}
static nib_status call_attention_backward(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->attention_backward(b->ops, attention, tree_of(o), o->q, o->k, o->v, o->out, o->lse, o->x, o->dq,
                                      o->dk, o->dv);
}
static nib_status call_attention_cached(nib_ops_bench *b, void *user)
{
    operands *o = user;
    return b->ops->attention_cached(b->ops, attention, nib_matrix_rows(o->q, 0, 1), o->k, o->v, o->range_begin,
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
    const nib_targets targets = {N, o->position, o->label, o->weight}; /* the rows of the first document */
    return b->ops->linear_cross_entropy(b->ops, o->x, o->head, 0.0f, targets, 1.0f / N, o->nll, o->dx, NULL);
}
static nib_status call_adamw(nib_ops_bench *b, void *user)
{
    operands *o = user;
    const nib_clip clip = {1.0, 1.0f};
    const nib_adamw options = {.learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .step = 1};
    return b->ops->adamw(b->ops, options, &clip, PARAMETERS, o->moment[0].data, o->moment[1].data, o->moment[2].data,
                         o->moment[3].data);
}

/* Bytes that an op must read and write, in bf16 unless said otherwise. */
static nib_status bandwidth(nib_ops_bench *bench, const char *op, const char *shape, nib_ops_bench_call call,
                            double bytes)
{
    operands o = {0};
    NIB_TRY(make(bench, &o));
    return nib_ops_bench_copy(bench, op, shape, call, &o, bytes);
}

static nib_status run_rmsnorm_forward(nib_ops_bench *b)
{
    return bandwidth(b, "rmsnorm_forward", "2048 x 576", call_rmsnorm_forward, 2.0 * T * C * 2);
}
static nib_status run_rmsnorm_backward(nib_ops_bench *b)
{
    return bandwidth(b, "rmsnorm_backward", "2048 x 576", call_rmsnorm_backward, 4.0 * T * C * 2);
}
static nib_status run_rotary(nib_ops_bench *b)
{
    return bandwidth(b, "rotary", "2048 x 9 heads of 64", call_rotary, 2.0 * T * NH * HD * 2 + 4.0 * T * HD);
}
static nib_status run_glu_forward(nib_ops_bench *b)
{
    return bandwidth(b, "glu_forward", "2048 x 1536, SiLU", call_glu_forward, 3.0 * T * F * 2);
}
static nib_status run_glu_backward(nib_ops_bench *b)
{
    return bandwidth(b, "glu_backward", "2048 x 1536, SiLU", call_glu_backward, 5.0 * T * F * 2);
}
static nib_status run_embedding(nib_ops_bench *b)
{
    return bandwidth(b, "embedding_forward", "2048 of 49152 x 576", call_embedding, 2.0 * T * C * 2);
}
static nib_status run_attention_cached(nib_ops_bench *b)
{
    return bandwidth(b, "attention_cached", "1 query, 2048 keys, 9/3 heads", call_attention_cached,
                     2.0 * T * NKV * HD * 2);
}
static nib_status run_adamw(nib_ops_bench *b)
{
    return bandwidth(b, "adamw", "4.9 M parameters, fp32", call_adamw, 7.0 * PARAMETERS * 4);
}

/* As many operations as the visible half of each document's square takes: two products of depth HD forward, five
 * backward; the plain product has these operations at the depth and width of a head. */
static nib_status run_attention(nib_ops_bench *bench, const char *op, nib_ops_bench_call call, int64_t products)
{
    operands o = {0};
    NIB_TRY(make(bench, &o));
    NIB_TRY(call_attention_forward(bench, &o)); /* backward reads its lse */
    return nib_ops_bench_product(bench, op, "4 x 512 causal, 9/3 heads of 64", call, &o, T * NH, 512 / 2 * products, HD,
                                 NIB_DTYPE_BF16);
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
static nib_status run_loss(nib_ops_bench *bench)
{
    operands o = {0};
    NIB_TRY(make(bench, &o));
    return nib_ops_bench_product(bench, "linear_cross_entropy", "512 targets, 576 x 49152", call_loss, &o, 2 * N, V, C,
                                 NIB_DTYPE_BF16);
}

const nib_ops_bench_row nib_bench_ops_layer[] = {
    {"embedding_forward", run_embedding},
    {"rmsnorm_forward", run_rmsnorm_forward},
    {"rmsnorm_backward", run_rmsnorm_backward},
    {"rotary", run_rotary},
    {"attention_forward", run_attention_forward},
    {"attention_backward", run_attention_backward},
    {"attention_cached", run_attention_cached},
    {"glu_forward", run_glu_forward},
    {"glu_backward", run_glu_backward},
    {"linear_cross_entropy", run_loss},
    {"adamw", run_adamw},
    {0},
};
