/* Collectives over TCP: a connection between every two ranks. Every message has a header that names its collective, so
 * that ranks which disagree on what they are doing are told so instead of exchanging wrong bytes. */
#include "base/memory.h"
#include "collectives.h"
#include "tcp_rendezvous.h"
#include "train.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define JOIN_SECONDS    300.0 /* from the first rank's start to the last's */
#define VERDICT_SECONDS 3.0   /* until rank 0 has said which rank was the first to go */

typedef enum { BROADCAST = 1, BARRIER, ALL_GATHER, ALL_TO_ALL, SEND } operation;
static const char *const names[] = {"", "broadcast", "barrier", "all_gather", "all_to_all", "send"};

typedef struct {
    uint32_t operation, number;
    uint64_t bytes;
} header;

/* One direction of one peer's share: the header, then the data. */
typedef struct {
    header header;
    char *data;
    size_t done, total; /* header included; total 0: nothing in this direction */
} transfer;

typedef struct {
    nib_collectives table;
    nib_ranks self;
    nib_control *control;
    int *peer;          /* [size] sockets, own -1 */
    transfer *out, *in; /* [size] */
    struct pollfd *fds; /* [size + 1] */
    uint32_t number;    /* of collectives begun */
    bool broken;        /* one has failed */
} tcp;

static void begin_transfer(transfer *t, operation op, uint32_t number, void *data, size_t bytes)
{
    *t = (transfer){.header = {op, number, bytes}, .data = data, .total = sizeof(header) + bytes};
}

/* Fails with the cause that rank 0 found, or else with what this rank saw. */
static nib_status lost(tcp *t, int p, const char *what)
{
    nib_status status = NIB_FAIL(NIB_ERROR_DEVICE, "rank %d, in %s %u: rank %d %s", t->self.rank,
                                 names[t->out[p].header.operation | t->in[p].header.operation], t->number, p, what);
    return nib_control_verdict(t->control, VERDICT_SECONDS, status);
}

static nib_status send_some(tcp *t, int p)
{
    transfer *x = &t->out[p];
    while (x->done < x->total) {
        size_t head = x->done < sizeof(header) ? sizeof(header) - x->done : 0;
        struct iovec part[2] = {
            {(char *)&x->header + sizeof(header) - head, head},
            {x->data + (head > 0 ? 0 : x->done - sizeof(header)), x->total - x->done - head},
        };
        struct msghdr message = {.msg_iov = part, .msg_iovlen = 2};
        ssize_t sent = sendmsg(t->peer[p], &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) return NIB_OK;
        if (sent < 0) return lost(t, p, "cannot be reached any more");
        x->done += (size_t)sent;
    }
    return NIB_OK;
}

static nib_status check_header(tcp *t, int p, const header *expected)
{
    const header *found = &t->in[p].header;
    char what[160];
    if (memcmp(found, expected, sizeof *found) == 0) return NIB_OK;
    bool known = found->operation >= BROADCAST && found->operation <= SEND;
    snprintf(what, sizeof what, "is in %s %u with %llu bytes, expected %s %u with %llu",
             known ? names[found->operation] : "something unknown", found->number, (unsigned long long)found->bytes,
             names[expected->operation], expected->number, (unsigned long long)expected->bytes);
    t->in[p].header = *expected;
    return lost(t, p, what);
}

static nib_status receive_some(tcp *t, int p)
{
    transfer *x = &t->in[p];
    header expected = {x->header.operation, x->header.number, x->total - sizeof(header)};
    while (x->done < x->total) {
        bool in_header = x->done < sizeof(header);
        void *to = in_header ? (char *)&x->header + x->done : x->data + (x->done - sizeof(header));
        ssize_t got = recv(t->peer[p], to, (in_header ? sizeof(header) : x->total) - x->done, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return NIB_OK;
        if (got <= 0) return lost(t, p, "has closed its connection");
        x->done += (size_t)got;
        if (in_header && x->done == sizeof(header)) NIB_TRY(check_header(t, p, &expected));
    }
    return NIB_OK;
}

/* Carries out what is in out and in, all peers at once, so that no order of sends can block. */
static nib_status run_transfers(tcp *t)
{
    for (;;) {
        int open = 0;
        for (int p = 0; p < t->self.size; p++) {
            if (t->out[p].done < t->out[p].total) NIB_TRY(send_some(t, p));
            if (t->in[p].done < t->in[p].total) NIB_TRY(receive_some(t, p));
            bool sends = t->out[p].done < t->out[p].total, receives = t->in[p].done < t->in[p].total;
            t->fds[p] = (struct pollfd){.fd = sends || receives ? t->peer[p] : -1,
                                        .events = (short)((sends ? POLLOUT : 0) | (receives ? POLLIN : 0))};
            open += sends || receives;
        }
        if (open == 0) return NIB_OK;
        t->fds[t->self.size] = (struct pollfd){.fd = nib_control_wake(t->control), .events = POLLIN};
        (void)poll(t->fds, (nfds_t)t->self.size + 1, -1);
        if (t->fds[t->self.size].revents != 0) return nib_control_verdict(t->control, 0, NIB_ERROR_DEVICE);
    }
}

static tcp *begin(nib_collectives *c, operation op)
{
    tcp *t = c->context;
    t->number++;
    nib_control_at(t->control, t->number, names[op], true);
    memset(t->out, 0, (size_t)t->self.size * sizeof *t->out);
    memset(t->in, 0, (size_t)t->self.size * sizeof *t->in);
    return t;
}

static nib_status finish(tcp *t, operation op)
{
    nib_status status =
        t->broken ? NIB_FAIL(NIB_ERROR_INTERNAL, "%s after a collective that failed", names[op]) : run_transfers(t);
    t->broken = status != NIB_OK;
    nib_control_at(t->control, t->number, names[op], false);
    return status;
}

static nib_status tcp_barrier(nib_collectives *c)
{
    tcp *t = begin(c, BARRIER);
    for (int p = 0; p < c->size; p++) {
        if (p == c->rank) continue;
        begin_transfer(&t->out[p], BARRIER, t->number, NULL, 0);
        begin_transfer(&t->in[p], BARRIER, t->number, NULL, 0);
    }
    return finish(t, BARRIER);
}

/* A binomial tree: who has the data passes it on, so that the root sends it log2(size) times only. */
static nib_status tcp_broadcast(nib_collectives *c, void *data, size_t bytes, int root)
{
    int own = (c->rank - root + c->size) % c->size, bit = 1;
    tcp *t = begin(c, BROADCAST);
    for (; bit < c->size && !(own & bit); bit *= 2) continue;
    if (own != 0) {
        begin_transfer(&t->in[(own - bit + root) % c->size], BROADCAST, t->number, data, bytes);
        NIB_TRY(finish(t, BROADCAST));
        memset(t->in, 0, (size_t)c->size * sizeof *t->in);
    }
    for (bit /= 2; bit > 0; bit /= 2)
        if (own + bit < c->size)
            begin_transfer(&t->out[(own + bit + root) % c->size], BROADCAST, t->number, data, bytes);
    return finish(t, BROADCAST);
}

static nib_status tcp_all_gather(nib_collectives *c, const nib_part *part)
{
    tcp *t = begin(c, ALL_GATHER);
    for (int p = 0; p < c->size; p++) {
        if (p == c->rank) continue;
        begin_transfer(&t->out[p], ALL_GATHER, t->number, part[c->rank].data, part[c->rank].bytes);
        begin_transfer(&t->in[p], ALL_GATHER, t->number, part[p].data, part[p].bytes);
    }
    return finish(t, ALL_GATHER);
}

static nib_status tcp_all_to_all(nib_collectives *c, const nib_part *send, const nib_part *receive)
{
    tcp *t = begin(c, ALL_TO_ALL);
    for (int p = 0; p < c->size; p++) {
        if (p == c->rank) continue;
        begin_transfer(&t->out[p], ALL_TO_ALL, t->number, send[p].data, send[p].bytes);
        begin_transfer(&t->in[p], ALL_TO_ALL, t->number, receive[p].data, receive[p].bytes);
    }
    if (send[c->rank].bytes > 0) memmove(receive[c->rank].data, send[c->rank].data, send[c->rank].bytes);
    return finish(t, ALL_TO_ALL);
}

/* Sends are numbered 0: the two of a pair have not taken part in the same number of collectives. */
static nib_status tcp_send(nib_collectives *c, int to, const void *data, size_t bytes)
{
    tcp *t = begin(c, SEND);
    begin_transfer(&t->out[to], SEND, 0, (void *)data, bytes);
    nib_status status = finish(t, SEND);
    t->number--;
    return status;
}

static nib_status tcp_receive(nib_collectives *c, int from, void *data, size_t bytes)
{
    tcp *t = begin(c, SEND);
    begin_transfer(&t->in[from], SEND, 0, data, bytes);
    nib_status status = finish(t, SEND);
    t->number--;
    return status;
}

static void tcp_note(nib_collectives *c, const char *text) { nib_control_note(((tcp *)c->context)->control, text); }

static void tcp_guard(nib_collectives *c, const nib_guard *guard)
{
    nib_control_guard(((tcp *)c->context)->control, guard);
}

static nib_status tcp_verdict(nib_collectives *c, nib_status otherwise)
{
    return nib_control_verdict(((tcp *)c->context)->control, VERDICT_SECONDS, otherwise);
}

static void free_tcp(tcp *t)
{
    for (int p = 0; t->peer != NULL && p < t->self.size; p++)
        if (t->peer[p] >= 0) close(t->peer[p]);
    nib_free(t->peer);
    nib_free(t->out);
    nib_free(t->in);
    nib_free(t->fds);
    nib_free(t);
}

static nib_status tcp_close(nib_collectives *c, nib_status status)
{
    tcp *t = c->context;
    bool planned = status == NIB_OK || status == NIB_STOPPED;
    nib_status left = planned ? tcp_barrier(c) : NIB_OK;
    nib_control_stop(t->control, planned ? left : status, nib_error_message());
    free_tcp(t);
    return left;
}

/* Rank 0: every rank calls, and is told where all listen. The others: call, and be told. */
static nib_status gather(tcp *t, int listener, int own_port, int *control, nib_endpoint *endpoint, double until)
{
    const nib_ranks *self = &t->self;
    size_t bytes = (size_t)self->size * sizeof *endpoint;
    if (self->rank == 0) {
        NIB_TRY(nib_tcp_accept(self, listener, NIB_CHANNEL_CONTROL, NULL, until, control, endpoint));
        endpoint[0].port = own_port;
        for (int p = 1; p < self->size; p++) NIB_TRY(nib_tcp_write(control[p], endpoint, bytes, until));
        return NIB_OK;
    }
    NIB_TRY(nib_tcp_call(self, 0, self->address, self->port, self->ports, NIB_CHANNEL_CONTROL, own_port, NULL, until,
                         &control[0]));
    nib_status status = nib_tcp_read(control[0], endpoint, bytes, until);
    return status == NIB_OK ? status
                            : nib_error_context(status, "rank %d waits for all ranks to come: rank 0", self->rank);
}

/* A connection to every other rank: this one calls those below it and is called by those above. */
static nib_status connect_all(tcp *t, int listener, int own_port, const nib_endpoint *endpoint, double until)
{
    const nib_ranks *self = &t->self;
    for (int p = 0; p < self->rank; p++) {
        if (memchr(endpoint[p].address, 0, sizeof endpoint[p].address) == NULL)
            return NIB_FAIL(NIB_ERROR_DEVICE, "rank 0 sent no address of rank %d", p);
        const char *address = endpoint[p].address[0] != 0 ? endpoint[p].address : self->address;
        NIB_TRY(nib_tcp_call(self, p, address, endpoint[p].port, 1, NIB_CHANNEL_DATA, own_port, t->control, until,
                             &t->peer[p]));
    }
    return nib_tcp_accept(self, listener, NIB_CHANNEL_DATA, t->control, until, t->peer, NULL);
}

static nib_status join(tcp *t)
{
    const nib_ranks *self = &t->self;
    double until = nib_train_clock() + JOIN_SECONDS;
    int listener = -1, own_port;
    int *control = nib_calloc((size_t)self->size, sizeof *control);
    nib_endpoint *endpoint = nib_calloc((size_t)self->size, sizeof *endpoint);
    nib_status status = NIB_OK;
    if (control == NULL || endpoint == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d ranks", self->size);
        goto done;
    }
    for (int p = 0; p < self->size; p++) control[p] = -1;
    NIB_TRY_GOTO(
        nib_tcp_listen(self, self->rank == 0 ? self->port : 0, self->rank == 0 ? self->ports : 1, &listener, &own_port),
        done);
    status = gather(t, listener, own_port, control, endpoint, until);
    if (status != NIB_OK) {
        for (int p = 0; p < self->size; p++)
            if (control[p] >= 0) close(control[p]);
        goto done;
    }
    NIB_TRY_GOTO(nib_control_start(self, control, &nib_control_job_limits, &t->control), done);
    status = connect_all(t, listener, own_port, endpoint, until);
done:
    if (listener >= 0) close(listener);
    nib_free(control);
    nib_free(endpoint);
    return status;
}

nib_status nib_collectives_tcp(const nib_ranks *ranks, nib_collectives **collectives)
{
    size_t size = (size_t)ranks->size;
    tcp *t = nib_calloc(1, sizeof *t);
    *collectives = NULL;
    if (t == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu ranks", size);
    *t = (tcp){.self = *ranks,
               .peer = nib_calloc(size, sizeof *t->peer),
               .out = nib_calloc(size, sizeof *t->out),
               .in = nib_calloc(size, sizeof *t->in),
               .fds = nib_calloc(size + 1, sizeof *t->fds)};
    for (size_t p = 0; t->peer != NULL && p < size; p++) t->peer[p] = -1;
    nib_status status = NIB_OK;
    if (t->peer == NULL || t->out == NULL || t->in == NULL || t->fds == NULL)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu ranks", size);
    else
        status = join(t);
    if (status != NIB_OK) {
        nib_control_stop(t->control, status, nib_error_message());
        free_tcp(t);
        return status;
    }
    t->table = (nib_collectives){.name = "tcp",
                                 .rank = ranks->rank,
                                 .size = ranks->size,
                                 .context = t,
                                 .broadcast = tcp_broadcast,
                                 .barrier = tcp_barrier,
                                 .all_gather = tcp_all_gather,
                                 .all_to_all = tcp_all_to_all,
                                 .send = tcp_send,
                                 .receive = tcp_receive,
                                 .note = tcp_note,
                                 .guard = tcp_guard,
                                 .verdict = tcp_verdict,
                                 .close = tcp_close};
    *collectives = &t->table;
    return NIB_OK;
}
