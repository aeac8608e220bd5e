/* Which implementation carries the collectives, and the one of a process on its own. */
#include "collectives.h"
#include "base/log.h"
#include "base/memory.h"
#include "collectives_check.h"
#include "mpi/plugin.h"
#include "plugin_file.h"

#include <string.h>

static nib_status alone_broadcast(nib_collectives *c, void *data, size_t bytes, int root)
{
    (void)c, (void)data, (void)bytes, (void)root;
    return NIB_OK;
}

static nib_status alone_barrier(nib_collectives *c)
{
    (void)c;
    return NIB_OK;
}

static nib_status alone_all_gather(nib_collectives *c, const nib_part *part)
{
    (void)c, (void)part;
    return NIB_OK;
}

static nib_status alone_all_to_all(nib_collectives *c, const nib_part *send, const nib_part *receive)
{
    (void)c;
    if (send[0].bytes > 0) memmove(receive[0].data, send[0].data, send[0].bytes);
    return NIB_OK;
}

static nib_status alone_send(nib_collectives *c, int to, const void *data, size_t bytes)
{
    (void)c, (void)data, (void)bytes;
    return NIB_FAIL(NIB_ERROR_INTERNAL, "a process on its own has no rank %d to send to", to);
}

static nib_status alone_receive(nib_collectives *c, int from, void *data, size_t bytes)
{
    return alone_send(c, from, data, bytes);
}

static void alone_note(nib_collectives *c, const char *text) { (void)c, (void)text; }

static void alone_guard(nib_collectives *c, const nib_guard *guard) { (void)c, (void)guard; }

static nib_status alone_verdict(nib_collectives *c, nib_status otherwise)
{
    (void)c;
    return otherwise;
}

static nib_status alone_close(nib_collectives *c, nib_status status)
{
    (void)status;
    nib_free(c);
    return NIB_OK;
}

nib_status nib_collectives_alone(nib_collectives **collectives)
{
    nib_collectives *c = nib_calloc(1, sizeof *c);
    *collectives = c;
    if (c == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a table of collectives");
    *c = (nib_collectives){.name = "alone",
                           .size = 1,
                           .local_size = 1,
                           .broadcast = alone_broadcast,
                           .barrier = alone_barrier,
                           .all_gather = alone_all_gather,
                           .all_to_all = alone_all_to_all,
                           .send = alone_send,
                           .receive = alone_receive,
                           .note = alone_note,
                           .guard = alone_guard,
                           .verdict = alone_verdict,
                           .close = alone_close};
    return NIB_OK;
}

static nib_status open_mpi(const nib_ranks *ranks, nib_collectives **collectives)
{
    static const char file[] = "libnibble_mpi.so";
    const void *found;
    NIB_TRY(nib_plugin_load(file, NIB_MPI_SYMBOL,
                            "build where Open MPI's headers are installed, or give mpirun -x MASTER_ADDR=HOST -x "
                            "MASTER_PORT=PORT, and ranks talk by TCP",
                            &found));
    const nib_mpi_plugin *plugin = found;
    NIB_TRY(nib_plugin_same_build(file, plugin->build));
    return plugin->open(ranks, collectives);
}

nib_status nib_collectives_open(const nib_ranks *ranks, nib_collectives **collectives)
{
    if (ranks->size == 1) return nib_collectives_alone(collectives);
    NIB_TRY(ranks->mpi ? open_mpi(ranks, collectives) : nib_collectives_tcp(ranks, collectives));
    (*collectives)->local_rank = ranks->local_rank;
    (*collectives)->local_size = ranks->local_size;
    nib_status status = nib_collectives_check(*collectives);
    if (status != NIB_OK) {
        (void)(*collectives)->close(*collectives, status);
        *collectives = NULL;
        return status;
    }
    nib_log("%d ranks over %s, started by %s; their check took %.1f ms", ranks->size, (*collectives)->name,
            ranks->launcher, 1e3 * (*collectives)->check_seconds);
    return NIB_OK;
}

nib_status nib_gather_values(nib_collectives *c, int64_t value, int64_t *all)
{
    nib_part *part = nib_calloc((size_t)c->size, sizeof *part);
    if (part == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a value of %d ranks", c->size);
    for (int r = 0; r < c->size; r++) part[r] = (nib_part){&all[r], sizeof all[r]};
    all[c->rank] = value;
    nib_status status = c->all_gather(c, part);
    nib_free(part);
    return status;
}

nib_status nib_agree_largest(nib_collectives *c, int64_t *value)
{
    int64_t *all = nib_calloc((size_t)c->size, sizeof *all);
    if (all == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a value of %d ranks", c->size);
    nib_status status = nib_gather_values(c, *value, all);
    for (int r = 0; status == NIB_OK && r < c->size; r++)
        if (all[r] > *value) *value = all[r];
    nib_free(all);
    return status;
}
