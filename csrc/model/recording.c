#include "model/recording.h"
#include "base/log.h"

static void forget(nib_recorded_shape *shape, nib_ops *ops)
{
    if (shape->recording != NULL) ops->recording_free(ops, shape->recording);
    *shape = (nib_recorded_shape){0};
}

void nib_recordings_clear(nib_recordings *recordings, nib_ops *ops)
{
    for (int i = 0; i < NIB_RECORDINGS; i++) forget(&recordings->shape[i], ops);
}

static nib_recorded_shape *find(nib_recordings *recordings, nib_step_shape of)
{
    for (int i = 0; i < NIB_RECORDINGS; i++) {
        nib_recorded_shape *shape = &recordings->shape[i];
        if (shape->used > 0 && shape->of.T == of.T && shape->of.N == of.N && shape->of.max_norm == of.max_norm)
            return shape;
    }
    return NULL;
}

static nib_recorded_shape *oldest(nib_recordings *recordings)
{
    nib_recorded_shape *shape = &recordings->shape[0];
    for (int i = 1; i < NIB_RECORDINGS; i++)
        if (recordings->shape[i].used < shape->used) shape = &recordings->shape[i];
    return shape;
}

/* Nothing has been computed by this, whether it fails or not. */
static nib_status record(nib_recorded_shape *shape, nib_ops *ops, nib_status (*step)(void *user), void *user)
{
    NIB_TRY(ops->record_begin(ops));
    nib_status status = step(user);
    NIB_TRY(ops->record_end(ops, &shape->recording));
    if (status == NIB_OK && shape->recording == NULL)
        status = NIB_FAIL(NIB_ERROR_INTERNAL, "an op waits for the device");
    if (status != NIB_OK && shape->recording != NULL) {
        ops->recording_free(ops, shape->recording);
        shape->recording = NULL;
    }
    shape->scratch = ops->scratch->block;
    return status;
}

static void warn(nib_step_shape of)
{
    if (of.T > 0)
        nib_warn("steps of %lld tokens are not recorded: %s", (long long)of.T, nib_error_message());
    else
        nib_warn("the optimizer's steps are not recorded: %s", nib_error_message());
}

nib_status nib_recordings_run(nib_recordings *recordings, nib_ops *ops, nib_step_shape of,
                              nib_status (*step)(void *user), void *user)
{
    if (ops->record_begin == NULL) return step(user);
    nib_recorded_shape *shape = find(recordings, of);
    const bool met = shape != NULL;
    if (!met) {
        shape = oldest(recordings);
        forget(shape, ops);
        *shape = (nib_recorded_shape){.of = of};
    }
    shape->used = ++recordings->clock;
    if (met && shape->scratch == ops->scratch->block && !shape->hopeless) {
        if (shape->recording == NULL && record(shape, ops, step, user) != NIB_OK) {
            warn(of);
            shape->hopeless = true;
        }
        if (shape->recording != NULL) return ops->replay(ops, shape->recording);
    }
    if (shape->recording != NULL) ops->recording_free(ops, shape->recording);
    shape->recording = NULL;
    nib_status status = step(user);
    shape->scratch = ops->scratch->block;
    return status;
}
