/* DoRA (Liu et al., 2024): each adapted weight has a trained vector of magnitudes beside A and B, PEFT's
 * lora_magnitude_vector. What its outputs are scaled by changes with the parameters only, so it is found once for each
 * change of theirs (ops->dora_norm), not in every forward pass. */
#include "model/model_internal.h"

/* visit(part, K) of every part that has magnitudes, whose weights are there; on every rank that divides the base. */
static nib_status each_part(nib_model *model, nib_status (*visit)(nib_ops *ops, const nib_linear_part *part, int64_t K))
{
    if (model->lora == NULL || !nib_lora_config_dora(model->lora)) return NIB_OK;
    for (int64_t l = 0; l < model->config.layers; l++) {
        NIB_TRY(nib_base_use_layer(model, l, l + 1));
        for (int i = 0; i < NIB_MODULES; i++) {
            const nib_module module = nib_model_module(&model->config, i);
            const nib_linear_part *part = nib_layer_part(&model->layers[l], &module);
            if (part->lora.dora.gain != NULL) NIB_TRY(visit(model->ops, part, module.columns));
        }
    }
    return NIB_OK;
}

static nib_status take_norms(nib_ops *ops, const nib_linear_part *part, int64_t K)
{
    const nib_dora *dora = &part->lora.dora;
    const nib_matrix norm = {dora->norm, 1, part->rows, part->rows, NIB_DTYPE_F32};
    nib_matrix magnitude = norm;
    (void)K;
    magnitude.data = (float *)dora->magnitude; /* the model's own parameter */
    return ops->convert(ops, norm, magnitude);
}

nib_status nib_dora_initialize(nib_model *model)
{
    NIB_TRY(each_part(model, take_norms));
    return nib_dora_refresh(model);
}

nib_status nib_dora_refresh(nib_model *model) { return each_part(model, model->ops->dora_norm); }
