#include "optim/optimizer.h"
#include "base/memory.h"

nib_status nib_optimizer_zero(nib_ops *ops, nib_model *model)
{
    nib_parameter *parameter;
    int count = nib_model_parameters(model, &parameter);
    for (int i = 0; i < count; i++)
        NIB_TRY(
            ops->zero(ops, parameter[i].gradient, (size_t)(parameter[i].rows * parameter[i].columns) * sizeof(float)));
    return NIB_OK;
}

static nib_status global_norm(nib_ops *ops, nib_parameter *parameter, int count, double max_norm, nib_clip *clip)
{
    float **gradient = nib_calloc((size_t)count, sizeof *gradient);
    int64_t *length = nib_calloc((size_t)count, sizeof *length);
    nib_status status;
    if (gradient == NULL || length == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the gradient norm of %d parameters", count);
    } else {
        for (int i = 0; i < count; i++) {
            gradient[i] = parameter[i].gradient;
            length[i] = parameter[i].rows * parameter[i].columns;
        }
        status = ops->global_norm(ops, count, gradient, length, max_norm, clip);
    }
    nib_free(gradient);
    nib_free(length);
    return status;
}

nib_status nib_optimizer_step(nib_ops *ops, nib_model *model, const nib_optimizer_options *options, double *norm)
{
    nib_clip *clip = nib_model_clip(model);
    nib_parameter *parameter;
    int count = nib_model_parameters(model, &parameter);
    NIB_TRY(global_norm(ops, parameter, count, options->max_norm, clip));
    NIB_TRY(ops->fetch(ops, norm, &clip->norm, sizeof *norm));
    for (int i = 0; i < count; i++) {
        const nib_parameter *p = &parameter[i];
        if (p->held_rows > 0)
            NIB_TRY(ops->adamw(ops, options->adamw, clip, p->held_rows * p->columns, p->master,
                               p->gradient + p->first_row * p->columns, p->first_moment, p->second_moment));
    }
    return nib_model_refresh(model);
}
