#include "model/model.h"
#include "base/memory.h"
#include "model/model_internal.h"
#include "model/nf4_cache.h"

#include <string.h>

static const char *const arena_names[NIB_ARENAS] = {"base weights", "gathered layers", "adapter",
                                                    "gradients",    "optimizer",       "activations"};

static nib_status check_options(const nib_model *model)
{
    const nib_model_options *o = &model->options;
    if (o->full && (o->quantization != NIB_QUANT_NONE || model->lora != NULL))
        return NIB_FAIL(NIB_ERROR_CONFIG, "full fine-tuning needs \"quantization\": \"none\" and \"lora\": null");
    if (o->train && !o->full && model->lora == NULL)
        return NIB_FAIL(NIB_ERROR_CONFIG, "nothing to train: \"lora\" is null and \"quantization\" is not \"none\"");
    if (model->ops->bf16_only && o->compute != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_CONFIG, "the GPU computes in bf16; \"compute\" \"fp32\" needs the device \"cpu\"");
    if (o->fp8 && (o->quantization != NIB_QUANT_NF4 || o->compute != NIB_DTYPE_BF16))
        return NIB_FAIL(NIB_ERROR_CONFIG, "\"compute\" \"fp8\" is for an NF4 base: it needs \"quantization\" \"nf4\"");
    if (o->fp8 && model->lora != NULL && nib_lora_config_dora(model->lora))
        return NIB_FAIL(NIB_ERROR_CONFIG, "\"compute\" \"fp8\" has no DoRA: it needs \"use_dora\" false, or \"bf16\"");
    if (o->fp8 && !model->ops->fp8)
        return NIB_FAIL(NIB_ERROR_CONFIG,
                        "\"compute\" \"fp8\" needs a GPU of sm_89 or later (RTX 40, L40S, H100), which has products in "
                        "8-bit floating point; this is %s. \"bf16\" computes everywhere",
                        model->ops->device);
    if (o->quantization == NIB_QUANT_NONE && model->source.quantized)
        return NIB_FAIL(NIB_ERROR_CONFIG, "%s: the checkpoint is NF4; \"quantization\" \"none\" needs 16-bit weights",
                        o->path);
    if (o->shard_optimizer != NULL && !o->full)
        return NIB_FAIL(NIB_ERROR_CONFIG, "ranks divide the optimizer's state of a full fine-tune only");
    if (o->shard_base != NULL && o->quantization != NIB_QUANT_NF4)
        return NIB_FAIL(NIB_ERROR_CONFIG, "a base that ranks divide has to be NF4: \"quantization\" is \"none\"");
    return NIB_OK;
}

/* The adapter's rules: of the folder that is loaded, or of the options. */
static nib_status read_lora(nib_model *model)
{
    const nib_model_options *o = &model->options;
    const char *folder = o->train ? o->lora.init_adapter : o->adapter;
    if (folder != NULL) {
        NIB_TRY(nib_lora_config_read(folder, &model->lora));
        if (o->train) nib_lora_config_set_dropout(model->lora, o->lora.dropout);
        return NIB_OK;
    }
    return o->train && o->lora.rank > 0 ? nib_lora_config_from_options(&o->lora, &model->lora) : NIB_OK;
}

static nib_status begin(nib_ops *ops, const nib_model_options *options, nib_model **out)
{
    nib_model *model = nib_calloc(1, sizeof *model);
    *out = model;
    if (model == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open it", options->path);
    model->ops = ops;
    model->options = *options;
    model->shards.among = options->shard_base;
    for (int i = 0; i < NIB_ARENAS; i++) model->arena[i].name = arena_names[i];
    if (options->full) model->arena[NIB_ARENA_ADAPTER].name = "trained weights";
    NIB_TRY(options->random ? nib_weight_source_open_random(options->path, &model->source)
                            : nib_weight_source_open(options->path, &model->source));
    NIB_TRY(read_lora(model));
    return check_options(model);
}

/* Layers' saves are host memory that outlives a change of the reserved sizes. */
static nib_status make_saves(nib_model *model)
{
    size_t bytes = ((size_t)model->config.layers + 1) * sizeof *model->activations.layer;
    model->activations.layer = nib_pool_alloc(&model->pool, bytes);
    return model->activations.layer != NULL
               ? NIB_OK
               : NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld layers", (long long)model->config.layers);
}

/* No gradient, no moment. */
static nib_status clear_training(nib_model *model)
{
    nib_ops *ops = model->ops;
    const size_t bytes = sizeof nib_nf4_dynamic_map;
    for (int i = NIB_ARENA_GRADIENTS; i <= NIB_ARENA_OPTIMIZER; i++)
        NIB_TRY(ops->zero(ops, model->arena[i].block, model->arena[i].capacity));
    if (model->moment_maps == NULL) return NIB_OK;
    NIB_TRY(ops->upload(ops, model->moment_maps, nib_nf4_dynamic_map, bytes));
    return ops->upload(ops, model->moment_maps + 256, nib_dynamic_map_unsigned, bytes);
}

static nib_status open_model(nib_model *model)
{
    const nib_model_options *o = &model->options;
    if (o->quantization == NIB_QUANT_NF4 && !model->source.quantized && !o->random && !model->ops->rehearsal)
        NIB_TRY(nib_nf4_cache_open(model->ops, o->cache_folder, o->shard_base, &model->source));
    model->config = model->source.config;
    NIB_TRY(nib_model_layout(model));
    NIB_TRY(make_saves(model));
    if (model->ops->rehearsal) {
        nib_weight_source_close(&model->source);
        return nib_dora_refresh(model); /* takes scratch */
    }
    NIB_TRY(nib_model_load(model));
    if (!o->stream_layers) nib_weight_source_close(&model->source);
    if (model->lora != NULL) {
        const char *folder = o->train ? o->lora.init_adapter : o->adapter;
        NIB_TRY(folder != NULL ? nib_adapter_load(model, folder) : nib_adapter_initialize(model));
        NIB_TRY(nib_token_rows_initialize(model, folder == NULL));
    }
    NIB_TRY(clear_training(model));
    NIB_TRY(nib_model_refresh(model));
    const bool fresh = model->lora != NULL && o->train && o->lora.init_adapter == NULL;
    if (fresh) NIB_TRY(nib_dora_initialize(model));
    return model->ops->synchronize(model->ops); /* what it gathers from the other ranks has come */
}

nib_status nib_model_open(nib_ops *ops, const nib_model_options *options, nib_model **out)
{
    nib_model *model;
    *out = NULL;
    nib_status status = begin(ops, options, &model);
    if (status == NIB_OK) status = open_model(model);
    if (status == NIB_OK)
        *out = model;
    else
        nib_model_close(model);
    return status;
}

void nib_model_close(nib_model *model)
{
    if (model == NULL) return;
    (void)nib_base_settle(model);
    nib_recordings_clear(&model->recordings, model->ops);
    for (int i = 0; i < NIB_ARENAS; i++)
        if (model->arena[i].block != NULL)
            model->ops->release(model->ops, model->arena[i].block, model->arena[i].capacity);
    nib_weight_source_close(&model->source);
    nib_lora_config_free(model->lora);
    nib_free(model->parameters);
    nib_pool_free(&model->pool);
    nib_free(model);
}

const nib_model_config *nib_model_get_config(const nib_model *model) { return &model->config; }

int nib_model_parameters(const nib_model *model, nib_parameter **parameters)
{
    *parameters = model->parameters;
    return (int)model->parameter_count;
}

nib_clip *nib_model_clip(nib_model *model) { return model->clip; }
nib_adamw_factors *nib_model_factors(nib_model *model) { return model->factors; }

nib_status nib_model_update(nib_model *model, double max_norm, nib_status (*update)(void *user), void *user)
{
    /* What ranks gather comes over other queues. */
    if (model->shards.among != NULL || model->options.shard_optimizer != NULL) return update(user);
    return nib_recordings_run(&model->recordings, model->ops, (nib_step_shape){.max_norm = max_norm}, update, user);
}

/* The rows of every rank's masters, of whose copies this rank has made its own. */
static nib_status gather_copy(nib_model *model, const nib_parameter *p)
{
    const nib_shards *among = model->options.shard_optimizer;
    size_t *offset = nib_calloc((size_t)among->size + 1, sizeof *offset);
    if (offset == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the parts of %d ranks", among->size);
    const size_t row = (size_t)(p->columns * nib_dtype_block_bytes(p->copy.dtype));
    for (int r = 0; r <= among->size; r++)
        offset[r] = (size_t)nib_parameter_row_of_rank(p->rows, p->columns, among->size, r) * row;
    nib_status status =
        among->begin(among->context, p->name, (char *)p->copy.data + offset[among->rank], p->copy.data, offset);
    if (status == NIB_OK) status = among->end(among->context);
    nib_free(offset);
    return status;
}

nib_status nib_model_refresh(nib_model *model)
{
    const bool divided = model->options.shard_optimizer != NULL && !model->ops->rehearsal;
    for (size_t i = 0; i < model->parameter_count; i++) {
        const nib_parameter *p = &model->parameters[i];
        nib_matrix master = {p->master, p->held_rows, p->columns, p->columns, NIB_DTYPE_F32};
        if (p->copy.data != p->master && p->held_rows > 0)
            NIB_TRY(model->ops->convert(model->ops, master, nib_matrix_rows(p->copy, p->first_row, p->held_rows)));
        if (divided) NIB_TRY(gather_copy(model, p));
    }
    NIB_TRY(nib_dora_refresh(model));
    return nib_token_rows_refresh(model);
}

const char *nib_model_base_hash(const nib_model *model) { return model->base_hash; }

nib_status nib_model_reserve(nib_model *model, int64_t T, int64_t N, nib_recompute recompute, bool backward)
{
    nib_ops *ops = model->ops;
    nib_arena *arena = &model->arena[NIB_ARENA_ACTIVATIONS];
    void *block;
    nib_recordings_clear(&model->recordings, ops);
    if (backward) {
        T = nib_forward_filled(model, T);
        N = nib_forward_filled(model, N);
    }
    if (arena->block != NULL) ops->release(ops, arena->block, arena->capacity);
    *arena = (nib_arena){.name = arena->name};
    NIB_TRY(nib_model_layout_activations(model, T, N, recompute, backward)); /* counts */
    NIB_TRY(ops->allocate(ops, arena->name, arena->used, &block));
    *arena = (nib_arena){.name = arena->name, .block = block, .capacity = arena->used};
    return nib_model_layout_activations(model, T, N, recompute, backward);
}

int nib_model_memory(const nib_model *model, const nib_memory_class **classes)
{
    nib_memory_class *memory = ((nib_model *)model)->memory; /* a cache of the arenas' state */
    int count = 0;
    for (int i = 0; i < NIB_ARENAS; i++)
        if (model->arena[i].used > 0) memory[count++] = (nib_memory_class){model->arena[i].name, model->arena[i].used};
    memory[count++] = (nib_memory_class){model->ops->scratch->name, model->ops->scratch->peak};
    *classes = memory;
    return count;
}
