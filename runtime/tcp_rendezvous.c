#include "tcp_rendezvous.h"
#include "base/log.h"
#include "base/memory.h"
#include "signals.h"
#include "train.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_PENDING     256 /* callers that have not proved who they are */
#define PENDING_SECONDS 5.0
#define MAX_BACKOFF_MS  500
#define UNREACHABLE_MS  20000 /* unacknowledged bytes for so long: the link is cut */

static void tune(int fd)
{
    int on = 1, limit = UNREACHABLE_MS;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof limit);
}

/* Milliseconds of a poll that may last until `until`, but looks around every 100. */
static int wait_ms(double until)
{
    double left = (until - nib_train_clock()) * 1000;
    return left < 0 ? 0 : left < 100 ? (int)left + 1 : 100;
}

static bool is_loopback(const char *address)
{
    return strncmp(address, "127.", 4) == 0 || strcmp(address, "::1") == 0 || strcmp(address, "localhost") == 0;
}

static int open_listener(int family, bool loopback, int port)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1, off = 0;
    if (fd < 0) return -1;
    struct sockaddr_in6 six = {.sin6_family = AF_INET6,
                               .sin6_port = htons((uint16_t)port),
                               .sin6_addr = loopback ? in6addr_loopback : in6addr_any};
    struct sockaddr_in four = {.sin_family = AF_INET,
                               .sin_port = htons((uint16_t)port),
                               .sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY)};
    const struct sockaddr *address = family == AF_INET6 ? (void *)&six : (void *)&four;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        (family != AF_INET6 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0) &&
        bind(fd, address, family == AF_INET6 ? sizeof six : sizeof four) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* Two connections to every rank, and callers that wait: as many descriptors as this process may have. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

nib_status nib_tcp_listen(const nib_ranks *self, int port, int ports, int *listener, int *bound)
{
    bool local = self->local_size == self->size && is_loopback(self->address);
    bool six = strchr(self->address, ':') != NULL;
    *listener = -1;
    raise_descriptor_limit();
    for (int i = 0; i < ports && *listener < 0; i++) {
        bool four = local && !six; /* elsewhere IPv6 takes callers of IPv4 too, if the machine has it */
        *listener = open_listener(four ? AF_INET : AF_INET6, local, port + i);
        if (*listener < 0 && !four && errno != EADDRINUSE) *listener = open_listener(AF_INET, local, port + i);
    }
    if (*listener < 0)
        return NIB_FAIL(NIB_ERROR_DEVICE, "rank %d cannot listen on port %d%s: %s; free it, or set another MASTER_PORT",
                        self->rank, port, ports > 1 ? " or those after it" : "", strerror(errno));
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    if (getsockname(*listener, (struct sockaddr *)&name, &length) != 0) {
        close(*listener);
        return NIB_FAIL(NIB_ERROR_DEVICE, "a listening socket has no port: %s", strerror(errno));
    }
    *bound = ntohs(name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&name)->sin6_port
                                              : ((struct sockaddr_in *)&name)->sin_port);
    return NIB_OK;
}

/* Ranks may wait for each other for minutes, and be told to stop meanwhile. */
static nib_status not_stopped(void)
{
    if (!nib_signals_stop_requested()) return NIB_OK;
    return NIB_FAIL(NIB_STOPPED, "stopped by signal %d before all ranks had come; start again with --resume",
                    nib_signals_last());
}

nib_status nib_tcp_write(int fd, const void *data, size_t bytes, double until)
{
    for (const char *at = data; bytes > 0;) {
        ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);
        if (sent > 0) {
            at += sent;
            bytes -= (size_t)sent;
        } else if (sent < 0 && errno != EINTR && errno != EAGAIN) {
            return NIB_FAIL(NIB_ERROR_DEVICE, "the connection is lost: %s", strerror(errno));
        } else if (nib_train_clock() >= until) {
            return NIB_FAIL(NIB_ERROR_DEVICE, "nothing is taken at the other end");
        } else {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            (void)poll(&wait, 1, wait_ms(until));
        }
    }
    return NIB_OK;
}

nib_status nib_tcp_read(int fd, void *data, size_t bytes, double until)
{
    for (char *at = data; bytes > 0;) {
        ssize_t got = recv(fd, at, bytes, 0);
        if (got > 0) {
            at += got;
            bytes -= (size_t)got;
        } else if (got == 0 || (errno != EINTR && errno != EAGAIN)) {
            return NIB_FAIL(NIB_ERROR_DEVICE, "the connection was closed%s%s", got == 0 ? "" : ": ",
                            got == 0 ? "" : strerror(errno));
        } else if (nib_train_clock() >= until) {
            return NIB_FAIL(NIB_ERROR_DEVICE, "nothing came");
        } else {
            struct pollfd wait = {.fd = fd, .events = POLLIN};
            NIB_TRY(not_stopped());
            (void)poll(&wait, 1, wait_ms(until));
        }
    }
    return NIB_OK;
}

/* A caller that has been greeted. */
typedef struct {
    int fd;
    double until;
    size_t got;
    uint8_t greeting[NIB_GREETING_BYTES], hello[NIB_HELLO_BYTES];
} caller;

typedef struct {
    const nib_ranks *self;
    int listener;
    nib_channel channel;
    int *peer;
    nib_endpoint *endpoint;
    caller pending[MAX_PENDING];
    int count; /* oldest first */
    int64_t strangers;
} reception;

static void drop(reception *r, int which)
{
    close(r->pending[which].fd);
    memmove(&r->pending[which], &r->pending[which + 1], (size_t)(--r->count - which) * sizeof r->pending[0]);
}

static nib_status take_callers(reception *r)
{
    for (int i = 0; i < MAX_PENDING; i++) {
        int fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE) && r->count > 0) {
            drop(r, 0);
            continue;
        }
        if (fd < 0) return NIB_OK;
        if (r->count == MAX_PENDING) drop(r, 0);
        caller *c = &r->pending[r->count];
        *c = (caller){.fd = fd, .until = nib_train_clock() + PENDING_SECONDS};
        nib_status status = nib_greeting_make(c->greeting);
        if (status != NIB_OK || send(fd, c->greeting, sizeof c->greeting, MSG_NOSIGNAL) != sizeof c->greeting)
            close(fd);
        else
            r->count++;
        NIB_TRY(status);
    }
    return NIB_OK;
}

static bool has_left(int fd)
{
    char byte;
    ssize_t got = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

/* The caller's address as others can use it: "" if it called over this machine's own loopback. */
static void note_endpoint(const caller *c, int port, nib_endpoint *endpoint)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    char text[INET6_ADDRSTRLEN + 32] = "";
    *endpoint = (nib_endpoint){.port = port};
    if (getpeername(c->fd, (struct sockaddr *)&name, &length) == 0)
        (void)getnameinfo((struct sockaddr *)&name, length, text, sizeof text, NULL, 0, NI_NUMERICHOST);
    const char *plain = strncmp(text, "::ffff:", 7) == 0 ? text + 7 : text;
    if (!is_loopback(plain)) snprintf(endpoint->address, sizeof endpoint->address, "%.59s", plain);
}

/* Judges a caller whose hello is complete, and answers. */
static void receive_caller(reception *r, int which)
{
    caller *c = &r->pending[which];
    nib_hello hello;
    uint8_t answer[NIB_ANSWER_BYTES];
    if (!nib_hello_read(r->self, c->greeting, c->hello, &hello)) {
        r->strangers++;
        drop(r, which);
        return;
    }
    nib_verdict verdict = nib_hello_judge(r->self, &hello);
    bool above = verdict == NIB_WELCOME && hello.rank > r->self->rank;
    if (verdict == NIB_WELCOME && (!above || hello.channel != r->channel || r->peer[hello.rank] >= 0))
        verdict = NIB_RANK_TAKEN;
    nib_answer_make(r->self, c->hello, verdict, answer);
    bool answered = send(c->fd, answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer;
    if (verdict != NIB_WELCOME)
        nib_warn("a process that says it is rank %d of %d, attempt %d, was refused (%s)", hello.rank, hello.size,
                 hello.attempt, hello.version);
    if (verdict != NIB_WELCOME || !answered) {
        drop(r, which);
        return;
    }
    if (r->endpoint != NULL) note_endpoint(c, hello.port, &r->endpoint[hello.rank]);
    r->peer[hello.rank] = c->fd;
    tune(c->fd);
    c->fd = -1;
    drop(r, which);
}

static void listen_to_callers(reception *r, const struct pollfd *fds)
{
    double now = nib_train_clock();
    for (int i = r->count - 1; i >= 0; i--) {
        caller *c = &r->pending[i];
        if (fds[i].revents == 0) {
            if (now > c->until) drop(r, i);
            continue;
        }
        ssize_t got = recv(c->fd, c->hello + c->got, sizeof c->hello - c->got, 0);
        if (got > 0) c->got += (size_t)got;
        if (got > 0 && c->got == sizeof c->hello)
            receive_caller(r, i);
        else if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            drop(r, i);
    }
}

/* NIB_OK with *missing 0 once all have come. */
static nib_status count_missing(const reception *r, nib_control *control, int *missing)
{
    *missing = 0;
    NIB_TRY(not_stopped());
    if (nib_control_failed(control)) return nib_control_verdict(control, 0, NIB_ERROR_DEVICE);
    for (int p = r->self->rank + 1; p < r->self->size; p++) {
        if (r->peer[p] < 0)
            ++*missing;
        else if (control == NULL && has_left(r->peer[p]))
            return NIB_FAIL(NIB_ERROR_DEVICE, "rank %d died before all ranks had come", p);
    }
    return NIB_OK;
}

static nib_status name_missing(const reception *r, int missing)
{
    char list[256] = "";
    int named = 0;
    for (int p = r->self->rank + 1; p < r->self->size && named < 8; p++)
        if (r->peer[p] < 0 && ++named)
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%d", named > 1 ? ", " : "", p);
    return NIB_FAIL(NIB_ERROR_DEVICE, "%d of %d ranks did not come: %s%s; see what became of them", missing,
                    r->self->size, list, missing > named ? ", ..." : "");
}

nib_status nib_tcp_accept(const nib_ranks *self, int listener, nib_channel channel, nib_control *control, double until,
                          int *peer, nib_endpoint *endpoint)
{
    reception *r = nib_calloc(1, sizeof *r);
    if (r == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to receive the other ranks");
    *r = (reception){.self = self, .listener = listener, .channel = channel, .peer = peer, .endpoint = endpoint};
    nib_status status = NIB_OK;
    for (;;) {
        struct pollfd fds[MAX_PENDING + 1];
        int missing, heard = r->count;
        NIB_TRY_GOTO(count_missing(r, control, &missing), done);
        if (missing == 0) break;
        if (nib_train_clock() > until) {
            status = name_missing(r, missing);
            break;
        }
        for (int i = 0; i < heard; i++) fds[i] = (struct pollfd){.fd = r->pending[i].fd, .events = POLLIN};
        fds[heard] = (struct pollfd){.fd = listener, .events = POLLIN};
        (void)poll(fds, (nfds_t)heard + 1, wait_ms(until));
        listen_to_callers(r, fds);
        if (fds[heard].revents != 0) NIB_TRY_GOTO(take_callers(r), done);
    }
done:
    if (r->strangers > 0)
        nib_warn("%lld connections that do not know the job's token were dropped", (long long)r->strangers);
    while (r->count > 0) drop(r, 0);
    nib_free(r);
    return status;
}

/* One connection attempt to one address. *fd -1 if it cannot be made, or is not answered. */
static nib_status connect_to(const struct addrinfo *address, double until, int *fd)
{
    *fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0) return NIB_FAIL(NIB_ERROR_DEVICE, "no socket: %s", strerror(errno));
    int error = connect(*fd, address->ai_addr, address->ai_addrlen) == 0 ? 0 : errno;
    socklen_t length = sizeof error;
    if (error == EINPROGRESS) {
        struct pollfd wait = {.fd = *fd, .events = POLLOUT};
        double give_up = nib_train_clock() + 2;
        while (wait.revents == 0 && nib_train_clock() < (give_up < until ? give_up : until))
            (void)poll(&wait, 1, wait_ms(until));
        error = ETIMEDOUT;
        if (wait.revents != 0) (void)getsockopt(*fd, SOL_SOCKET, SO_ERROR, &error, &length);
    }
    if (error == 0) return NIB_OK;
    close(*fd);
    *fd = -1;
    return NIB_FAIL(NIB_ERROR_DEVICE, "%s", strerror(error));
}

static nib_status shake_hands(const nib_ranks *self, int fd, nib_channel channel, int own_port, bool *hopeless)
{
    uint8_t greeting[NIB_GREETING_BYTES], hello[NIB_HELLO_BYTES], answer[NIB_ANSWER_BYTES];
    double until = nib_train_clock() + PENDING_SECONDS;
    *hopeless = false;
    NIB_TRY(nib_tcp_read(fd, greeting, sizeof greeting, until));
    if (!nib_greeting_is_ours(greeting)) return NIB_FAIL(NIB_ERROR_DEVICE, "another program listens there");
    NIB_TRY(nib_hello_make(self, greeting, channel, own_port, hello));
    NIB_TRY(nib_tcp_write(fd, hello, sizeof hello, until));
    NIB_TRY(nib_tcp_read(fd, answer, sizeof answer, until));
    return nib_answer_read(self, hello, answer, hopeless);
}

static nib_status try_port(const nib_ranks *self, const char *address, int port, nib_channel channel, int own_port,
                           double until, int *peer, bool *hopeless)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list;
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    int error = getaddrinfo(address, service, &hints, &list);
    if (error != 0) return NIB_FAIL(NIB_ERROR_DEVICE, "%s", gai_strerror(error));
    nib_status status = NIB_ERROR_DEVICE;
    *hopeless = false;
    for (const struct addrinfo *at = list; at != NULL && !*hopeless && status != NIB_OK; at = at->ai_next) {
        int fd;
        status = connect_to(at, until, &fd);
        if (status == NIB_OK) status = shake_hands(self, fd, channel, own_port, hopeless);
        if (status == NIB_OK) {
            tune(fd);
            *peer = fd;
        } else if (fd >= 0) {
            close(fd);
        }
    }
    freeaddrinfo(list);
    return status;
}

nib_status nib_tcp_call(const nib_ranks *self, int to, const char *address, int port, int ports, nib_channel channel,
                        int own_port, nib_control *control, double until, int *peer)
{
    char last[512] = "";
    bool hopeless = false;
    int pause = 5;
    for (int i = 0; nib_train_clock() < until && !hopeless; i = (i + 1) % ports) {
        NIB_TRY(not_stopped());
        if (nib_control_failed(control)) return nib_control_verdict(control, 0, NIB_ERROR_DEVICE);
        if (try_port(self, address, port + i, channel, own_port, until, peer, &hopeless) == NIB_OK) return NIB_OK;
        if (i == 0 || hopeless) snprintf(last, sizeof last, "%.500s", nib_error_message());
        if (i + 1 < ports || hopeless) continue;
        (void)poll(NULL, 0, pause);
        pause = pause * 2 < MAX_BACKOFF_MS ? pause * 2 : MAX_BACKOFF_MS;
    }
    return NIB_FAIL(NIB_ERROR_DEVICE, "rank %d does not come together with rank %d at %s port %d: %s", self->rank, to,
                    address, port, last);
}
