/* The forward pass of a Llama-like transformer (Touvron et al., "LLaMA", 2023), top to bottom.
 *
 * T tokens of a packed micro-batch, C hidden, NH heads, NKV key/value heads, HD head dim, F feed-forward. What a block
 * computes is not added to the residual at once: the norm after it adds it (ops.h, rmsnorm_forward). */
#include "base/random.h"
#include "model/model_internal.h"

#include <math.h>

nib_tree nib_forward_tree(const nib_model *model, const nib_micro_batch *batch)
{
    return (nib_tree){.T = batch->T, .position = model->activations.position, .end = model->activations.end};
}

nib_attention_shape nib_forward_attention_shape(const nib_model *model)
{
    const nib_model_config *c = &model->config;
    return (nib_attention_shape){.heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->head_dim,
                                 .scale = (float)(1.0 / sqrt((double)c->head_dim))};
}

nib_matrix nib_forward_with_room(const nib_model *model, nib_matrix matrix)
{
    return nib_matrix_columns(matrix, 0, matrix.columns + model->activations.room);
}

nib_dropout nib_forward_dropout(const nib_model *model, int64_t l, int linear, uint64_t dropout_key)
{
    if (dropout_key == 0 || model->lora == NULL) return (nib_dropout){0};
    return (nib_dropout){.p = (float)nib_lora_config_dropout(model->lora),
                         .key = nib_random_key(dropout_key, (uint64_t)(4 * l + linear))};
}

/* Matrices were placed for the capacity; this micro-batch uses their first T rows. */
static void use_rows(nib_model *model, int64_t T)
{
    nib_activations *a = &model->activations;
    nib_matrix *shared[] = {&a->normed, &a->delta, &a->h, &a->dx, &a->dattention, &a->dqkv, &a->dh};
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) shared[i]->rows = T;
    for (int64_t l = 0; l <= model->config.layers; l++) {
        nib_layer_saves *s = &a->layer[l];
        nib_matrix *saved[] = {&s->residual, &s->middle,   &s->qkv,       &s->attention, &s->gate_up,
                               &s->u_qkv,    &s->u_output, &s->u_gate_up, &s->u_down};
        for (size_t i = 0; i < sizeof saved / sizeof *saved; i++) saved[i]->rows = T;
    }
}

static nib_status upload_batch(nib_model *model, const nib_micro_batch *batch)
{
    nib_ops *ops = model->ops;
    nib_activations *a = &model->activations;
    size_t T = (size_t)batch->T, N = (size_t)batch->N;
    if (batch->T > a->T || batch->N > a->N)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "micro-batch of %lld tokens, %lld targets; reserved are %lld and %lld",
                        (long long)batch->T, (long long)batch->N, (long long)a->T, (long long)a->N);
    NIB_TRY(ops->upload(ops, a->token, batch->id, T * sizeof(int32_t)));
    NIB_TRY(ops->upload(ops, a->position, batch->position, T * sizeof(int32_t)));
    NIB_TRY(ops->upload(ops, a->end, batch->end, T * sizeof(int32_t)));
    NIB_TRY(ops->upload(ops, a->target_row, batch->target_row, N * sizeof(int32_t)));
    NIB_TRY(ops->upload(ops, a->target_label, batch->target_label, N * sizeof(int32_t)));
    NIB_TRY(ops->upload(ops, a->target_weight, batch->target_weight, N * sizeof(float)));
    use_rows(model, batch->T);
    int64_t pairs = model->config.head_dim / 2;
    return ops->rotary_table(ops, a->position, batch->T, model->frequency, pairs, 1.0f, a->rotary);
}

/* to = from, unless both are the same buffer. */
static nib_status copy_residual(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    return from.data == to.data ? NIB_OK : ops->convert(ops, from, to);
}

nib_status nib_forward_attention(nib_model *model, int64_t l, nib_tree tree, const nib_matrix *delta,
                                 uint64_t dropout_key)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];
    int64_t HD = c->head_dim, queries = c->heads * HD, keys = c->kv_heads * HD;
    nib_matrix q = nib_matrix_columns(s->qkv, 0, queries);           /* [T, NH HD] */
    nib_matrix k = nib_matrix_columns(s->qkv, queries, keys);        /* [T, NKV HD] */
    nib_matrix v = nib_matrix_columns(s->qkv, queries + keys, keys); /* [T, NKV HD] */

    NIB_TRY(ops->rmsnorm_forward(ops, s->residual, delta, layer->attention_norm, c->norm_epsilon, a->normed));
    NIB_TRY(ops->linear_forward(ops, &layer->qkv, nib_forward_with_room(model, a->normed),
                                nib_forward_dropout(model, l, 0, dropout_key), s->u_qkv, s->qkv));
    NIB_TRY(ops->rotary(ops, q, c->heads, HD, a->rotary, HD / 2, false));
    NIB_TRY(ops->rotary(ops, k, c->kv_heads, HD, a->rotary, HD / 2, false));
    nib_attention_shape shape = nib_forward_attention_shape(model);
    NIB_TRY(a->cache != NULL ? nib_cached_attention(ops, a->cache, l, shape, tree, s->qkv, s->attention)
                             : ops->attention_forward(ops, shape, tree, q, k, v, s->attention, s->lse));
    NIB_TRY(ops->linear_forward(ops, &layer->output, nib_forward_with_room(model, s->attention),
                                nib_forward_dropout(model, l, 1, dropout_key), s->u_output, a->delta));
    return copy_residual(ops, s->residual, s->middle);
}

nib_status nib_forward_gate_up(nib_model *model, int64_t l, const nib_matrix *delta, uint64_t dropout_key)
{
    nib_ops *ops = model->ops;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];

    NIB_TRY(ops->rmsnorm_forward(ops, s->middle, delta, layer->ffn_norm, model->config.norm_epsilon, a->normed));
    return ops->linear_forward(ops, &layer->gate_up, nib_forward_with_room(model, a->normed),
                               nib_forward_dropout(model, l, 2, dropout_key), s->u_gate_up, s->gate_up);
}

static nib_status forward_down(nib_model *model, int64_t l, uint64_t dropout_key)
{
    nib_ops *ops = model->ops;
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];

    NIB_TRY(ops->glu_forward(ops, model->config.activation, s->gate_up, a->h));
    NIB_TRY(ops->linear_forward(ops, &model->layers[l].down, nib_forward_with_room(model, a->h),
                                nib_forward_dropout(model, l, 3, dropout_key), s->u_down, a->delta));
    return copy_residual(ops, s->middle, a->layer[l + 1].residual);
}

nib_status nib_forward(nib_model *model, const nib_micro_batch *batch, uint64_t dropout_key)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    nib_activations *a = &model->activations;
    nib_tree tree = nib_forward_tree(model, batch);

    NIB_TRY(upload_batch(model, batch));
    NIB_TRY(ops->embedding_forward(ops, a->token, model->embedding, 1.0f, a->layer[0].residual));
    for (int64_t l = 0; l < c->layers; l++) {
        NIB_TRY(nib_forward_attention(model, l, tree, l > 0 ? &a->delta : NULL, dropout_key));
        NIB_TRY(nib_forward_gate_up(model, l, &a->delta, dropout_key));
        NIB_TRY(forward_down(model, l, dropout_key));
    }
    return ops->rmsnorm_forward(ops, a->layer[c->layers].residual, &a->delta, model->final_norm, c->norm_epsilon,
                                a->normed);
}

nib_status nib_model_score_batch(nib_model *model, const nib_micro_batch *batch, float *nll)
{
    nib_ops *ops = model->ops;
    nib_activations *a = &model->activations;
    nib_targets targets = {batch->N, a->target_row, a->target_label, a->target_weight};
    if (batch->N == 0) return NIB_OK;
    NIB_TRY(nib_forward(model, batch, 0));
    NIB_TRY(ops->linear_cross_entropy(ops, a->normed, model->head, 0.0f, targets, 1.0f, a->nll, (nib_matrix){0}, NULL));
    return ops->download(ops, nll, a->nll, (size_t)batch->N * sizeof(float));
}

nib_status nib_model_logits(nib_model *model, const nib_micro_batch *batch, float *logits)
{
    enum { ROWS = 64 };
    nib_ops *ops = model->ops;
    nib_activations *a = &model->activations;
    int64_t V = model->config.vocabulary;
    size_t mark = ops->scratch->used;
    float *piece; /* [ROWS, V] */
    NIB_TRY(nib_forward(model, batch, 0));
    nib_status status = nib_arena_take(ops->scratch, ROWS * V, sizeof(float), &piece);
    for (int64_t t = 0; t < batch->T && status == NIB_OK; t += ROWS) {
        int64_t rows = batch->T - t < ROWS ? batch->T - t : ROWS;
        status = ops->logits(ops, nib_matrix_rows(a->normed, t, rows), model->head, 0.0f, piece);
        if (status == NIB_OK) status = ops->download(ops, logits + t * V, piece, (size_t)(rows * V) * sizeof(float));
    }
    nib_arena_reset(ops->scratch, mark);
    return status;
}
