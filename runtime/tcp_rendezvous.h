/* How the ranks of a job find each other over TCP: rank 0 listens where the environment says, the others call it, and
 * it tells each where all others listen. Strangers on a port (a scanner, random bytes, a connection that says nothing,
 * a thousand of them) are dropped without disturbing those who belong to the job.
 *
 * Sockets are non-blocking and close on exec.
 */
#ifndef NIB_TCP_RENDEZVOUS_H
#define NIB_TCP_RENDEZVOUS_H

#include "tcp_control.h"
#include "tcp_handshake.h"

typedef struct {
    char address[60]; /* numeric; "" for the host of rank 0, however it is reached */
    int32_t port;
} nib_endpoint;

/* Listens on the first of `ports` ports from `port` on that is free (port 0: any), on this machine alone if the whole
 * job is there. NIB_ERROR_DEVICE. */
nib_status nib_tcp_listen(const nib_ranks *self, int port, int ports, int *listener, int *bound);
/* Accepts the channel of every rank above this one into peer[rank] (-1 until then). endpoint [size], or NULL: where
 * they say that they listen. Until `until` (nib_train_clock), or a verdict of control (may be NULL). */
nib_status nib_tcp_accept(const nib_ranks *self, int listener, nib_channel channel, nib_control *control, double until,
                          int *peer, nib_endpoint *endpoint);
/* Calls rank `to` at one of `ports` ports of address, again and again until it answers. own_port: where this rank
 * listens. */
nib_status nib_tcp_call(const nib_ranks *self, int to, const char *address, int port, int ports, nib_channel channel,
                        int own_port, nib_control *control, double until, int *peer);

/* Whole messages on a non-blocking socket. NIB_ERROR_DEVICE if it closes, or at `until`. */
nib_status nib_tcp_write(int fd, const void *data, size_t bytes, double until);
nib_status nib_tcp_read(int fd, void *data, size_t bytes, double until);

#endif
