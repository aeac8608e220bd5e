#include "train_state.h"
#include "base/memory.h"

nib_checkpoint_tensor nib_train_state_tensor(const nib_parameter *p)
{
    return (nib_checkpoint_tensor){.name = p->name,
                                   .rows = p->rows,
                                   .columns = p->columns,
                                   .moments_8bit = p->moments_8bit,
                                   .values = {p->master, p->moments_8bit ? (void *)p->moments.first : p->first_moment,
                                              p->moments_8bit ? (void *)p->moments.second : p->second_moment,
                                              p->moments.first_absmax, p->moments.second_absmax}};
}

size_t nib_train_state_bytes(const nib_parameter *p)
{
    size_t bytes = 0;
    for (int kind = 0; kind < NIB_CHECKPOINT_KINDS; kind++)
        bytes += nib_checkpoint_bytes(p->moments_8bit, (nib_checkpoint_kind)kind, p->rows * p->columns);
    return bytes;
}

/* Ranks that keep rows of their own; 1: all have all. */
static int parts_of(const nib_training *t)
{
    return t->config->parallel.shard_optimizer && t->shards != NULL ? t->collectives->local_size : 1;
}

/* Where the rows from `row` on begin among all of a kind, in bytes. */
static size_t begin_of(const nib_parameter *p, nib_checkpoint_kind kind, int64_t row)
{
    return nib_checkpoint_bytes(p->moments_8bit, kind, row * p->columns);
}

/* The rows that are kept here: what lies before them, and how much they are. */
static size_t own_range(const nib_parameter *p, nib_checkpoint_kind kind, size_t *bytes)
{
    const size_t before = begin_of(p, kind, p->first_row);
    *bytes = begin_of(p, kind, p->first_row + p->held_rows) - before;
    return before;
}

/* host: of the rows that are kept here. */
static nib_status fetch_own(const nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, void *host)
{
    size_t bytes;
    (void)own_range(p, kind, &bytes);
    return bytes == 0 ? NIB_OK : t->ops->download(t->ops, host, nib_train_state_tensor(p).values[kind], bytes);
}

static nib_status fetch(void *context, int i, nib_checkpoint_kind kind, void *host)
{
    nib_training *t = context;
    const nib_parameter *p = &t->parameters[i];
    const int parts = parts_of(t);
    size_t bytes;
    NIB_TRY(fetch_own(t, p, kind, (char *)host + own_range(p, kind, &bytes)));
    for (int r = 1; r < parts; r++) { /* rank 0's node has the first ranks */
        const size_t first = begin_of(p, kind, nib_parameter_row_of_rank(p->rows, p->columns, parts, r));
        const size_t end = begin_of(p, kind, nib_parameter_row_of_rank(p->rows, p->columns, parts, r + 1));
        NIB_TRY(t->collectives->receive(t->collectives, r, (char *)host + first, end - first));
    }
    return NIB_OK;
}

/* host: of all rows; those that are kept here. */
static nib_status keep_own(const nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, const void *host)
{
    size_t bytes;
    const size_t before = own_range(p, kind, &bytes);
    if (bytes == 0) return NIB_OK;
    return t->ops->upload(t->ops, nib_train_state_tensor(p).values[kind], (const char *)host + before, bytes);
}

static nib_status store(void *context, int i, nib_checkpoint_kind kind, const void *host)
{
    nib_training *t = context;
    const nib_parameter *p = &t->parameters[i];
    NIB_TRY(t->collectives->broadcast(t->collectives, (void *)(uintptr_t)host, begin_of(p, kind, p->rows), 0));
    return keep_own(t, p, kind, host);
}

nib_checkpoint_carrier nib_train_state_carrier(nib_training *t) { return (nib_checkpoint_carrier){t, fetch, store}; }

/* Calls carry for everything that there is, in the order of a checkpoint, with room for the largest. */
static nib_status for_all(nib_training *t, nib_status (*carry)(nib_training *t, const nib_parameter *p,
                                                               nib_checkpoint_kind kind, void *host))
{
    size_t most = 0;
    nib_status status = NIB_OK;
    for (int i = 0; i < t->parameter_count; i++) {
        const size_t master = begin_of(&t->parameters[i], NIB_CHECKPOINT_MASTER, t->parameters[i].rows);
        if (master > most) most = master;
    }
    void *host = nib_calloc(most, 1);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to hand a checkpoint to all ranks");
    for (int i = 0; i < NIB_CHECKPOINT_KINDS * t->parameter_count && status == NIB_OK; i++) {
        const nib_parameter *p = &t->parameters[i / NIB_CHECKPOINT_KINDS];
        const nib_checkpoint_kind kind = (nib_checkpoint_kind)(i % NIB_CHECKPOINT_KINDS);
        if (begin_of(p, kind, p->rows) > 0) status = carry(t, p, kind, host);
    }
    nib_free(host);
    return status;
}

static nib_status send(nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, void *host)
{
    size_t bytes;
    (void)own_range(p, kind, &bytes);
    NIB_TRY(fetch_own(t, p, kind, host));
    return t->collectives->send(t->collectives, 0, host, bytes);
}

nib_status nib_train_state_send(nib_training *t)
{
    return t->collectives->rank < parts_of(t) ? for_all(t, send) : NIB_OK;
}

static nib_status receive(nib_training *t, const nib_parameter *p, nib_checkpoint_kind kind, void *host)
{
    NIB_TRY(t->collectives->broadcast(t->collectives, host, begin_of(p, kind, p->rows), 0));
    return keep_own(t, p, kind, host);
}

nib_status nib_train_state_receive(nib_training *t) { return for_all(t, receive); }
