#include "node_shards.h"
#include "base/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define PIECE_BYTES ((size_t)1 << 28) /* of a rank's part, sent at a time */

struct nib_node_shards {
    nib_shards table;
    nib_collectives *c;
    int first;                /* rank that is the node's first */
    nib_part *send, *receive; /* [c->size] */
    char at[64], what[64];
    /* Between devices: their queues, and moves instead of the thread. */
    nib_ops *ops;
    nib_device_exchange *exchange; /* NULL: the backend's memory is the host's */
    nib_move *move;                /* [2 * table.size] */
    bool running;                  /* the thread below, with what it was given and has found */
    pthread_t thread;
    const char *part;
    char *whole;
    const size_t *offset;
    nib_status status;
    char message[2048];
};

/* Bytes at .. at + PIECE_BYTES of every rank's part. */
static nib_status gather_piece(nib_node_shards *s, size_t at)
{
    for (int i = 0; i < s->table.size; i++) {
        const size_t own = s->offset[s->table.rank + 1] - s->offset[s->table.rank];
        const size_t theirs = s->offset[i + 1] - s->offset[i];
        const size_t out = own > at ? own - at : 0, in = theirs > at ? theirs - at : 0;
        s->send[s->first + i] = (nib_part){(char *)(uintptr_t)s->part + at, out < PIECE_BYTES ? out : PIECE_BYTES};
        s->receive[s->first + i] = (nib_part){s->whole + s->offset[i] + at, in < PIECE_BYTES ? in : PIECE_BYTES};
    }
    return s->c->all_to_all(s->c, s->send, s->receive);
}

static void note(nib_node_shards *s)
{
    char text[160];
    snprintf(text, sizeof text, "%s, %s", s->at, s->what);
    s->c->note(s->c, text);
}

static nib_status gather(nib_node_shards *s)
{
    size_t longest = 0;
    note(s);
    for (int i = 0; i < s->table.size; i++)
        if (s->offset[i + 1] - s->offset[i] > longest) longest = s->offset[i + 1] - s->offset[i];
    for (size_t at = 0; at < longest; at += PIECE_BYTES) {
        nib_status status = gather_piece(s, at);
        if (status != NIB_OK) return nib_error_context(status, "gathering %s", s->what);
    }
    return NIB_OK;
}

static void *gather_beside(void *argument)
{
    nib_node_shards *s = argument;
    s->status = gather(s);
    if (s->status != NIB_OK) snprintf(s->message, sizeof s->message, "%s", nib_error_message());
    return NULL;
}

static nib_status begin(void *context, const char *what, const void *part, void *whole, const size_t *offset)
{
    nib_node_shards *s = context;
    snprintf(s->what, sizeof s->what, "%s", what);
    s->part = part;
    s->whole = whole;
    s->offset = offset;
    s->running = pthread_create(&s->thread, NULL, gather_beside, s) == 0;
    return s->running ? NIB_OK : NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the thread that gathers %s", what);
}

static nib_status end(void *context)
{
    nib_node_shards *s = context;
    if (!s->running) return NIB_OK;
    pthread_join(s->thread, NULL);
    s->running = false;
    return s->status == NIB_OK ? NIB_OK : NIB_FAIL(s->status, "%s", s->message);
}

/* The moves are in a side queue, which waits for the ops asked for before: they may still read what was in `whole`. */
static nib_status begin_on_device(void *context, const char *what, const void *part, void *whole, const size_t *offset)
{
    nib_node_shards *s = context;
    const int rank = s->table.rank;
    void *queue, *own = (void *)(uintptr_t)part;
    int count = 0;
    snprintf(s->what, sizeof s->what, "%s", what);
    note(s);
    for (int i = 0; i < s->table.size; i++) {
        if (i == rank && own == (char *)whole + offset[i]) continue;
        s->move[count++] = (nib_move){true, s->first + i, own, offset[rank + 1] - offset[rank]};
        s->move[count++] = (nib_move){false, s->first + i, (char *)whole + offset[i], offset[i + 1] - offset[i]};
    }
    NIB_TRY(s->ops->fork(s->ops, NIB_SIDE_GATHERS, &queue));
    nib_status status = nib_device_exchange_run(s->exchange, queue, s->move, count);
    return status == NIB_OK ? NIB_OK : nib_error_context(status, "gathering %s", what);
}

static nib_status end_on_device(void *context)
{
    nib_node_shards *s = context;
    return s->ops->join(s->ops, NIB_SIDE_GATHERS);
}

static nib_status share(void *context, void *host, size_t bytes)
{
    nib_node_shards *s = context;
    for (int i = 0; i < s->table.size; i++) {
        s->send[s->first + i] = (nib_part){(char *)host + (size_t)s->table.rank * bytes, bytes};
        s->receive[s->first + i] = (nib_part){(char *)host + (size_t)i * bytes, bytes};
    }
    return s->c->all_to_all(s->c, s->send, s->receive);
}

/* Every node has as many ranks as this one, and its ranks follow each other. */
static nib_status check_nodes(const nib_collectives *c, const int64_t *place)
{
    for (int r = 0; r < c->size; r++) {
        const int64_t size = place[r] / NIB_MAX_RANKS, rank = place[r] % NIB_MAX_RANKS;
        if (size != c->local_size)
            return NIB_FAIL(
                NIB_ERROR_CONFIG,
                "rank %d is one of %d on its node, rank %d one of %lld; \"parallel\" needs as many ranks on "
                "every node",
                c->rank, c->local_size, r, (long long)size);
        if (rank != r % size)
            return NIB_FAIL(
                NIB_ERROR_CONFIG,
                "rank %d is number %lld of the %lld on its node; \"parallel\" needs ranks that are numbered "
                "node by node (srun -m block, mpirun --map-by slot)",
                r, (long long)rank, (long long)size);
    }
    return NIB_OK;
}

static nib_status compare_nodes(nib_collectives *c)
{
    int64_t *place = nib_calloc((size_t)c->size, sizeof *place);
    if (place == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the places of %d ranks", c->size);
    nib_status status = nib_gather_values(c, (int64_t)c->local_size * NIB_MAX_RANKS + c->local_rank, place);
    if (status == NIB_OK) status = check_nodes(c, place);
    nib_free(place);
    return status;
}

nib_status nib_node_shards_open(nib_collectives *c, nib_ops *ops, nib_device_exchange *exchange,
                                nib_node_shards **shards)
{
    *shards = NULL;
    NIB_TRY(compare_nodes(c));
    if (c->local_size == 1) return NIB_OK;
    if (ops->queue != NULL && exchange == NULL)
        return NIB_FAIL(NIB_ERROR_DEVICE, "\"parallel\" gathers from GPU to GPU by NCCL, which is missing or too old "
                                          "(a warning above says which); install it, or leave \"parallel\" out");
    nib_node_shards *s = nib_calloc(1, sizeof *s);
    if (s == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to divide a model among %d ranks", c->local_size);
    *s = (nib_node_shards){.c = c,
                           .first = c->rank - c->local_rank,
                           .ops = ops,
                           .exchange = exchange,
                           .move = nib_calloc(2 * (size_t)c->local_size, sizeof *s->move),
                           .send = nib_calloc((size_t)c->size, sizeof *s->send),
                           .receive = nib_calloc((size_t)c->size, sizeof *s->receive)};
    s->table = (nib_shards){
        .rank = c->local_rank, .size = c->local_size, .context = s, .share = share, .begin = begin, .end = end};
    if (exchange != NULL) {
        s->table.begin = begin_on_device;
        s->table.end = end_on_device;
    }
    if (s->send == NULL || s->receive == NULL || s->move == NULL) {
        nib_node_shards_close(s);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to divide a model among %d ranks", c->local_size);
    }
    *shards = s;
    return NIB_OK;
}

void nib_node_shards_close(nib_node_shards *s)
{
    if (s == NULL) return;
    nib_free(s->send);
    nib_free(s->receive);
    nib_free(s->move);
    nib_free(s);
}

const nib_shards *nib_node_shards_table(const nib_node_shards *s) { return s == NULL ? NULL : &s->table; }

void nib_node_shards_at(nib_node_shards *s, const char *text)
{
    if (s != NULL) snprintf(s->at, sizeof s->at, "%s", text);
}
