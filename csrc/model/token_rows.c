/* Rows of the embedding that are trained as a whole: tokens whose rows the base was never trained on, which no adapter
 * on the linears can make up for. The rules are those of PEFT's trainable_token_indices (huggingface/peft,
 * tuners/trainable_tokens): a row of the adapter takes the place of the embedding's, and of a tied head's too.
 *
 * The rows are written into the table that the forward pass reads, after every change of theirs, so that it needs no
 * case for them. In fp32 that table is fp32; in bf16 they are rounded as PEFT rounds them to the table's type.
 */
#include "model/model_internal.h"

static nib_matrix row_of(float *rows, int64_t index, int64_t columns)
{
    return (nib_matrix){rows + index * columns, 1, columns, columns, NIB_DTYPE_F32};
}

nib_status nib_token_rows_find(nib_model *model)
{
    nib_token_rows *r = &model->token_rows;
    int64_t V = model->config.vocabulary;
    r->count = model->lora == NULL ? 0 : nib_lora_config_tokens(model->lora, &r->token);
    if (r->count == 0 || r->of_vocabulary != NULL) return NIB_OK;
    r->of_vocabulary = nib_pool_alloc(&model->pool, (size_t)V * sizeof *r->of_vocabulary);
    if (r->of_vocabulary == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld tokens", (long long)V);
    for (int64_t v = 0; v < V; v++) r->of_vocabulary[v] = -1;
    for (int64_t i = 0; i < r->count; i++) {
        if (r->token[i] >= V)
            return NIB_FAIL(NIB_ERROR_DATA, "trainable_token_indices: token %d, the model has %lld", r->token[i],
                            (long long)V);
        if (r->of_vocabulary[r->token[i]] >= 0)
            return NIB_FAIL(NIB_ERROR_DATA, "trainable_token_indices: token %d is there twice", r->token[i]);
        r->of_vocabulary[r->token[i]] = (int32_t)i;
    }
    return NIB_OK;
}

nib_status nib_token_rows_initialize(nib_model *model, bool fresh)
{
    const nib_token_rows *r = &model->token_rows;
    nib_ops *ops = model->ops;
    int64_t C = model->config.hidden;
    if (r->count == 0) return NIB_OK;
    NIB_TRY(ops->upload(ops, r->device_token, r->token, (size_t)r->count * sizeof *r->token));
    for (int64_t i = 0; i < r->count && fresh; i++)
        NIB_TRY(ops->convert(ops, nib_matrix_rows(model->embedding, r->token[i], 1), row_of(r->master, i, C)));
    return NIB_OK;
}

nib_status nib_token_rows_refresh(nib_model *model)
{
    const nib_token_rows *r = &model->token_rows;
    int64_t C = model->config.hidden;
    for (int64_t i = 0; i < r->count; i++)
        NIB_TRY(model->ops->convert(model->ops, row_of(r->master, i, C),
                                    nib_matrix_rows(model->embedding, r->token[i], 1)));
    return NIB_OK;
}

void nib_token_rows_of(const nib_model *model, const nib_micro_batch *batch, int64_t tokens, int32_t *row)
{
    for (int64_t t = 0; t < tokens; t++) row[t] = t < batch->T ? model->token_rows.of_vocabulary[batch->id[t]] : -1;
}

nib_status nib_token_rows_backward_head(nib_model *model, nib_targets targets, float gradient_scale)
{
    const nib_token_rows *r = &model->token_rows;
    const nib_activations *a = &model->activations;
    if (r->count == 0 || !model->config.tied_head) return NIB_OK;
    return model->ops->head_rows_backward(model->ops, a->normed, model->head, targets, gradient_scale, a->nll, r->count,
                                          r->device_token, r->gradient);
}

nib_status nib_token_rows_backward(nib_model *model)
{
    const nib_token_rows *r = &model->token_rows;
    const nib_activations *a = &model->activations;
    if (r->count == 0) return NIB_OK;
    return model->ops->embedding_backward(model->ops, a->token_row, a->dx, 1.0f, r->gradient);
}
