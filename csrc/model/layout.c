/* Where every tensor of a model lies. The same code places tensors in arenas and, on arenas without a block, counts
 * them: that is the plan. */
#include "model/model_internal.h"

#include <stdio.h>
#include <string.h>

nib_module nib_model_module(const nib_model_config *c, int index)
{
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const nib_module modules[NIB_MODULES] = {
        {"self_attn.q_proj", offsetof(nib_layer, qkv), 0, c->attention_bias, q, c->hidden},
        {"self_attn.k_proj", offsetof(nib_layer, qkv), 1, c->attention_bias, kv, c->hidden},
        {"self_attn.v_proj", offsetof(nib_layer, qkv), 2, c->attention_bias, kv, c->hidden},
        {"self_attn.o_proj", offsetof(nib_layer, output), 0, c->output_bias, c->hidden, q},
        {"mlp.gate_proj", offsetof(nib_layer, gate_up), 0, c->mlp_bias, c->feed_forward, c->hidden},
        {"mlp.up_proj", offsetof(nib_layer, gate_up), 1, c->mlp_bias, c->feed_forward, c->hidden},
        {"mlp.down_proj", offsetof(nib_layer, down), 0, c->mlp_bias, c->hidden, c->feed_forward},
    };
    return modules[index];
}

nib_linear_part *nib_layer_part(nib_layer *layer, const nib_module *module)
{
    return &((nib_linear *)((char *)layer + module->linear))->part[module->part];
}

void nib_module_name(char name[128], int64_t layer, const nib_module *module)
{
    snprintf(name, 128, "model.layers.%lld.%s", (long long)layer, module->name);
}

static nib_status take_matrix(nib_arena *arena, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *matrix)
{
    *matrix = (nib_matrix){.rows = rows, .columns = columns, .stride = columns, .dtype = dtype};
    return nib_arena_take(arena, rows * columns, (size_t)nib_dtype_block_bytes(dtype), &matrix->data);
}

int64_t nib_parameter_row_of_rank(int64_t rows, int64_t columns, int ranks, int r)
{
    int64_t together = NIB_MOMENT_BLOCK; /* rows whose values are whole blocks: a power of two */
    while (together > 1 && together / 2 * columns % NIB_MOMENT_BLOCK == 0) together /= 2;
    const int64_t row = (rows + together - 1) / together * r / ranks * together;
    return row < rows ? row : rows;
}

static nib_status place_moments(nib_model *model, nib_parameter *p)
{
    nib_arena *arena = &model->arena[NIB_ARENA_OPTIMIZER];
    const int64_t held = p->held_rows * p->columns, blocks = (held + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK;
    if (!model->options.train) return NIB_OK;
    p->moments_8bit = model->options.moments_8bit && p->rows * p->columns >= NIB_LEAST_FOR_8BIT;
    if (!p->moments_8bit) {
        NIB_TRY(nib_arena_take(arena, held, sizeof(float), &p->first_moment));
        return nib_arena_take(arena, held, sizeof(float), &p->second_moment);
    }
    p->moments.maps = model->moment_maps;
    NIB_TRY(nib_arena_take(arena, held, 1, &p->moments.first));
    NIB_TRY(nib_arena_take(arena, held, 1, &p->moments.second));
    NIB_TRY(nib_arena_take(arena, blocks, sizeof(float), &p->moments.first_absmax));
    return nib_arena_take(arena, blocks, sizeof(float), &p->moments.second_absmax);
}

/* The next trained tensor. Its master and gradient are the next elements of the model's two arrays. */
static nib_status add_parameter(nib_model *model, const char *name, int64_t rows, int64_t columns, bool matrix,
                                nib_parameter **out)
{
    if (!nib_grow(&model->parameters, &model->parameter_capacity, model->parameter_count + 1,
                  sizeof *model->parameters))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the table of trained tensors");
    nib_parameter *parameter = &model->parameters[model->parameter_count++];
    const nib_shards *among = model->options.shard_optimizer;
    const int rank = among != NULL ? among->rank : 0, ranks = among != NULL ? among->size : 1;
    const int64_t first = model->parameter_elements, held = model->held_elements;
    const int64_t first_row = nib_parameter_row_of_rank(rows, columns, ranks, rank);
    *parameter = (nib_parameter){.name = nib_pool_copy(&model->pool, name, strlen(name)),
                                 .rows = rows,
                                 .columns = columns,
                                 .first_row = first_row,
                                 .held_rows = nib_parameter_row_of_rank(rows, columns, ranks, rank + 1) - first_row,
                                 .master = model->masters == NULL ? NULL : model->masters + held,
                                 .gradient = model->gradients == NULL ? NULL : model->gradients + first};
    if (parameter->name == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the table of trained tensors");
    model->parameter_elements += rows * columns;
    model->held_elements += parameter->held_rows * columns;
    NIB_TRY(place_moments(model, parameter));
    nib_dtype dtype = matrix ? model->options.compute : NIB_DTYPE_F32;
    if (dtype == NIB_DTYPE_F32 && among == NULL)
        parameter->copy = (nib_matrix){parameter->master, rows, columns, columns, dtype};
    else
        NIB_TRY(take_matrix(&model->arena[NIB_ARENA_ADAPTER], rows, columns, dtype, &parameter->copy));
    *out = parameter;
    return NIB_OK;
}

/* The type of a frozen matrix: bf16, but where fp32 arithmetic would lose what the file holds. What is about to be
 * quantised is bf16 in its NF4 form, dense matrices too. */
static nib_dtype frozen_dtype(const nib_model *model, const char *name)
{
    bool as_stored = model->options.quantization == NIB_QUANT_NONE || model->source.quantized;
    return model->options.compute == NIB_DTYPE_F32 && as_stored && nib_weight_source_is_wide(&model->source, name)
               ? NIB_DTYPE_F32
               : NIB_DTYPE_BF16;
}

/* A matrix of the checkpoint: frozen, in this type, or a parameter with its gradient. */
static nib_status place_matrix(nib_model *model, const char *name, int64_t rows, int64_t columns, nib_dtype frozen,
                               nib_matrix *matrix, float **gradient)
{
    if (!model->options.full) return take_matrix(&model->arena[NIB_ARENA_BASE], rows, columns, frozen, matrix);
    nib_parameter *parameter;
    NIB_TRY(add_parameter(model, name, rows, columns, true, &parameter));
    *matrix = parameter->copy;
    *gradient = parameter->gradient;
    return NIB_OK;
}

static nib_status place_vector(nib_model *model, const char *name, int64_t n, float **vector, float **gradient)
{
    if (!model->options.full) return nib_arena_take(&model->arena[NIB_ARENA_BASE], n, sizeof(float), vector);
    nib_parameter *parameter;
    NIB_TRY(add_parameter(model, name, 1, n, false, &parameter));
    *vector = parameter->copy.data;
    *gradient = parameter->gradient;
    return NIB_OK;
}

static nib_status place_nf4(nib_model *model, const char *name, int64_t n, nib_nf4 *nf4)
{
    nib_arena *arena = model->shards.among != NULL ? &model->shards.record : &model->arena[NIB_ARENA_BASE];
    int64_t blocks = (n + 63) / 64;
    nib_bnb_nf4 stored = {0};
    *nf4 = (nib_nf4){.nested_map = model->nested_map};
    if (model->source.quantized) NIB_TRY(nib_bnb_nf4_find(model->source.set, name, &stored));
    NIB_TRY(nib_arena_take(arena, (n + 1) / 2, 1, &nf4->codes));
    if (model->source.quantized && stored.nested_absmax == NULL)
        return nib_arena_take(arena, blocks, sizeof(float), &nf4->absmax);
    nf4->nested_offset = stored.nested_offset;
    NIB_TRY(nib_arena_take(arena, blocks, 1, &nf4->absmax_codes));
    return nib_arena_take(arena, (blocks + 255) / 256, sizeof(float), &nf4->nested_absmax);
}

static nib_status place_lora(nib_model *model, const char *module_name, int64_t layer, const nib_module *module,
                             nib_lora *lora)
{
    char name[192];
    nib_parameter *a, *b, *magnitude;
    if (model->lora == NULL) return NIB_OK;
    NIB_TRY(nib_lora_config_resolve(model->lora, module_name, layer, &lora->rank, &lora->scale));
    if (lora->rank == 0) return NIB_OK;
    snprintf(name, sizeof name, "base_model.model.%s.lora_A.weight", module_name);
    NIB_TRY(add_parameter(model, name, lora->rank, module->columns, true, &a));
    lora->a = a->copy;
    lora->da = a->gradient;
    snprintf(name, sizeof name, "base_model.model.%s.lora_B.weight", module_name);
    NIB_TRY(add_parameter(model, name, module->rows, lora->rank, true, &b)); /* may move a */
    lora->b = b->copy;
    lora->db = b->gradient;
    if (!nib_lora_config_dora(model->lora)) return NIB_OK;
    snprintf(name, sizeof name, "base_model.model.%s" NIB_MAGNITUDE, module_name);
    NIB_TRY(add_parameter(model, name, 1, module->rows, false, &magnitude));
    lora->dora.magnitude = magnitude->master;
    lora->dora.dmagnitude = magnitude->gradient;
    NIB_TRY(nib_arena_take(&model->arena[NIB_ARENA_ADAPTER], module->rows, sizeof(float), &lora->dora.norm));
    return nib_arena_take(&model->arena[NIB_ARENA_ADAPTER], module->rows, sizeof(float), &lora->dora.gain);
}

static nib_status place_module(nib_model *model, int64_t l, int index)
{
    nib_module module = nib_model_module(&model->config, index);
    nib_linear *linear = (nib_linear *)((char *)&model->layers[l] + module.linear);
    nib_linear_part *part = &linear->part[module.part];
    char module_name[128], name[160];
    nib_module_name(module_name, l, &module);
    *part = (nib_linear_part){.rows = module.rows};
    linear->K = module.columns;
    linear->fp8_forward = model->options.fp8 && linear != &model->layers[l].qkv; /* profiling/results/fp8.md */
    linear->fp8_backward = model->options.fp8;
    if (model->options.fp8 && (module.rows % 16 != 0 || module.columns % 16 != 0))
        return NIB_FAIL(NIB_ERROR_CONFIG,
                        "%s is [%lld, %lld]: \"compute\" \"fp8\" takes multiples of 16; \"bf16\" takes any size",
                        module_name, (long long)module.rows, (long long)module.columns);
    linear->parts = module.part + 1;
    snprintf(name, sizeof name, "%s.weight", module_name);
    if (model->options.quantization == NIB_QUANT_NF4)
        NIB_TRY(place_nf4(model, name, module.rows * module.columns, &part->nf4));
    else
        NIB_TRY(place_matrix(model, name, module.rows, module.columns, frozen_dtype(model, name), &part->dense,
                             &part->dweight));
    snprintf(name, sizeof name, "%s.bias", module_name);
    if (module.bias) {
        float *bias;
        NIB_TRY(place_vector(model, name, module.rows, &bias, &part->dbias));
        part->bias = bias;
    }
    return place_lora(model, module_name, l, &module, &part->lora);
}

static nib_status place_head_norms(nib_model *model, int64_t l)
{
    nib_layer *layer = &model->layers[l];
    char name[128];
    snprintf(name, sizeof name, "model.layers.%lld.self_attn.q_norm.weight", (long long)l);
    NIB_TRY(place_vector(model, name, model->config.head_dim, &layer->q_norm, &layer->dq_norm));
    snprintf(name, sizeof name, "model.layers.%lld.self_attn.k_norm.weight", (long long)l);
    return place_vector(model, name, model->config.head_dim, &layer->k_norm, &layer->dk_norm);
}

static nib_status place_layer(nib_model *model, int64_t l)
{
    nib_layer *layer = &model->layers[l];
    int64_t C = model->config.hidden;
    char name[128];
    *layer = (nib_layer){.record = model->shards.record.block, .gradients = model->parameter_elements};
    nib_arena_reset(&model->shards.record, 0);
    const struct {
        nib_linear *linear;
        const char *name;
    } linears[] = {
        {&layer->qkv, "qkv"}, {&layer->output, "output"}, {&layer->gate_up, "gate_up"}, {&layer->down, "down"}};
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
        int length = snprintf(name, sizeof name, "layers.%lld.%s", (long long)l, linears[i].name);
        linears[i].linear->name = nib_pool_copy(&model->pool, name, (size_t)length);
    }
    snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)l);
    NIB_TRY(place_vector(model, name, C, &layer->attention_norm, &layer->dattention_norm));
    for (int i = 0; i < 4; i++) NIB_TRY(place_module(model, l, i));
    if (model->config.qk_norm) NIB_TRY(place_head_norms(model, l));
    snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)l);
    NIB_TRY(place_vector(model, name, C, &layer->ffn_norm, &layer->dffn_norm));
    for (int i = 4; i < NIB_MODULES; i++) NIB_TRY(place_module(model, l, i));
    layer->gradients_end = model->parameter_elements;
    return NIB_OK;
}

/* One behind the other or, where they are streamed, all in one place. */
static nib_status place_layers(nib_model *model)
{
    nib_arena *base = &model->arena[NIB_ARENA_BASE];
    const size_t begin = base->used;
    size_t end = begin;
    for (int64_t l = 0; l < model->config.layers; l++) {
        if (model->options.stream_layers) nib_arena_reset(base, begin);
        NIB_TRY(place_layer(model, l));
        end = base->used > end ? base->used : end;
    }
    nib_arena_reset(base, end);
    return NIB_OK;
}

static nib_status place_token_rows(nib_model *model)
{
    nib_token_rows *r = &model->token_rows;
    nib_parameter *parameter;
    if (r->count == 0) return NIB_OK;
    NIB_TRY(nib_arena_take(&model->arena[NIB_ARENA_ADAPTER], r->count, sizeof *r->device_token, &r->device_token));
    NIB_TRY(add_parameter(model, "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", r->count,
                          model->config.hidden, false, &parameter));
    r->master = parameter->master;
    r->gradient = parameter->gradient;
    return NIB_OK;
}

static nib_status place_weights(nib_model *model)
{
    const nib_model_config *c = &model->config;
    nib_arena *base = &model->arena[NIB_ARENA_BASE];
    model->parameter_count = 0;
    model->parameter_elements = 0;
    model->held_elements = 0;
    NIB_TRY(nib_arena_take(base, c->head_dim / 2, sizeof(float), &model->frequency));
    if (model->options.quantization == NIB_QUANT_NF4)
        NIB_TRY(nib_arena_take(base, 256, sizeof(float), &model->nested_map));
    NIB_TRY(nib_token_rows_find(model));
    nib_dtype embedding =
        model->token_rows.count > 0 ? model->options.compute : frozen_dtype(model, "model.embed_tokens.weight");
    NIB_TRY(place_matrix(model, "model.embed_tokens.weight", c->vocabulary, c->hidden, embedding, &model->embedding,
                         &model->dembedding));
    NIB_TRY(place_layers(model));
    NIB_TRY(place_vector(model, "model.norm.weight", c->hidden, &model->final_norm, &model->dfinal_norm));
    model->head = model->embedding;
    model->dhead = model->dembedding;
    if (!c->tied_head)
        NIB_TRY(place_matrix(model, "lm_head.weight", c->vocabulary, c->hidden, frozen_dtype(model, "lm_head.weight"),
                             &model->head, &model->dhead));
    return place_token_rows(model);
}

static nib_status take_parameters(nib_model *model)
{
    const int64_t elements = model->parameter_elements, held = model->held_elements;
    NIB_TRY(nib_arena_take(&model->arena[NIB_ARENA_ADAPTER], held, sizeof(float), &model->masters));
    if (!model->options.train) return NIB_OK;
    NIB_TRY(nib_arena_take(&model->arena[NIB_ARENA_GRADIENTS], elements, sizeof(float), &model->gradients));
    if (model->options.moments_8bit)
        NIB_TRY(nib_arena_take(&model->arena[NIB_ARENA_OPTIMIZER], 512, sizeof(float), &model->moment_maps));
    NIB_TRY(nib_arena_take(&model->arena[NIB_ARENA_OPTIMIZER], 1, sizeof *model->clip, &model->clip));
    return nib_arena_take(&model->arena[NIB_ARENA_OPTIMIZER], 2, sizeof *model->factors, &model->factors);
}

static nib_status allocate(nib_model *model, int index)
{
    nib_arena *arena = &model->arena[index];
    void *block;
    NIB_TRY(model->ops->allocate(model->ops, arena->name, arena->used, &block));
    *arena = (nib_arena){.name = arena->name, .block = block, .capacity = arena->used};
    return NIB_OK;
}

nib_status nib_model_layout(nib_model *model)
{
    model->layers = nib_pool_alloc(&model->pool, (size_t)model->config.layers * sizeof *model->layers);
    if (model->layers == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld layers", (long long)model->config.layers);
    NIB_TRY(place_weights(model)); /* counts */
    NIB_TRY(nib_base_place(model));
    NIB_TRY(take_parameters(model));
    for (int i = 0; i < NIB_ARENA_ACTIVATIONS; i++) NIB_TRY(allocate(model, i));
    NIB_TRY(nib_base_place(model));
    NIB_TRY(take_parameters(model));
    return place_weights(model);
}

/* The most room that any linear has use for. */
static int64_t room_of(const nib_model *model)
{
    int64_t room = 0;
    for (int64_t l = 0; l < model->config.layers && model->ops->uses_room; l++) {
        const nib_layer *layer = &model->layers[l];
        const nib_linear *linears[] = {&layer->qkv, &layer->output, &layer->gate_up, &layer->down};
        for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
            if (nib_linear_room(linears[i]) > room) room = nib_linear_room(linears[i]);
    }
    return room;
}

/* An activation with room behind its rows. */
static nib_status take_roomy(nib_model *model, int64_t rows, int64_t columns, nib_matrix *matrix)
{
    const int64_t room = model->activations.room;
    NIB_TRY(take_matrix(&model->arena[NIB_ARENA_ACTIVATIONS], rows, columns + room, model->options.compute, matrix));
    matrix->columns = columns;
    return NIB_OK;
}

/* u of a linear of layer l. Layer 0's may be shared by layers of another rank, so it has the columns of the largest. */
static nib_status place_u(nib_model *model, int64_t l, size_t linear, int64_t T, bool own, nib_matrix *u)
{
    int64_t ranks = 0;
    for (int64_t i = l; i < (l == 0 ? model->config.layers : l + 1); i++) {
        int64_t of_layer = nib_linear_ranks((nib_linear *)((char *)&model->layers[i] + linear));
        if (of_layer > ranks) ranks = of_layer;
    }
    if (own) NIB_TRY(take_matrix(&model->arena[NIB_ARENA_ACTIVATIONS], T, ranks, model->options.compute, u));
    *u = nib_matrix_columns(*u, 0, nib_linear_ranks((nib_linear *)((char *)&model->layers[l] + linear)));
    return NIB_OK;
}

/* The saves of layer l; a buffer that the policy drops is the one of layer 0. */
static nib_status place_saves(nib_model *model, int64_t l, int64_t T)
{
    const nib_model_config *c = &model->config;
    nib_activations *a = &model->activations;
    nib_arena *arena = &model->arena[NIB_ARENA_ACTIVATIONS];
    nib_dtype dtype = model->options.compute;
    nib_layer_saves *saves = &a->layer[l];
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    bool keep = l == 0 || a->backward;
    bool keep_layer = l == 0 || (a->backward && a->recompute != NIB_RECOMPUTE_LAYER);
    bool keep_gate_up = l == 0 || (a->backward && a->recompute == NIB_RECOMPUTE_NONE);
    if (l > 0) *saves = a->layer[0];
    if (keep) NIB_TRY(take_matrix(arena, T, c->hidden, dtype, &saves->residual));
    if (keep_layer) {
        saves->middle = saves->residual; /* without a backward pass the block's output is added in place */
        if (a->backward) NIB_TRY(take_matrix(arena, T, c->hidden, dtype, &saves->middle));
        NIB_TRY(take_matrix(arena, T, q + 2 * kv, dtype, &saves->qkv));
        NIB_TRY(take_roomy(model, T, q, &saves->attention));
        if (a->backward) NIB_TRY(nib_arena_take(arena, c->heads * T, sizeof(float), &saves->lse));
    }
    if (keep_gate_up) NIB_TRY(take_roomy(model, T, 2 * c->feed_forward, &saves->gate_up));
    NIB_TRY(place_u(model, l, offsetof(nib_layer, qkv), T, keep_layer, &saves->u_qkv));
    NIB_TRY(place_u(model, l, offsetof(nib_layer, output), T, keep_layer, &saves->u_output));
    NIB_TRY(place_u(model, l, offsetof(nib_layer, gate_up), T, keep_gate_up, &saves->u_gate_up));
    return place_u(model, l, offsetof(nib_layer, down), T, keep, &saves->u_down);
}

/* The next begins where this one did; *end: where the longest ends. */
static void take_turns(nib_arena *arena, size_t begin, size_t *end)
{
    if (arena->used > *end) *end = arena->used;
    nib_arena_reset(arena, begin);
}

/* What attention uses and nothing after it, what the feed-forward block does, and the last residual, which lives
 * between the last layer's forward and its backward: no two of them at the same time, so all in one place. */
static nib_status place_by_turns(nib_model *model, int64_t T)
{
    const nib_model_config *c = &model->config;
    nib_activations *a = &model->activations;
    nib_arena *arena = &model->arena[NIB_ARENA_ACTIVATIONS];
    nib_dtype dtype = model->options.compute;
    const int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const size_t begin = arena->used;
    size_t end = begin;
    if (c->qk_norm) NIB_TRY(take_matrix(arena, T, q + kv, dtype, &a->qk));
    if (a->backward) NIB_TRY(take_matrix(arena, T, q, dtype, &a->dattention));
    if (a->backward) NIB_TRY(take_roomy(model, T, q + 2 * kv, &a->dqkv));
    take_turns(arena, begin, &end);
    if (a->backward) NIB_TRY(take_matrix(arena, T, c->hidden, dtype, &a->layer[c->layers].residual));
    take_turns(arena, begin, &end);
    NIB_TRY(take_roomy(model, T, c->feed_forward, &a->h));
    if (a->backward) NIB_TRY(take_matrix(arena, T, c->feed_forward, dtype, &a->dh));
    take_turns(arena, begin, &end);
    nib_arena_reset(arena, end);
    return NIB_OK;
}

nib_status nib_model_layout_activations(nib_model *model, int64_t T, int64_t N, nib_recompute recompute, bool backward)
{
    const nib_model_config *c = &model->config;
    nib_activations *a = &model->activations;
    nib_arena *arena = &model->arena[NIB_ARENA_ACTIVATIONS];
    nib_dtype dtype = model->options.compute;
    a->T = T;
    a->N = N;
    a->recompute = recompute;
    a->backward = backward;
    a->room = room_of(model);
    NIB_TRY(nib_arena_take(arena, nib_forward_batch_elements(model, T, N), sizeof(int32_t), &a->batch));
    NIB_TRY(nib_arena_take(arena, N, sizeof(float), &a->nll));
    NIB_TRY(nib_arena_take(arena, T * c->head_dim, sizeof(float), &a->rotary));
    for (int64_t l = 0; l < c->layers; l++) NIB_TRY(place_saves(model, l, T));
    a->layer[c->layers] = (nib_layer_saves){.residual = a->layer[0].residual};
    NIB_TRY(take_roomy(model, T, c->hidden, &a->normed));
    NIB_TRY(take_matrix(arena, T, c->hidden, dtype, &a->delta));
    if (backward) NIB_TRY(take_roomy(model, T, c->hidden, &a->dx));
    return place_by_turns(model, T);
}
