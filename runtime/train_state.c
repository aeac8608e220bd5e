#include "train_state.h"
#include "base/memory.h"

static float *values_of(const nib_parameter *p, nib_checkpoint_kind kind)
{
    return kind == NIB_CHECKPOINT_MASTER  ? p->master
           : kind == NIB_CHECKPOINT_FIRST ? p->first_moment
                                          : p->second_moment;
}

/* Ranks that keep rows of their own; 1: all have all. */
static int parts_of(const nib_training *t)
{
    return t->config->parallel.shard_optimizer && t->shards != NULL ? t->collectives->local_size : 1;
}

static nib_status fetch_own(const nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, float *host)
{
    const size_t bytes = (size_t)(p->held_rows * p->columns) * sizeof *host;
    return bytes == 0 ? NIB_OK : t->ops->download(t->ops, host, values_of(p, kind), bytes);
}

static nib_status fetch(void *context, int i, nib_checkpoint_kind kind, float *host)
{
    nib_training *t = context;
    const nib_parameter *p = &t->parameters[i];
    const int parts = parts_of(t);
    NIB_TRY(fetch_own(t, p, kind, host + p->first_row * p->columns));
    for (int r = 1; r < parts; r++) { /* rank 0's node has the first ranks */
        const int64_t first = p->rows * r / parts, end = p->rows * (r + 1) / parts;
        NIB_TRY(t->collectives->receive(t->collectives, r, host + first * p->columns,
                                        (size_t)((end - first) * p->columns) * sizeof *host));
    }
    return NIB_OK;
}

/* values of all rows: those that are kept here. */
static nib_status keep_own(const nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, const float *values)
{
    const size_t bytes = (size_t)(p->held_rows * p->columns) * sizeof *values;
    return bytes == 0 ? NIB_OK : t->ops->upload(t->ops, values_of(p, kind), values + p->first_row * p->columns, bytes);
}

static nib_status store(void *context, int i, nib_checkpoint_kind kind, const float *host)
{
    nib_training *t = context;
    const nib_parameter *p = &t->parameters[i];
    NIB_TRY(t->collectives->broadcast(t->collectives, (void *)(uintptr_t)host,
                                      (size_t)(p->rows * p->columns) * sizeof *host, 0));
    return keep_own(t, p, kind, host);
}

nib_checkpoint_carrier nib_train_state_carrier(nib_training *t) { return (nib_checkpoint_carrier){t, fetch, store}; }

/* Calls carry for every value, in the order of a checkpoint, with room for the largest. */
static nib_status for_all(nib_training *t, nib_status (*carry)(nib_training *t, const nib_parameter *p,
                                                               nib_checkpoint_kind kind, float *host))
{
    int64_t most = 0;
    nib_status status = NIB_OK;
    for (int i = 0; i < t->parameter_count; i++)
        if (t->parameters[i].rows * t->parameters[i].columns > most)
            most = t->parameters[i].rows * t->parameters[i].columns;
    float *host = nib_calloc((size_t)most, sizeof *host);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to hand a checkpoint to all ranks");
    for (int i = 0; i < NIB_CHECKPOINT_KINDS * t->parameter_count && status == NIB_OK; i++)
        status =
            carry(t, &t->parameters[i / NIB_CHECKPOINT_KINDS], (nib_checkpoint_kind)(i % NIB_CHECKPOINT_KINDS), host);
    nib_free(host);
    return status;
}

static nib_status send(nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, float *host)
{
    NIB_TRY(fetch_own(t, p, kind, host));
    return t->collectives->send(t->collectives, 0, host, (size_t)(p->held_rows * p->columns) * sizeof *host);
}

nib_status nib_train_state_send(nib_training *t)
{
    return t->collectives->rank < parts_of(t) ? for_all(t, send) : NIB_OK;
}

static nib_status receive(nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, float *host)
{
    NIB_TRY(t->collectives->broadcast(t->collectives, host, (size_t)(p->rows * p->columns) * sizeof *host, 0));
    return keep_own(t, p, kind, host);
}

nib_status nib_train_state_receive(nib_training *t) { return for_all(t, receive); }
