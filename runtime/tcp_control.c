#include "tcp_control.h"
#include "base/log.h"
#include "base/memory.h"
#include "train.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define BEAT_SECONDS 1.0
#define TEXT_BYTES   240

typedef enum { ALIVE = 1, FAILED, FAREWELL } frame_kind;

/* What goes over a control connection, in both directions; the same machine type on all ranks (the handshake compares
 * commits), so it is sent as it lies in memory. */
typedef struct {
    uint32_t kind;
    uint32_t rank;   /* that it is about */
    uint32_t code;   /* ALIVE: inside a collective; FAILED: nib_status */
    uint32_t number; /* ALIVE: grows with all that the rank does */
    char text[TEXT_BYTES];
} frame;

typedef struct {
    int fd;
    bool farewell;
    double heard, moved; /* when a frame came, and when one told of something new */
    frame in, out[2];    /* out: a frame that has partly been sent, and one behind it */
    size_t received, unsent;
    frame last; /* its last ALIVE */
} peer_state;

struct nib_control {
    nib_ranks self;
    nib_control_limits limits;
    peer_state *peer; /* [size]; own entry: this rank's state as others see it */
    int wake, stop;   /* event descriptors: there is a verdict; the owner wants the thread to end */
    pthread_t thread;

    pthread_mutex_t guard_lock; /* held while one of the guard's functions runs */
    nib_guard guard;            /* poll NULL: none */

    pthread_mutex_t lock; /* for what follows */
    pthread_cond_t changed;
    uint32_t number, noted;
    bool inside, leaving;
    char collective[64], note[128];
    nib_status verdict; /* NIB_OK: none */
    uint32_t culprit;
    char message[TEXT_BYTES];
    nib_status own_end; /* leaving: with this status and message */
    char own_message[TEXT_BYTES];
};

/* The rank's own thread computes, or waits for a disk, and does not see the verdict: the process ends here. */
static void end_process(nib_status status, const char *message)
{
    fprintf(stderr, "nibble: %s\n", message);
    _exit(nib_exit_code(status));
}

const nib_control_limits nib_control_job_limits = {.silent = 20, .absent = 1800, .grace = 2.5, .end = end_process};

static void put_text(char text[TEXT_BYTES], const char *from) { snprintf(text, TEXT_BYTES, "%s", from); }

/* The first verdict stands. */
static void decide(nib_control *c, int culprit, nib_status status, const char *message)
{
    pthread_mutex_lock(&c->lock);
    if (c->verdict == NIB_OK) {
        c->verdict = status;
        c->culprit = (uint32_t)culprit;
        put_text(c->message, message);
        eventfd_write(c->wake, 1);
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
}

static frame state_of_self(nib_control *c)
{
    frame alive = {.kind = ALIVE, .rank = (uint32_t)c->self.rank};
    pthread_mutex_lock(&c->lock);
    alive.code = c->inside;
    alive.number = c->number + c->noted;
    snprintf(alive.text, sizeof alive.text, "%s%s %u%s%s", c->inside ? "in " : "after ", c->collective, c->number,
             c->note[0] != 0 ? ", " : "", c->note);
    pthread_mutex_unlock(&c->lock);
    return alive;
}

static void flush_out(peer_state *peer)
{
    while (peer->fd >= 0 && peer->unsent > 0) {
        ssize_t sent = send(peer->fd, peer->out, peer->unsent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return; /* full, or closed: reading will tell */
        peer->unsent -= (size_t)sent;
        memmove(peer->out, (char *)peer->out + sent, peer->unsent);
    }
}

/* A sign of life is left out while an earlier one has not been taken; what is final waits behind it. */
static void send_frame(peer_state *peer, const frame *f)
{
    if (peer->fd < 0) return;
    flush_out(peer);
    if (peer->unsent > sizeof *f || (peer->unsent > 0 && f->kind == ALIVE)) return;
    memcpy((char *)peer->out + peer->unsent, f, sizeof *f);
    peer->unsent += sizeof *f;
    flush_out(peer);
}

static void send_all(nib_control *c, const frame *f)
{
    for (int r = 0; r < c->self.size; r++) send_frame(&c->peer[r], f);
}

static void close_peer(peer_state *peer)
{
    if (peer->fd >= 0) close(peer->fd);
    peer->fd = -1;
}

static void peer_left(nib_control *c, int rank)
{
    char message[TEXT_BYTES];
    peer_state *peer = &c->peer[rank];
    close_peer(peer);
    if (peer->farewell) return;
    snprintf(message, sizeof message, "rank %d died: its connection closed; it was last heard %.100s", rank,
             peer->last.text[0] != 0 ? peer->last.text : "at its start");
    decide(c, rank, NIB_ERROR_DEVICE, message);
}

/* Frames come from a rank that knows the token; they are checked all the same. */
static void take_frame(nib_control *c, peer_state *peer, int rank, double now)
{
    frame *f = &peer->in;
    f->text[TEXT_BYTES - 1] = 0;
    if (f->kind == FAREWELL) {
        peer->farewell = true;
    } else if (f->kind == FAILED && f->rank < (uint32_t)c->self.size) {
        bool known = f->code > NIB_OK && f->code <= NIB_ERROR_CONFIG && f->code != NIB_STOPPED;
        decide(c, (int)f->rank, known ? (nib_status)f->code : NIB_ERROR_INTERNAL, f->text);
    } else if (f->kind == ALIVE && f->rank == (uint32_t)rank) {
        if (f->number != peer->last.number || f->code != peer->last.code) peer->moved = now;
        peer->last = *f;
    }
}

static void read_frames(nib_control *c, int rank, double now)
{
    peer_state *peer = &c->peer[rank];
    while (peer->fd >= 0) {
        ssize_t got =
            recv(peer->fd, (char *)&peer->in + peer->received, sizeof peer->in - peer->received, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (got <= 0) {
            peer_left(c, rank);
            return;
        }
        peer->heard = now;
        peer->received += (size_t)got;
        if (peer->received < sizeof peer->in) continue;
        peer->received = 0;
        take_frame(c, peer, rank, now);
    }
}

/* What every rank was last seen at, for a run that hangs. */
static void report_ranks(nib_control *c, double now)
{
    for (int r = 0; r < c->self.size; r++)
        if (r == c->self.rank || c->peer[r].fd >= 0)
            nib_warn("rank %d: %s, heard %.1f s ago", r, c->peer[r].last.text,
                     r == c->self.rank ? 0 : now - c->peer[r].heard);
}

static void hangs(nib_control *c, int rank, double seconds, const char *how, double now)
{
    char message[TEXT_BYTES];
    report_ranks(c, now);
    snprintf(message, sizeof message, "rank %d hangs: %s for %.0f s, last heard %.100s", rank, how, seconds,
             c->peer[rank].last.text);
    decide(c, rank, NIB_ERROR_DEVICE, message);
}

static void look_for_hangs(nib_control *c, double now)
{
    bool someone_waits = false;
    for (int r = 0; r < c->self.size; r++) someone_waits = someone_waits || c->peer[r].last.code != 0;
    for (int r = 0; r < c->self.size && !nib_control_failed(c); r++) {
        const peer_state *peer = &c->peer[r];
        if (peer->fd < 0 && r != c->self.rank) continue;
        if (r != c->self.rank && now - peer->heard > c->limits.silent)
            hangs(c, r, c->limits.silent, "no sign of life", now);
        else if (c->self.rank == 0 && someone_waits && peer->last.code == 0 && now - peer->moved > c->limits.absent)
            hangs(c, r, c->limits.absent, "others wait for it in a collective", now);
    }
}

static bool is_noted(nib_control *c)
{
    pthread_mutex_lock(&c->guard_lock);
    bool noted = c->guard.noted;
    pthread_mutex_unlock(&c->guard_lock);
    return noted;
}

/* Ranks that move bytes by means of their own can all wait for each other while none is in a collective. */
static void look_for_standstill(nib_control *c, double now)
{
    char message[TEXT_BYTES];
    double moved = 0;
    if (c->self.rank != 0 || nib_control_failed(c) || !is_noted(c)) return;
    for (int r = 0; r < c->self.size; r++)
        if ((r == 0 || c->peer[r].fd >= 0) && c->peer[r].moved > moved) moved = c->peer[r].moved;
    if (now - moved <= c->limits.absent) return;
    report_ranks(c, now);
    snprintf(message, sizeof message,
             "all %d ranks hang: none has begun anything new for %.0f s, rank 0 was last heard %.100s", c->self.size,
             c->limits.absent, c->peer[0].last.text);
    decide(c, 0, NIB_ERROR_DEVICE, message);
}

static void beat(nib_control *c, double now)
{
    frame alive = state_of_self(c);
    peer_state *own = &c->peer[c->self.rank];
    if (alive.number != own->last.number || alive.code != own->last.code) own->moved = now;
    own->last = alive;
    send_all(c, &alive);
    look_for_hangs(c, now);
    look_for_standstill(c, now);
}

static void ask_guard(nib_control *c)
{
    pthread_mutex_lock(&c->guard_lock);
    nib_status status = c->guard.poll != NULL ? c->guard.poll(c->guard.context) : NIB_OK;
    pthread_mutex_unlock(&c->guard_lock);
    if (status != NIB_OK) decide(c, c->self.rank, status, nib_error_message());
}

static void abort_guarded(nib_control *c)
{
    pthread_mutex_lock(&c->guard_lock);
    if (c->guard.abort != NULL) c->guard.abort(c->guard.context);
    pthread_mutex_unlock(&c->guard_lock);
}

/* Tells the verdict to all that do not have it; a rank other than 0 only knows rank 0. */
static void pass_on(nib_control *c)
{
    frame failed = {.kind = FAILED, .rank = c->culprit, .code = c->verdict};
    memcpy(failed.text, c->message, sizeof failed.text);
    send_all(c, &failed);
}

static void leave(nib_control *c)
{
    frame last = {.kind = c->own_end == NIB_OK ? FAREWELL : FAILED, .rank = (uint32_t)c->self.rank, .code = c->own_end};
    if (c->own_end != NIB_OK)
        snprintf(last.text, sizeof last.text, "rank %d failed: %.200s", c->self.rank, c->own_message);
    if (c->verdict == NIB_OK) send_all(c, &last);
    double until = nib_train_clock() + 1;
    for (int r = 0; r < c->self.size; r++) {
        while (c->peer[r].fd >= 0 && c->peer[r].unsent > 0 && nib_train_clock() < until) {
            struct pollfd out = {.fd = c->peer[r].fd, .events = POLLOUT};
            (void)poll(&out, 1, 50);
            size_t before = c->peer[r].unsent;
            flush_out(&c->peer[r]);
            if (out.revents & (POLLERR | POLLHUP) && c->peer[r].unsent == before) break;
        }
    }
}

/* A job that was stopped and continued as a whole has heard nothing meanwhile, and nobody hangs. */
static void forget_silence(nib_control *c, double now)
{
    for (int r = 0; r < c->self.size; r++) c->peer[r].heard = c->peer[r].moved = now;
}

static void *serve(void *argument)
{
    nib_control *c = argument;
    double next_beat = 0, end_at = 0, before = nib_train_clock();
    struct pollfd *fds = nib_calloc((size_t)c->self.size + 1, sizeof *fds);
    if (fds == NULL) decide(c, c->self.rank, NIB_ERROR_MEMORY, "no memory for the control channel");
    for (bool leaving = false; fds != NULL && !leaving;) {
        fds[c->self.size] = (struct pollfd){.fd = c->stop, .events = POLLIN};
        for (int r = 0; r < c->self.size; r++) fds[r] = (struct pollfd){.fd = c->peer[r].fd, .events = POLLIN};
        (void)poll(fds, (nfds_t)c->self.size + 1, 100);
        double now = nib_train_clock();
        for (int r = 0; r < c->self.size; r++)
            if (fds[r].revents != 0) read_frames(c, r, now);
        if (now - before > c->limits.silent / 2) forget_silence(c, now);
        before = now;
        if (now >= next_beat && end_at == 0) {
            beat(c, now);
            next_beat = now + BEAT_SECONDS;
        }
        if (end_at == 0) ask_guard(c);
        if (end_at == 0 && nib_control_failed(c)) {
            pass_on(c);
            abort_guarded(c);
            end_at = now + c->limits.grace;
        }
        pthread_mutex_lock(&c->lock);
        leaving = c->leaving;
        pthread_mutex_unlock(&c->lock);
        if (!leaving && end_at > 0 && now >= end_at) {
            c->limits.end(c->verdict, c->message);
            end_at = now + 3600;
        }
    }
    if (fds != NULL) leave(c);
    nib_free(fds);
    return NULL;
}

static void free_control(nib_control *c)
{
    for (int r = 0; c->peer != NULL && r < c->self.size; r++) close_peer(&c->peer[r]);
    if (c->wake >= 0) close(c->wake);
    if (c->stop >= 0) close(c->stop);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->guard_lock);
    nib_free(c->peer);
    nib_free(c);
}

static void close_connections(const int *peer, int count)
{
    for (int r = 0; r < count; r++)
        if (peer[r] >= 0) close(peer[r]);
}

nib_status nib_control_start(const nib_ranks *self, const int *peer, const nib_control_limits *limits,
                             nib_control **control)
{
    int count = self->rank == 0 ? self->size : 1;
    nib_control *c = nib_calloc(1, sizeof *c);
    peer_state *states = nib_calloc((size_t)self->size, sizeof *states);
    *control = NULL;
    if (c == NULL || states == NULL) {
        close_connections(peer, count);
        nib_free(c);
        nib_free(states);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the control channel");
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    *c = (nib_control){.self = *self, .limits = *limits, .peer = states, .collective = "its start"};
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->guard_lock, NULL);
    pthread_cond_init(&c->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    double now = nib_train_clock();
    for (int r = 0; r < self->size; r++)
        states[r] = (peer_state){.fd = r < count ? peer[r] : -1, .heard = now, .moved = now};
    c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->wake < 0 || c->stop < 0 || pthread_create(&c->thread, NULL, serve, c) != 0) {
        free_control(c);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no descriptor or thread for the control channel");
    }
    *control = c;
    return NIB_OK;
}

void nib_control_at(nib_control *c, uint32_t number, const char *collective, bool inside)
{
    pthread_mutex_lock(&c->lock);
    c->number = number;
    c->inside = inside;
    snprintf(c->collective, sizeof c->collective, "%s", collective);
    pthread_mutex_unlock(&c->lock);
}

void nib_control_note(nib_control *c, const char *text)
{
    pthread_mutex_lock(&c->lock);
    c->noted++;
    snprintf(c->note, sizeof c->note, "%s", text);
    pthread_mutex_unlock(&c->lock);
}

void nib_control_guard(nib_control *c, const nib_guard *guard)
{
    pthread_mutex_lock(&c->guard_lock);
    c->guard = guard != NULL ? *guard : (nib_guard){0};
    pthread_mutex_unlock(&c->guard_lock);
}

bool nib_control_failed(nib_control *c)
{
    if (c == NULL) return false;
    pthread_mutex_lock(&c->lock);
    bool failed = c->verdict != NIB_OK;
    pthread_mutex_unlock(&c->lock);
    return failed;
}

nib_status nib_control_verdict(nib_control *c, double seconds, nib_status otherwise)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    frame own = state_of_self(c);
    pthread_mutex_lock(&c->lock);
    while (c->verdict == NIB_OK && pthread_cond_timedwait(&c->changed, &c->lock, &until) == 0) continue;
    nib_status status = c->verdict;
    if (status != NIB_OK) NIB_FAIL(status, "%s; rank %d was %s", c->message, c->self.rank, own.text);
    pthread_mutex_unlock(&c->lock);
    return status != NIB_OK ? status : otherwise;
}

int nib_control_wake(const nib_control *c) { return c->wake; }

void nib_control_stop(nib_control *c, nib_status status, const char *message)
{
    if (c == NULL) return;
    pthread_mutex_lock(&c->lock);
    c->leaving = true;
    c->own_end = status;
    put_text(c->own_message, message);
    pthread_mutex_unlock(&c->lock);
    eventfd_write(c->stop, 1);
    pthread_join(c->thread, NULL);
    free_control(c);
}
