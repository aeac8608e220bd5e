/* The forward pass of a Llama-like transformer (Touvron et al., "LLaMA", 2023), top to bottom.
 *
 * T tokens of a packed micro-batch, C hidden, NH heads, NKV key/value heads, HD head dim, F feed-forward. What a block
 * computes is not added to the residual at once: the norm after it adds it (ops.h, rmsnorm_forward). */
#include "base/memory.h"
#include "base/random.h"
#include "model/model_internal.h"

#include <math.h>
#include <string.h>

nib_tree nib_forward_tree(const nib_model *model)
{
    const nib_activations *a = &model->activations;
    return (nib_tree){.T = a->tokens, .position = a->position, .end = a->end};
}

nib_targets nib_forward_targets(const nib_model *model)
{
    const nib_activations *a = &model->activations;
    return (nib_targets){a->targets, a->target_row, a->target_label, a->target_weight};
}

int64_t nib_forward_filled(const nib_model *model, int64_t size)
{
    const int64_t step = model->ops->shape_step;
    return step > 1 ? (size + step - 1) / step * step : size;
}

nib_attention_shape nib_forward_attention_shape(const nib_model *model)
{
    const nib_model_config *c = &model->config;
    return (nib_attention_shape){.heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->head_dim,
                                 .scale = (float)(1.0 / sqrt((double)c->head_dim)),
                                 .window = c->window};
}

nib_matrix nib_forward_with_room(const nib_model *model, nib_matrix matrix)
{
    return nib_matrix_columns(matrix, 0, matrix.columns + model->activations.room);
}

/* LoRA's, while training; 0: none. */
static float dropout_of(const nib_model *model)
{
    return model->options.train && model->lora != NULL ? (float)nib_lora_config_dropout(model->lora) : 0.0f;
}

nib_dropout nib_forward_dropout(const nib_model *model, int64_t l, int linear)
{
    const uint64_t *key = model->activations.dropout_key;
    if (key == NULL) return (nib_dropout){0};
    return (nib_dropout){dropout_of(model), key + (4 * l + linear) * NIB_LINEAR_MAX_PARTS};
}

/* Elements of an array that ends on a multiple of 256 bytes. */
static int64_t whole_lines(int64_t n) { return (n + 63) / 64 * 64; }

/* Matrices were placed for the capacity; this micro-batch uses their first T rows. */
static void use_rows(nib_model *model, int64_t T)
{
    nib_activations *a = &model->activations;
    nib_matrix *shared[] = {&a->normed, &a->delta, &a->h, &a->dx, &a->dattention, &a->dqkv, &a->dh, &a->qk};
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) shared[i]->rows = T;
    for (int64_t l = 0; l <= model->config.layers; l++) {
        nib_layer_saves *s = &a->layer[l];
        nib_matrix *saved[] = {&s->residual, &s->middle,   &s->qkv,       &s->attention, &s->gate_up,
                               &s->u_qkv,    &s->u_output, &s->u_gate_up, &s->u_down};
        for (size_t i = 0; i < sizeof saved / sizeof *saved; i++) saved[i]->rows = T;
    }
}

/* Keys of all masks of a micro-batch, by layer, linear and part. */
static int64_t dropout_keys(const nib_model *model)
{
    return dropout_of(model) > 0.0f ? model->config.layers * 4 * NIB_LINEAR_MAX_PARTS : 0;
}

static bool trains_token_rows(const nib_model *model) { return model->options.train && model->token_rows.count > 0; }

int64_t nib_forward_batch_elements(const nib_model *model, int64_t T, int64_t N)
{
    return (trains_token_rows(model) ? 4 : 3) * whole_lines(T) + 3 * whole_lines(N) +
           whole_lines(2 * dropout_keys(model));
}

/* The micro-batch as it lies on the device, on the host: its arrays, one behind the other. */
typedef struct {
    int32_t *token, *position, *end, *row, *label;
    float *weight;
    uint64_t *dropout_key; /* [dropout_keys] */
    int32_t *token_row;    /* NULL: none is trained */
} batch_image;

static batch_image image_in(const nib_model *model, int32_t *block, int64_t T, int64_t N)
{
    const int64_t t = whole_lines(T), n = whole_lines(N);
    int32_t *targets = block + 3 * t, *keys = targets + 3 * n;
    return (batch_image){.token = block,
                         .position = block + t,
                         .end = block + 2 * t,
                         .row = targets,
                         .label = targets + n,
                         .weight = (float *)(targets + 2 * n),
                         .dropout_key = (uint64_t *)keys,
                         .token_row = trains_token_rows(model) ? keys + whole_lines(2 * dropout_keys(model)) : NULL};
}

/* What fills up: tokens that see only themselves, at position 0, and targets of weight 0 in the last one's row. */
static void fill_image(batch_image image, const nib_micro_batch *batch, int64_t tokens, int64_t targets, float scale)
{
    const int64_t T = batch->T, N = batch->N;
    memcpy(image.token, batch->id, (size_t)T * sizeof(int32_t));
    memcpy(image.position, batch->position, (size_t)T * sizeof(int32_t));
    memcpy(image.end, batch->end, (size_t)T * sizeof(int32_t));
    for (int64_t t = T; t < tokens; t++) image.end[t] = (int32_t)t + 1;
    for (int64_t i = 0; i < targets; i++) {
        image.row[i] = batch->target_row[i < N ? i : N - 1];
        image.label[i] = i < N ? batch->target_label[i] : 0;
        image.weight[i] = i < N ? batch->target_weight[i] * scale : 0.0f;
    }
}

/* Each linear has a key of the micro-batch's, and each of its parts one of the linear's. */
static void fill_keys(const nib_model *model, uint64_t key, uint64_t *to)
{
    const int64_t keys = dropout_keys(model);
    for (int64_t i = 0; i < keys; i++)
        to[i] = nib_random_key(nib_random_key(key, (uint64_t)(i / NIB_LINEAR_MAX_PARTS)),
                               (uint64_t)(i % NIB_LINEAR_MAX_PARTS));
}

static void use_image(nib_model *model, batch_image there, int64_t tokens, int64_t targets)
{
    nib_activations *a = &model->activations;
    a->tokens = tokens;
    a->targets = targets;
    a->token = there.token;
    a->position = there.position;
    a->end = there.end;
    a->token_row = there.token_row;
    a->target_row = there.row;
    a->target_label = there.label;
    a->target_weight = there.weight;
    a->dropout_key = there.dropout_key;
    use_rows(model, tokens);
}

/* options NULL: for inference. */
static nib_status upload(nib_model *model, const nib_micro_batch *batch, int64_t tokens, int64_t targets,
                         const nib_step_options *options)
{
    nib_activations *a = &model->activations;
    const int64_t elements = nib_forward_batch_elements(model, tokens, targets);
    if (tokens > a->T || targets > a->N)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "micro-batch of %lld tokens, %lld targets; reserved are %lld and %lld",
                        (long long)tokens, (long long)targets, (long long)a->T, (long long)a->N);
    int32_t *host = nib_calloc((size_t)elements, sizeof *host);
    if (host == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a micro-batch of %lld tokens", (long long)tokens);
    const batch_image here = image_in(model, host, tokens, targets);
    fill_image(here, batch, tokens, targets, options != NULL ? options->gradient_scale : 1.0f);
    if (options != NULL) fill_keys(model, options->dropout_key, here.dropout_key);
    if (here.token_row != NULL) nib_token_rows_of(model, batch, tokens, here.token_row);
    nib_status status = model->ops->upload(model->ops, a->batch, host, (size_t)elements * sizeof *host);
    nib_free(host);
    use_image(model, image_in(model, a->batch, tokens, targets), tokens, targets);
    if (options == NULL || dropout_keys(model) == 0) a->dropout_key = NULL;
    return status;
}

nib_status nib_forward_upload(nib_model *model, const nib_micro_batch *batch)
{
    return upload(model, batch, batch->T, batch->N, NULL);
}

nib_status nib_forward_upload_filled(nib_model *model, const nib_micro_batch *batch, nib_step_options options)
{
    return upload(model, batch, nib_forward_filled(model, batch->T), nib_forward_filled(model, batch->N), &options);
}

/* to = from, unless both are the same buffer. */
static nib_status copy_residual(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    return from.data == to.data ? NIB_OK : ops->convert(ops, from, to);
}

nib_heads nib_forward_heads_of(const nib_model *model, int64_t l)
{
    const nib_model_config *c = &model->config;
    const nib_activations *a = &model->activations;
    int64_t queries = c->heads * c->head_dim, keys = c->kv_heads * c->head_dim;
    nib_matrix qkv = a->layer[l].qkv, qk = c->qk_norm ? a->qk : qkv;
    return (nib_heads){nib_matrix_columns(qk, 0, queries),             /* [T, NH HD] */
                       nib_matrix_columns(qk, queries, keys),          /* [T, NKV HD] */
                       nib_matrix_columns(qkv, queries + keys, keys)}; /* [T, NKV HD] */
}

nib_status nib_forward_heads(nib_model *model, int64_t l)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    int64_t HD = c->head_dim, queries = c->heads * HD, keys = c->kv_heads * HD;
    nib_heads heads = nib_forward_heads_of(model, l);
    if (c->qk_norm) {
        nib_matrix q = nib_matrix_columns(a->layer[l].qkv, 0, queries);
        nib_matrix k = nib_matrix_columns(a->layer[l].qkv, queries, keys);
        NIB_TRY(ops->rmsnorm_forward(ops, q, NULL, c->heads, layer->q_norm, c->norm_epsilon, heads.q));
        NIB_TRY(ops->rmsnorm_forward(ops, k, NULL, c->kv_heads, layer->k_norm, c->norm_epsilon, heads.k));
    }
    NIB_TRY(ops->rotary(ops, heads.q, c->heads, HD, a->rotary, HD / 2, c->rotary_layout, false));
    return ops->rotary(ops, heads.k, c->kv_heads, HD, a->rotary, HD / 2, c->rotary_layout, false);
}

nib_status nib_forward_attention(nib_model *model, int64_t l, nib_tree tree, const nib_matrix *delta)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];
    nib_heads heads = nib_forward_heads_of(model, l);

    NIB_TRY(ops->rmsnorm_forward(ops, s->residual, delta, 1, layer->attention_norm, c->norm_epsilon, a->normed));
    NIB_TRY(ops->linear_forward(ops, &layer->qkv, nib_forward_with_room(model, a->normed),
                                nib_forward_dropout(model, l, 0), s->u_qkv, s->qkv));
    NIB_TRY(nib_forward_heads(model, l));
    nib_attention_shape shape = nib_forward_attention_shape(model);
    NIB_TRY(a->cache != NULL
                ? nib_cached_attention(ops, a->cache, l, shape, tree, heads.q, heads.k, heads.v, s->attention)
                : ops->attention_forward(ops, shape, tree, heads.q, heads.k, heads.v, s->attention, s->lse));
    NIB_TRY(ops->linear_forward(ops, &layer->output, nib_forward_with_room(model, s->attention),
                                nib_forward_dropout(model, l, 1), s->u_output, a->delta));
    return copy_residual(ops, s->residual, s->middle);
}

nib_status nib_forward_gate_up(nib_model *model, int64_t l, const nib_matrix *delta)
{
    nib_ops *ops = model->ops;
    const nib_layer *layer = &model->layers[l];
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];

    NIB_TRY(ops->rmsnorm_forward(ops, s->middle, delta, 1, layer->ffn_norm, model->config.norm_epsilon, a->normed));
    return ops->linear_forward(ops, &layer->gate_up, nib_forward_with_room(model, a->normed),
                               nib_forward_dropout(model, l, 2), s->u_gate_up, s->gate_up);
}

static nib_status forward_down(nib_model *model, int64_t l)
{
    nib_ops *ops = model->ops;
    nib_activations *a = &model->activations;
    nib_layer_saves *s = &a->layer[l];

    NIB_TRY(ops->glu_forward(ops, model->config.activation, s->gate_up, a->h));
    NIB_TRY(ops->linear_forward(ops, &model->layers[l].down, nib_forward_with_room(model, a->h),
                                nib_forward_dropout(model, l, 3), s->u_down, a->delta));
    return copy_residual(ops, s->middle, a->layer[l + 1].residual);
}

nib_status nib_forward(nib_model *model)
{
    nib_ops *ops = model->ops;
    const nib_model_config *c = &model->config;
    nib_activations *a = &model->activations;
    nib_tree tree = nib_forward_tree(model);

    NIB_TRY(ops->rotary_table(ops, a->position, tree.T, model->frequency, c->head_dim / 2, (float)c->rope_attention,
                              a->rotary));
    NIB_TRY(ops->embedding_forward(ops, a->token, model->embedding, 1.0f, a->layer[0].residual));
    for (int64_t l = 0; l < c->layers; l++) {
        NIB_TRY(nib_base_use_layer(model, l, l + 1));
        NIB_TRY(nib_forward_attention(model, l, tree, l > 0 ? &a->delta : NULL));
        NIB_TRY(nib_forward_gate_up(model, l, &a->delta));
        NIB_TRY(forward_down(model, l));
    }
    return ops->rmsnorm_forward(ops, a->layer[c->layers].residual, &a->delta, 1, model->final_norm, c->norm_epsilon,
                                a->normed);
}

nib_status nib_model_score_batch(nib_model *model, const nib_micro_batch *batch, float *nll)
{
    nib_ops *ops = model->ops;
    nib_activations *a = &model->activations;
    if (batch->N == 0) return nib_model_accompany(model, false, (nib_gradient_watch){0});
    NIB_TRY(nib_forward_upload(model, batch));
    NIB_TRY(nib_forward(model));
    NIB_TRY(ops->linear_cross_entropy(ops, a->normed, model->head, 0.0f, nib_forward_targets(model), 1.0f, a->nll,
                                      (nib_matrix){0}, NULL));
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
    NIB_TRY(nib_forward_upload(model, batch));
    NIB_TRY(nib_forward(model));
    nib_status status = nib_arena_take(ops->scratch, ROWS * V, sizeof(float), &piece);
    for (int64_t t = 0; t < batch->T && status == NIB_OK; t += ROWS) {
        int64_t rows = batch->T - t < ROWS ? batch->T - t : ROWS;
        status = ops->logits(ops, nib_matrix_rows(a->normed, t, rows), model->head, 0.0f, piece);
        if (status == NIB_OK) status = ops->download(ops, logits + t * V, piece, (size_t)(rows * V) * sizeof(float));
    }
    nib_arena_reset(ops->scratch, mark);
    return status;
}
