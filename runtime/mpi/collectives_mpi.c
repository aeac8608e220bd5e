/* Collectives over MPI, for clusters of CPUs that have one. Only bytes are moved: MPI's own sums are in no fixed order.
 *
 * An MPI job ends as a whole: a rank that dies takes the others with it, by mpirun, and one that fails aborts the job
 * with its exit code. mpirun does not see a rank that hangs: that is the watch's to find (watch.h), and so no rank is
 * ever inside MPI without looking at the watch's verdict.
 */
#include "base/memory.h"
#include "mpi/plugin.h"
#include "mpi/watch.h"

#include <limits.h>
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#define MOST_BYTES      ((size_t)1 << 30) /* in one call: MPI counts with int */
#define TAG             1
#define VERDICT_SECONDS 3.0 /* until rank 0 has said which rank was the first to go */

typedef struct {
    nib_collectives table;
    nib_control *control;
    MPI_Request *request; /* [2 * size] */
    uint32_t number;      /* of collectives begun */
} context;

static nib_status checked(const nib_collectives *c, const char *what, int error)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    if (error == MPI_SUCCESS) return NIB_OK;
    MPI_Error_string(error, text, &length);
    return NIB_FAIL(NIB_ERROR_DEVICE, "rank %d, %s over MPI: %s", c->rank, what, text);
}

static int piece(size_t left) { return (int)(left < MOST_BYTES ? left : MOST_BYTES); }

static context *begin(nib_collectives *c, const char *what)
{
    context *own = c->context;
    nib_control_at(own->control, ++own->number, what, true);
    return own;
}

/* Waits for the first `count` requests, or a verdict. error: of beginning them. */
static nib_status wait_for(context *own, const char *what, int count, int error)
{
    for (int done = 0; !done && error == MPI_SUCCESS;) {
        error = MPI_Testall(count, own->request, &done, MPI_STATUSES_IGNORE);
        if (!done && nib_control_failed(own->control)) return nib_control_verdict(own->control, 0, NIB_ERROR_DEVICE);
        if (!done) sched_yield(); /* to ranks that compute, where there are fewer cores */
    }
    return checked(&own->table, what, error);
}

static nib_status finish(context *own, const char *what, nib_status status)
{
    nib_control_at(own->control, own->number, what, false);
    return status;
}

static nib_status mpi_broadcast(nib_collectives *c, void *data, size_t bytes, int root)
{
    static const char what[] = "broadcast";
    context *own = begin(c, what);
    nib_status status = NIB_OK;
    for (size_t at = 0; at < bytes && status == NIB_OK; at += MOST_BYTES)
        status = wait_for(
            own, what, 1,
            MPI_Ibcast((char *)data + at, piece(bytes - at), MPI_BYTE, root, MPI_COMM_WORLD, &own->request[0]));
    return finish(own, what, status);
}

static nib_status mpi_barrier(nib_collectives *c)
{
    static const char what[] = "barrier";
    context *own = begin(c, what);
    return finish(own, what, wait_for(own, what, 1, MPI_Ibarrier(MPI_COMM_WORLD, &own->request[0])));
}

/* send[p] to rank p and receive[p] from it, for all p but this rank, at once. */
static nib_status exchange(nib_collectives *c, const char *what, const nib_part *send, const nib_part *receive)
{
    int count = 0, error = MPI_SUCCESS;
    for (int p = 0; p < c->size; p++)
        if (send[p].bytes > MOST_BYTES || receive[p].bytes > MOST_BYTES)
            return NIB_FAIL(NIB_ERROR_INTERNAL, "%s of more than %zu bytes to one rank", what, MOST_BYTES);
    context *own = begin(c, what);
    MPI_Request *request = own->request;
    for (int p = 0; p < c->size && error == MPI_SUCCESS; p++)
        if (p != c->rank && receive[p].bytes > 0)
            error =
                MPI_Irecv(receive[p].data, (int)receive[p].bytes, MPI_BYTE, p, TAG, MPI_COMM_WORLD, &request[count++]);
    for (int p = 0; p < c->size && error == MPI_SUCCESS; p++)
        if (p != c->rank && send[p].bytes > 0)
            error = MPI_Isend(send[p].data, (int)send[p].bytes, MPI_BYTE, p, TAG, MPI_COMM_WORLD, &request[count++]);
    return finish(own, what, wait_for(own, what, count, error));
}

static nib_status mpi_all_to_all(nib_collectives *c, const nib_part *send, const nib_part *receive)
{
    if (send[c->rank].bytes > 0) memmove(receive[c->rank].data, send[c->rank].data, send[c->rank].bytes);
    return exchange(c, "all_to_all", send, receive);
}

static nib_status mpi_all_gather(nib_collectives *c, const nib_part *part)
{
    nib_part *own = nib_calloc((size_t)c->size, sizeof *own);
    if (own == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d ranks", c->size);
    for (int p = 0; p < c->size; p++) own[p] = part[c->rank];
    nib_status status = exchange(c, "all_gather", own, part);
    nib_free(own);
    return status;
}

static nib_status mpi_send(nib_collectives *c, int to, const void *data, size_t bytes)
{
    static const char what[] = "send";
    context *own = begin(c, what);
    nib_status status = NIB_OK;
    for (size_t at = 0; at < bytes && status == NIB_OK; at += MOST_BYTES)
        status = wait_for(
            own, what, 1,
            MPI_Isend((const char *)data + at, piece(bytes - at), MPI_BYTE, to, TAG, MPI_COMM_WORLD, &own->request[0]));
    return finish(own, what, status);
}

static nib_status mpi_receive(nib_collectives *c, int from, void *data, size_t bytes)
{
    static const char what[] = "receive";
    context *own = begin(c, what);
    nib_status status = NIB_OK;
    for (size_t at = 0; at < bytes && status == NIB_OK; at += MOST_BYTES)
        status = wait_for(
            own, what, 1,
            MPI_Irecv((char *)data + at, piece(bytes - at), MPI_BYTE, from, TAG, MPI_COMM_WORLD, &own->request[0]));
    return finish(own, what, status);
}

static void mpi_note(nib_collectives *c, const char *text) { nib_control_note(((context *)c->context)->control, text); }

static void mpi_guard(nib_collectives *c, const nib_guard *guard)
{
    nib_control_guard(((context *)c->context)->control, guard);
}

static nib_status mpi_verdict(nib_collectives *c, nib_status otherwise)
{
    return nib_control_verdict(((context *)c->context)->control, VERDICT_SECONDS, otherwise);
}

/* The abort does not return. */
static void abort_job(int rank, nib_status status)
{
    fprintf(stderr, "nibble: rank %d: %s\n", rank, nib_error_message());
    MPI_Abort(MPI_COMM_WORLD, nib_exit_code(status));
}

static nib_status mpi_close(nib_collectives *c, nib_status status)
{
    context *own = c->context;
    bool planned = status == NIB_OK || status == NIB_STOPPED;
    nib_status left = planned ? mpi_barrier(c) : status;
    if (left == NIB_OK) MPI_Finalize(); /* watched: it waits for all ranks */
    nib_control_stop(own->control, left, nib_error_message());
    if (left != NIB_OK) abort_job(c->rank, left);
    nib_free(own->request);
    nib_free(own);
    return left;
}

static nib_status mpi_open(const nib_ranks *ranks, nib_collectives **collectives)
{
    int threads, rank, size;
    *collectives = NULL;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &threads) != MPI_SUCCESS || threads < MPI_THREAD_SERIALIZED)
        return NIB_FAIL(NIB_ERROR_DEVICE, "MPI cannot be initialised beside threads that compute");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    nib_status status = NIB_OK;
    nib_control *control = NULL;
    context *own = nib_calloc(1, sizeof *own);
    MPI_Request *request = nib_calloc(2 * (size_t)size, sizeof *request);
    if (own == NULL || request == NULL)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d ranks", size);
    else if (rank != ranks->rank || size != ranks->size)
        status = NIB_FAIL(NIB_ERROR_DEVICE, "MPI says rank %d of %d, the environment rank %d of %d", rank, size,
                          ranks->rank, ranks->size);
    else
        status = nib_mpi_watch(ranks, &control);
    if (status != NIB_OK) {
        abort_job(rank, status);
        nib_free(own);
        nib_free(request);
        return status;
    }
    *own = (context){.control = control,
                     .request = request,
                     .table = {.name = "mpi",
                               .rank = rank,
                               .size = size,
                               .context = own,
                               .broadcast = mpi_broadcast,
                               .barrier = mpi_barrier,
                               .all_gather = mpi_all_gather,
                               .all_to_all = mpi_all_to_all,
                               .send = mpi_send,
                               .receive = mpi_receive,
                               .note = mpi_note,
                               .guard = mpi_guard,
                               .verdict = mpi_verdict,
                               .close = mpi_close}};
    *collectives = &own->table;
    return NIB_OK;
}

const nib_mpi_plugin nib_mpi = {.build = NIBBLE_BUILD, .open = mpi_open};
