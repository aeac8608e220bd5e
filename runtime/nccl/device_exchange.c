#include "nccl/device_exchange.h"
#include "base/log.h"
#include "base/memory.h"
#include "collectives_check.h"
#include "nccl/nccl_api.h"
#include "train.h"

#include <pthread.h>
#include <time.h>

#define JOIN_SECONDS 300.0 /* until all ranks are in the communicator */

struct nib_device_exchange {
    nib_collectives *c;
    nib_ops *ops;
    nib_nccl_api api;
    pthread_mutex_t lock; /* for what follows: the watching thread polls and aborts */
    nib_nccl_comm comm;   /* NULL: not made yet, or aborted */
    bool aborted;
};

static nib_status nccl_failed(nib_device_exchange *x, const char *what, int result)
{
    const char *more = x->comm != NULL ? x->api.get_last_error(x->comm) : NULL;
    return NIB_FAIL(NIB_ERROR_DEVICE, "rank %d, %s over NCCL: %s%s%.300s", x->c->rank, what,
                    x->api.get_error_string(result), more != NULL && more[0] != 0 ? "; " : "", more ? more : "");
}

/* NCCL's state; NIB_OK while all is well. The lock is held. */
static nib_status state_of(nib_device_exchange *x, const char *what, bool *in_progress)
{
    nib_status status = NIB_OK;
    int state = NIB_NCCL_SUCCESS, result = NIB_NCCL_SUCCESS;
    if (x->aborted)
        status = NIB_FAIL(NIB_ERROR_DEVICE, "rank %d, %s over NCCL: aborted", x->c->rank, what);
    else if (x->comm != NULL)
        result = x->api.comm_get_async_error(x->comm, &state);
    if (result == NIB_NCCL_SUCCESS) result = state;
    *in_progress = result == NIB_NCCL_IN_PROGRESS;
    if (result != NIB_NCCL_SUCCESS && !*in_progress) status = nccl_failed(x, what, result);
    return status;
}

static nib_status poll_state(nib_device_exchange *x, const char *what, bool *in_progress)
{
    pthread_mutex_lock(&x->lock);
    nib_status status = state_of(x, what, in_progress);
    pthread_mutex_unlock(&x->lock);
    return status;
}

/* Waits until NCCL has taken what it was given. What became of a lost rank is a better message than NCCL's own. */
static nib_status settle(nib_device_exchange *x, const char *what, double seconds)
{
    double until = nib_train_clock() + seconds;
    bool in_progress = true;
    nib_status status = NIB_OK;
    while (in_progress && status == NIB_OK) {
        status = poll_state(x, what, &in_progress);
        if (in_progress) nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        if (in_progress && status == NIB_OK && nib_train_clock() > until)
            status = NIB_FAIL(NIB_ERROR_DEVICE, "rank %d, %s over NCCL: nothing has come of it for %.0f s", x->c->rank,
                              what, seconds);
    }
    return status == NIB_OK ? NIB_OK : x->c->verdict(x->c, status);
}

/* The watching thread never waits here for a call of NCCL that does not return: it would be silent, and the others
 * would say that this rank hangs. */
static nib_status guard_poll(void *context)
{
    nib_device_exchange *x = context;
    bool in_progress;
    if (pthread_mutex_trylock(&x->lock) != 0) return NIB_OK;
    nib_status status = state_of(x, "a collective", &in_progress);
    pthread_mutex_unlock(&x->lock);
    return status;
}

/* The lock is held. */
static void abort_locked(nib_device_exchange *x)
{
    if (x->comm != NULL) (void)x->api.comm_abort(x->comm);
    x->comm = NULL;
    x->aborted = true;
}

/* Where such a call holds the lock, the process ends once its grace has passed. */
static void guard_abort(void *context)
{
    nib_device_exchange *x = context;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    if (pthread_mutex_timedlock(&x->lock, &until) != 0) return;
    abort_locked(x);
    pthread_mutex_unlock(&x->lock);
}

/* The lock is held. */
static int queue_moves(nib_device_exchange *x, void *queue, const nib_move *move, int count)
{
    int result = x->api.group_start();
    for (int i = 0; i < count && result == NIB_NCCL_SUCCESS; i++) {
        const nib_move *m = &move[i];
        if (m->bytes == 0) continue;
        result = m->send ? x->api.send(m->data, m->bytes, NIB_NCCL_UINT8, m->rank, x->comm, queue)
                         : x->api.receive(m->data, m->bytes, NIB_NCCL_UINT8, m->rank, x->comm, queue);
        if (result == NIB_NCCL_IN_PROGRESS) result = NIB_NCCL_SUCCESS;
    }
    int end = x->api.group_end();
    return result != NIB_NCCL_SUCCESS ? result : end;
}

nib_status nib_device_exchange_run(nib_device_exchange *x, void *queue, const nib_move *move, int count)
{
    static const char what[] = "moves between devices";
    nib_status status = NIB_OK;
    pthread_mutex_lock(&x->lock);
    if (x->aborted) {
        status = NIB_FAIL(NIB_ERROR_DEVICE, "rank %d, %s over NCCL: aborted", x->c->rank, what);
    } else {
        int result = queue_moves(x, queue, move, count);
        if (result != NIB_NCCL_SUCCESS && result != NIB_NCCL_IN_PROGRESS) status = nccl_failed(x, what, result);
    }
    pthread_mutex_unlock(&x->lock);
    return status == NIB_OK ? settle(x, what, JOIN_SECONDS) : x->c->verdict(x->c, status);
}

/* *usable: every rank has a library that will do. */
static nib_status agree_on_library(nib_device_exchange *x, bool *usable)
{
    int64_t missing = nib_nccl_load(x->ops->name, &x->api) != NIB_OK;
    if (missing) nib_warn("the devices' bytes go through the host, slowly: %s", nib_error_message());
    NIB_TRY(nib_agree_largest(x->c, &missing));
    *usable = missing == 0;
    return NIB_OK;
}

static nib_status join(nib_device_exchange *x)
{
    struct {
        int result;
        nib_nccl_id id;
    } made = {0};
    nib_nccl_config config = {.size = sizeof config,
                              .magic = NIB_NCCL_MAGIC,
                              .version = 22809, /* whose declarations these are */
                              .cga_cluster_size = NIB_NCCL_UNDEFINED,
                              .min_ctas = NIB_NCCL_UNDEFINED,
                              .max_ctas = NIB_NCCL_UNDEFINED,
                              .split_share = NIB_NCCL_UNDEFINED,
                              .traffic_class = NIB_NCCL_UNDEFINED,
                              .collnet_enable = NIB_NCCL_UNDEFINED,
                              .cta_policy = NIB_NCCL_UNDEFINED,
                              .shrink_share = NIB_NCCL_UNDEFINED,
                              .nvls_ctas = NIB_NCCL_UNDEFINED,
                              .channels_per_net_peer = NIB_NCCL_UNDEFINED,
                              .nvlink_centric = NIB_NCCL_UNDEFINED};
    if (x->c->rank == 0) made.result = x->api.get_unique_id(&made.id);
    NIB_TRY(x->c->broadcast(x->c, &made, sizeof made, 0));
    if (made.result != NIB_NCCL_SUCCESS) return nccl_failed(x, "rank 0's id", made.result);
    pthread_mutex_lock(&x->lock);
    int result = x->aborted ? NIB_NCCL_IN_PROGRESS
                            : x->api.comm_init_rank_config(&x->comm, x->c->size, made.id, x->c->rank, &config);
    nib_status status = NIB_OK;
    if (result != NIB_NCCL_SUCCESS && result != NIB_NCCL_IN_PROGRESS) status = nccl_failed(x, "joining", result);
    pthread_mutex_unlock(&x->lock);
    return status == NIB_OK ? settle(x, "joining", JOIN_SECONDS) : x->c->verdict(x->c, status);
}

/* Known values from every rank to every rank, itself too. host [2 * size][NIB_CHECK_WORDS]: sent, then received. */
static nib_status check_moves(nib_device_exchange *x, uint64_t *host, void *block, nib_move *move)
{
    int size = x->c->size, rank = x->c->rank;
    size_t bytes = NIB_CHECK_WORDS * sizeof *host, all = (size_t)size * bytes;
    int64_t wrong = 0;
    for (int p = 0; p < size; p++) {
        nib_check_fill(host + (size_t)p * NIB_CHECK_WORDS, NIB_CHECK_MOVES, rank, p);
        move[2 * p] = (nib_move){true, p, (char *)block + (size_t)p * bytes, bytes};
        move[2 * p + 1] = (nib_move){false, p, (char *)block + all + (size_t)p * bytes, bytes};
    }
    NIB_TRY(x->ops->upload(x->ops, block, host, all));
    NIB_TRY(nib_device_exchange_run(x, x->ops->queue, move, 2 * size));
    NIB_TRY(x->ops->download(x->ops, host, (char *)block + all, all));
    for (int p = 0; p < size; p++)
        nib_check_compare(host + (size_t)p * NIB_CHECK_WORDS, NIB_CHECK_MOVES, p, rank, &wrong);
    return nib_check_report(x->c, wrong, "NCCL");
}

static nib_status check(nib_device_exchange *x)
{
    size_t size = (size_t)x->c->size, bytes = 2 * size * NIB_CHECK_WORDS * sizeof(uint64_t);
    uint64_t *host = nib_calloc(bytes, 1);
    nib_move *move = nib_calloc(2 * size, sizeof *move);
    void *block = NULL;
    nib_status status = NIB_OK;
    if (host == NULL || move == NULL)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to check NCCL between %zu ranks", size);
    if (status == NIB_OK) status = x->ops->allocate(x->ops, "NCCL's check", bytes, &block);
    if (status == NIB_OK) status = check_moves(x, host, block, move);
    if (block != NULL) x->ops->release(x->ops, block, bytes);
    nib_free(host);
    nib_free(move);
    return status;
}

nib_status nib_device_exchange_open(nib_collectives *c, nib_ops *ops, nib_device_exchange **exchange)
{
    bool usable = false;
    *exchange = NULL;
    if (c->size == 1 || ops->queue == NULL) return NIB_OK;
    nib_device_exchange *x = nib_calloc(1, sizeof *x);
    if (x == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for NCCL");
    *x = (nib_device_exchange){.c = c, .ops = ops};
    pthread_mutex_init(&x->lock, NULL);
    c->guard(c, &(nib_guard){.context = x, .poll = guard_poll, .abort = guard_abort});
    nib_status status = agree_on_library(x, &usable);
    if (status == NIB_OK && usable) status = join(x);
    if (status == NIB_OK && usable) status = check(x);
    if (status != NIB_OK || !usable) {
        nib_device_exchange_close(x, status != NIB_OK ? status : NIB_STOPPED);
        return status;
    }
    nib_log("gradients move over NCCL %d.%d.%d", x->api.version / 10000, x->api.version / 100 % 100,
            x->api.version % 100);
    *exchange = x;
    return NIB_OK;
}

void nib_device_exchange_watch(nib_device_exchange *x)
{
    if (x != NULL) x->c->guard(x->c, &(nib_guard){x, guard_poll, guard_abort, .noted = true});
}

void nib_device_exchange_close(nib_device_exchange *x, nib_status status)
{
    if (x == NULL) return;
    x->c->guard(x->c, NULL);
    if (x->comm != NULL && (status == NIB_OK || status == NIB_STOPPED) && x->api.comm_finalize(x->comm) >= 0 &&
        settle(x, "the end", JOIN_SECONDS) == NIB_OK) {
        (void)x->api.comm_destroy(x->comm);
        x->comm = NULL;
    }
    abort_locked(x); /* nobody watches any more */
    pthread_mutex_destroy(&x->lock);
    nib_free(x);
}
