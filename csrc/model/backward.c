/* The backward pass, bottom to top: forward.c read in reverse. Norm outputs and h are computed again; gate_up, or the
 * whole layer but its last linear, too if the recompute policy says so. */
#include "model/model_internal.h"

/* dx of the layer's output becomes dx of the feed-forward block's input. */
static nib_status backward_ffn(nib_model *model, int64_t l)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];

    if (a->recompute == NIB_RECOMPUTE_NONE)
        NIB_TRY(ops->rmsnorm_forward(ops, s->middle, NULL, 1, layer->ffn_norm, c->norm_epsilon, a->normed));
    NIB_TRY(ops->glu_forward(ops, c->activation, s->gate_up, a->h));
    NIB_TRY(ops->linear_backward(ops, &layer->down, a->h, nib_forward_dropout(model, l, 3), s->u_down,
                                 nib_forward_with_room(model, a->dx), false, a->dh));
    NIB_TRY(ops->glu_backward(ops, c->activation, a->dh, s->gate_up));
    NIB_TRY(ops->linear_backward(ops, &layer->gate_up, a->normed, nib_forward_dropout(model, l, 2), s->u_gate_up,
                                 nib_forward_with_room(model, s->gate_up), false, a->delta));
    return ops->rmsnorm_backward(ops, s->middle, 1, layer->ffn_norm, c->norm_epsilon, a->delta, a->dx,
                                 layer->dffn_norm);
}

/* dq and dk, in dqkv, of the normed queries and keys become those of what was normed; qk, which attention has used, is
 * where they are made. */
static nib_status backward_head_norms(nib_model *model, int64_t l)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    int64_t queries = c->heads * c->head_dim, keys = c->kv_heads * c->head_dim;
    nib_matrix qkv = a->layer[l].qkv, dqk = nib_matrix_columns(a->dqkv, 0, queries + keys);

    NIB_TRY(ops->zero(ops, a->qk.data, (size_t)(a->qk.rows * a->qk.stride * nib_dtype_block_bytes(a->qk.dtype))));
    NIB_TRY(ops->rmsnorm_backward(ops, nib_matrix_columns(qkv, 0, queries), c->heads, layer->q_norm, c->norm_epsilon,
                                  nib_matrix_columns(dqk, 0, queries), nib_matrix_columns(a->qk, 0, queries),
                                  layer->dq_norm));
    NIB_TRY(ops->rmsnorm_backward(ops, nib_matrix_columns(qkv, queries, keys), c->kv_heads, layer->k_norm,
                                  c->norm_epsilon, nib_matrix_columns(dqk, queries, keys),
                                  nib_matrix_columns(a->qk, queries, keys), layer->dk_norm));
    return ops->convert(ops, a->qk, dqk);
}

/* dx of the attention block's output becomes dx of the layer's input; not needed below the first layer if the
 * embedding is frozen. */
static nib_status backward_attention(nib_model *model, int64_t l, nib_tree tree)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];
    int64_t HD = c->head_dim, queries = c->heads * HD, keys = c->kv_heads * HD;
    nib_heads heads = nib_forward_heads_of(model, l);
    nib_matrix dq = nib_matrix_columns(a->dqkv, 0, queries), dk = nib_matrix_columns(a->dqkv, queries, keys);
    nib_matrix dv = nib_matrix_columns(a->dqkv, queries + keys, keys);
    bool input = l > 0 || model->dembedding != NULL || model->token_rows.count > 0;

    NIB_TRY(ops->linear_backward(ops, &layer->output, s->attention, nib_forward_dropout(model, l, 1), s->u_output,
                                 nib_forward_with_room(model, a->dx), false, a->dattention));
    if (c->qk_norm) NIB_TRY(nib_forward_heads(model, l));
    NIB_TRY(ops->attention_backward(ops, nib_forward_attention_shape(model), tree, heads.q, heads.k, heads.v,
                                    s->attention, s->lse, a->dattention, dq, dk, dv));
    NIB_TRY(ops->rotary(ops, dq, c->heads, HD, a->rotary, HD / 2, c->rotary_layout, true));
    NIB_TRY(ops->rotary(ops, dk, c->kv_heads, HD, a->rotary, HD / 2, c->rotary_layout, true));
    if (c->qk_norm) NIB_TRY(backward_head_norms(model, l));
    NIB_TRY(ops->rmsnorm_forward(ops, s->residual, NULL, 1, layer->attention_norm, c->norm_epsilon, a->normed));
    NIB_TRY(ops->linear_backward(ops, &layer->qkv, a->normed, nib_forward_dropout(model, l, 0), s->u_qkv,
                                 nib_forward_with_room(model, a->dqkv), false, input ? a->delta : (nib_matrix){0}));
    if (!input) return NIB_OK;
    return ops->rmsnorm_backward(ops, s->residual, 1, layer->attention_norm, c->norm_epsilon, a->delta, a->dx,
                                 layer->dattention_norm);
}

static nib_status recompute_layer(nib_model *model, int64_t l, nib_tree tree)
{
    nib_activations *a = &model->activations;
    if (a->recompute == NIB_RECOMPUTE_NONE) return NIB_OK;
    if (a->recompute == NIB_RECOMPUTE_GATE_UP) return nib_forward_gate_up(model, l, NULL);
    NIB_TRY(nib_forward_attention(model, l, tree, NULL));
    return nib_forward_gate_up(model, l, &a->delta);
}

static nib_status tell_of_layer(nib_model *model, int64_t l, nib_gradient_watch watch)
{
    const nib_layer *layer = &model->layers[l];
    if (watch.done == NULL || layer->gradients == layer->gradients_end) return NIB_OK;
    return watch.done(watch.user, layer->gradients, layer->gradients_end - layer->gradients);
}

nib_status nib_model_accompany(nib_model *model, bool backward, nib_gradient_watch watch)
{
    const int64_t layers = model->config.layers;
    for (int64_t l = 0; l < layers; l++) NIB_TRY(nib_base_use_layer(model, l, l + 1));
    for (int64_t l = layers - 1; backward && l >= 0; l--) {
        NIB_TRY(nib_base_use_layer(model, l, l - 1));
        NIB_TRY(tell_of_layer(model, l, watch));
    }
    return NIB_OK;
}

/* Everything between the upload and the losses' way back. */
static nib_status make_step(void *user)
{
    nib_model *model = user;
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    nib_activations *a = &model->activations;
    nib_tree tree = nib_forward_tree(model);

    NIB_TRY(nib_forward(model));
    NIB_TRY(ops->linear_cross_entropy(ops, a->normed, model->head, 0.0f, nib_forward_targets(model), 1.0f, a->nll,
                                      a->delta, model->dhead));
    NIB_TRY(nib_token_rows_backward_head(model, nib_forward_targets(model), 1.0f));
    NIB_TRY(ops->zero(ops, a->dx.data, (size_t)(a->dx.rows * a->dx.stride * nib_dtype_block_bytes(a->dx.dtype))));
    NIB_TRY(ops->rmsnorm_backward(ops, a->layer[c->layers].residual, 1, model->final_norm, c->norm_epsilon, a->delta,
                                  a->dx, model->dfinal_norm));
    for (int64_t l = c->layers - 1; l >= 0; l--) {
        NIB_TRY(nib_base_use_layer(model, l, l - 1));
        NIB_TRY(recompute_layer(model, l, tree));
        NIB_TRY(backward_ffn(model, l));
        NIB_TRY(backward_attention(model, l, tree));
        NIB_TRY(tell_of_layer(model, l, model->watch));
    }
    NIB_TRY(nib_token_rows_backward(model));
    if (model->dembedding == NULL) return NIB_OK;
    return ops->embedding_backward(ops, a->token, a->dx, 1.0f, model->dembedding);
}

nib_status nib_model_train_batch(nib_model *model, const nib_micro_batch *batch, nib_step_options options, float *nll)
{
    nib_ops *ops = model->ops;
    const nib_activations *a = &model->activations;
    if (batch->N == 0) return nib_model_accompany(model, true, options.watch);
    model->watch = options.watch;
    NIB_TRY(nib_forward_upload_filled(model, batch, options));
    /* A divided base is not recorded: which window a layer lies in changes from pass to pass, and a rank without a
     * micro-batch gathers along, so that no two ranks would have the same moves in their recordings. */
    NIB_TRY(model->shards.among != NULL || options.watch.done != NULL
                ? make_step(model)
                : nib_recordings_run(&model->recordings, ops, (nib_step_shape){.T = a->tokens, .N = a->targets},
                                     make_step, model));
    return ops->fetch(ops, nll, a->nll, (size_t)batch->N * sizeof(float));
}
