#include "optim/optimizer.h"
#include "base/memory.h"

nib_status nib_optimizer_zero(nib_ops *ops, nib_model *model)
{
    nib_parameter *parameter;
    int count = nib_model_parameters(model, &parameter);
    int64_t elements = 0; /* one array (model.h) */
    for (int i = 0; i < count; i++) elements += parameter[i].rows * parameter[i].columns;
    return ops->zero(ops, parameter[0].gradient, (size_t)elements * sizeof(float));
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

typedef struct {
    nib_ops *ops;
    nib_model *model;
    double max_norm;
} update;

/* All that the device does in a step, once it has the gradients and the factors. */
static nib_status make_update(void *user)
{
    const update *u = user;
    nib_ops *ops = u->ops;
    nib_clip *clip = nib_model_clip(u->model);
    const nib_adamw_factors *factors = nib_model_factors(u->model);
    nib_parameter *parameter;
    int count = nib_model_parameters(u->model, &parameter);
    NIB_TRY(global_norm(ops, parameter, count, u->max_norm, clip));
    for (int i = 0; i < count; i++) {
        const nib_parameter *p = &parameter[i];
        const float *gradient = p->gradient + p->first_row * p->columns;
        const int64_t held = p->held_rows * p->columns;
        if (held == 0) continue;
        NIB_TRY(p->moments_8bit
                    ? ops->adamw_8bit(ops, factors, clip, held, p->master, gradient, p->moments)
                    : ops->adamw(ops, factors, clip, held, p->master, gradient, p->first_moment, p->second_moment));
    }
    return nib_model_refresh(u->model);
}

nib_status nib_optimizer_step(nib_ops *ops, nib_model *model, const nib_optimizer_options *options, double *norm)
{
    nib_adamw missed = options->adamw;
    if (options->ahead) missed.step--;
    const nib_adamw_factors factors[2] = {nib_adamw_factors_of(options->adamw), nib_adamw_factors_of(missed)};
    update u = {ops, model, options->max_norm};
    NIB_TRY(ops->upload(ops, nib_model_factors(model), factors, sizeof factors));
    NIB_TRY(nib_model_update(model, options->max_norm, make_update, &u));
    return ops->fetch(ops, norm, &nib_model_clip(model)->norm, sizeof *norm);
}
