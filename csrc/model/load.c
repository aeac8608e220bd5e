/* Reads the base weights into the places that layout.c chose. */
#include "base/memory.h"
#include "model/model_internal.h"
#include "model/random_weights.h"
#include "model/weight_hash.h"

#include <stdio.h>
#include <string.h>

#define PIECE_ELEMENTS ((int64_t)4 * 1024 * 1024) /* values converted at a time */

/* Rows on their way into a place: as bf16 values, or as fp32 ones, which a place of that type takes. */
typedef struct {
    nib_bf16 *narrow;
    float *wide;
} row_values;

static nib_status load_piece(nib_model *model, const char *name, int64_t first, nib_matrix to, row_values in)
{
    const int64_t n = to.rows * to.columns;
    if (in.narrow == NULL) {
        NIB_TRY(nib_weight_source_read_wide(&model->source, name, first, to.rows, to.columns, in.wide));
    } else {
        NIB_TRY(nib_weight_source_read(&model->source, name, first, to.rows, to.columns, in.narrow));
        for (int64_t i = 0; in.wide != NULL && i < n; i++) in.wide[i] = nib_bf16_to_float(in.narrow[i]);
    }
    if (in.wide != NULL) return model->ops->upload(model->ops, to.data, in.wide, (size_t)n * sizeof *in.wide);
    return model->ops->upload(model->ops, to.data, in.narrow, (size_t)n * sizeof *in.narrow);
}

/* A dense matrix from row `first` on, piece by piece. */
static nib_status load_rows(nib_model *model, const char *name, int64_t first, nib_matrix to)
{
    if (to.rows == 0) return NIB_OK;
    const bool as_wide = to.dtype == NIB_DTYPE_F32, from_wide = nib_weight_source_is_wide(&model->source, name);
    int64_t step = PIECE_ELEMENTS / to.columns > 0 ? PIECE_ELEMENTS / to.columns : 1;
    if (step > to.rows) step = to.rows;
    const size_t elements = (size_t)(step * to.columns);
    row_values in = {0};
    nib_status status = NIB_OK;
    if (as_wide) in.wide = nib_calloc(elements, sizeof *in.wide);
    if (!(as_wide && from_wide)) in.narrow = nib_calloc(elements, sizeof *in.narrow);
    if ((as_wide && in.wide == NULL) || (!(as_wide && from_wide) && in.narrow == NULL)) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to read tensor \"%s\"", name);
        goto done;
    }
    for (int64_t row = 0; row < to.rows; row += step) {
        const nib_matrix rows = nib_matrix_rows(to, row, to.rows - row < step ? to.rows - row : step);
        NIB_TRY_GOTO(load_piece(model, name, first + row, rows, in), done);
    }
    nib_weight_source_release(&model->source, name);
done:
    nib_free(in.narrow);
    nib_free(in.wide);
    return status;
}

static nib_status load_matrix(nib_model *model, const char *name, nib_matrix to)
{
    return load_rows(model, name, 0, to);
}

static nib_status load_vector(nib_model *model, const char *name, float *to, int64_t n)
{
    return load_matrix(model, name, (nib_matrix){to, 1, n, n, NIB_DTYPE_F32});
}

static nib_status check_finite(const nib_model *model, const char *name, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i + 4 <= count; i += 4) {
        uint32_t bits;
        memcpy(&bits, bytes + i, 4);
        if ((bits & 0x7f800000u) == 0x7f800000u)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: scales of tensor \"%s\" hold NaN or Inf; the checkpoint is damaged",
                            model->source.path, name);
    }
    return NIB_OK;
}

/* The bytes of a tensor go up as they are, those that this rank keeps; the others are not read. */
static nib_status load_bytes(nib_model *model, int64_t l, const char *name, const void *to, const nib_tensor_view *from)
{
    const nib_base_piece piece = nib_base_piece_of(model, l, to, (size_t)from->bytes);
    const uint8_t *bytes = from->data + piece.first;
    if (from->dtype == NIB_DTYPE_F32) NIB_TRY(check_finite(model, name, bytes, piece.count));
    NIB_TRY(model->ops->upload(model->ops, piece.place, bytes, piece.count));
    nib_file_release(from->file, from->offset + piece.first, piece.count);
    return NIB_OK;
}

static nib_status load_nf4(nib_model *model, int64_t l, const char *name, const nib_nf4 *to)
{
    nib_bnb_nf4 from;
    NIB_TRY(nib_bnb_nf4_find(model->source.set, name, &from));
    if (memcmp(from.map->data, nib_nf4_values, sizeof nib_nf4_values) != 0)
        return NIB_FAIL(
            NIB_ERROR_DATA,
            "%s: quant_map of tensor \"%s\" differs from the 16 values of NF4; the checkpoint is damaged, or "
            "quantised to another type",
            model->source.path, name);
    NIB_TRY(load_bytes(model, l, name, to->codes, from.codes));
    if (from.nested_absmax == NULL) return load_bytes(model, l, name, to->absmax, from.absmax);
    if (memcmp(from.nested_map->data, nib_nf4_dynamic_map, sizeof nib_nf4_dynamic_map) != 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: nested_quant_map of tensor \"%s\" is not bitsandbytes' dynamic map",
                        model->source.path, name);
    NIB_TRY(load_bytes(model, l, name, to->absmax_codes, from.absmax));
    return load_bytes(model, l, name, to->nested_absmax, from.nested_absmax);
}

static nib_status upload_random(nib_ops *ops, uint8_t *to, int64_t bytes)
{
    nib_status status = NIB_OK;
    uint8_t *codes = nib_calloc(PIECE_ELEMENTS, 1);
    if (codes == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to make up weights");
    nib_random_codes(codes, PIECE_ELEMENTS);
    for (int64_t at = 0; at < bytes && status == NIB_OK; at += PIECE_ELEMENTS)
        status = ops->upload(ops, to + at, codes, (size_t)(bytes - at < PIECE_ELEMENTS ? bytes - at : PIECE_ELEMENTS));
    nib_free(codes);
    return status;
}

static nib_status load_random_nf4(nib_ops *ops, int64_t values, nib_nf4 *to)
{
    int64_t blocks = (values + 63) / 64, nested = (blocks + 255) / 256;
    float *scale = nib_calloc((size_t)nested, sizeof *scale);
    nib_status status;
    if (scale == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to make up weights");
    for (int64_t i = 0; i < nested; i++) scale[i] = NIB_RANDOM_NESTED_ABSMAX;
    to->nested_offset = NIB_RANDOM_NESTED_OFFSET;
    NIB_TRY_GOTO(upload_random(ops, (uint8_t *)to->codes, (values + 1) / 2), done);
    NIB_TRY_GOTO(upload_random(ops, (uint8_t *)to->absmax_codes, blocks), done);
    status = ops->upload(ops, (void *)to->nested_absmax, scale, (size_t)nested * sizeof *scale);
done:
    nib_free(scale);
    return status;
}

/* In full fine-tuning the master is loaded; the copy that the forward pass reads is made by nib_model_refresh. */
static nib_status load_parameters(nib_model *model)
{
    for (size_t i = 0; i < model->parameter_count; i++) {
        const nib_parameter *p = &model->parameters[i];
        NIB_TRY(load_rows(model, p->name, p->first_row,
                          (nib_matrix){p->master, p->held_rows, p->columns, p->columns, NIB_DTYPE_F32}));
    }
    return NIB_OK;
}

static nib_status load_layer(nib_model *model, int64_t l)
{
    nib_layer *layer = &model->layers[l];
    int64_t C = model->config.hidden;
    char module_name[128], name[160];
    snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)l);
    NIB_TRY(load_vector(model, name, layer->attention_norm, C));
    snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight", (long long)l);
    NIB_TRY(load_vector(model, name, layer->ffn_norm, C));
    if (model->config.qk_norm) {
        snprintf(name, sizeof name, "model.layers.%lld.self_attn.q_norm.weight", (long long)l);
        NIB_TRY(load_vector(model, name, layer->q_norm, model->config.head_dim));
        snprintf(name, sizeof name, "model.layers.%lld.self_attn.k_norm.weight", (long long)l);
        NIB_TRY(load_vector(model, name, layer->k_norm, model->config.head_dim));
    }
    for (int i = 0; i < NIB_MODULES; i++) {
        nib_module module = nib_model_module(&model->config, i);
        nib_linear_part *part = nib_layer_part(layer, &module);
        nib_module_name(module_name, l, &module);
        snprintf(name, sizeof name, "%s.weight", module_name);
        if (part->nf4.codes == NULL)
            NIB_TRY(load_matrix(model, name, part->dense));
        else if (model->source.random)
            NIB_TRY(load_random_nf4(model->ops, module.rows * module.columns, &part->nf4));
        else
            NIB_TRY(load_nf4(model, l, name, &part->nf4));
        snprintf(name, sizeof name, "%s.bias", module_name);
        if (module.bias) NIB_TRY(load_vector(model, name, (float *)part->bias, part->rows));
    }
    return NIB_OK;
}

static nib_status load_frequencies(nib_model *model)
{
    float frequency[NIB_MAX_HEAD_DIM / 2];
    nib_rope_frequencies(&model->config, frequency);
    size_t bytes = (size_t)(model->config.head_dim / 2) * sizeof(float);
    return model->ops->upload(model->ops, model->frequency, frequency, bytes);
}

nib_status nib_model_load_streamed(nib_model *model, int64_t l)
{
    if (model->streamed == l) return NIB_OK;
    model->streamed = -1; /* unless all of it is read */
    NIB_TRY(load_layer(model, l));
    model->streamed = l;
    return NIB_OK;
}

nib_status nib_model_load(nib_model *model)
{
    const nib_model_config *c = &model->config;
    nib_ops *ops = model->ops;
    const nib_shards *among = model->options.full ? model->options.shard_optimizer : model->options.shard_base;
    if (model->options.train) NIB_TRY(nib_weight_hash(&model->source, among, model->base_hash));
    NIB_TRY(load_frequencies(model));
    if (model->nested_map != NULL)
        NIB_TRY(ops->upload(ops, model->nested_map, nib_nf4_dynamic_map, sizeof nib_nf4_dynamic_map));
    if (model->options.full) return load_parameters(model);
    NIB_TRY(load_matrix(model, "model.embed_tokens.weight", model->embedding));
    if (model->shards.among != NULL) /* what lies between and behind tensors in a record is sent about too */
        NIB_TRY(ops->zero(ops, model->shards.parts, (size_t)c->layers * model->shards.offset[1]));
    model->streamed = -1;
    for (int64_t l = 0; l < c->layers && !model->options.stream_layers; l++) NIB_TRY(load_layer(model, l));
    NIB_TRY(load_vector(model, "model.norm.weight", model->final_norm, c->hidden));
    if (!c->tied_head) NIB_TRY(load_matrix(model, "lm_head.weight", model->head));
    return NIB_OK;
}
