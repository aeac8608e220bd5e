#include "mpi/watch.h"
#include "base/memory.h"
#include "tcp_rendezvous.h"
#include "train.h"

#include <errno.h>
#include <ifaddrs.h>
#include <mpi.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define JOIN_SECONDS 60.0
#define CALL_SECONDS 2.0 /* to one address, before the next is tried */
#define ADDRESSES    32

/* What rank 0 tells the others by MPI: a job's secret, and where it can be reached. A machine may have addresses that
 * others do not reach, or have too; the handshake tells who has answered. */
typedef struct {
    uint8_t token[32];
    int32_t port, addresses;
    char address[ADDRESSES][64]; /* numeric */
} meeting;

static bool is_of_use(const struct ifaddrs *at)
{
    if (at->ifa_addr == NULL || !(at->ifa_flags & IFF_UP) || (at->ifa_flags & IFF_LOOPBACK)) return false;
    if (at->ifa_addr->sa_family != AF_INET6) return at->ifa_addr->sa_family == AF_INET;
    return !IN6_IS_ADDR_LINKLOCAL(&((struct sockaddr_in6 *)at->ifa_addr)->sin6_addr);
}

static nib_status list_addresses(meeting *m)
{
    struct ifaddrs *list;
    if (getifaddrs(&list) != 0)
        return NIB_FAIL(NIB_ERROR_DEVICE, "the addresses of this machine cannot be listed: %s", strerror(errno));
    for (const struct ifaddrs *at = list; at != NULL && m->addresses < ADDRESSES; at = at->ifa_next) {
        socklen_t length = is_of_use(at) && at->ifa_addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                                                : sizeof(struct sockaddr_in);
        if (is_of_use(at) && getnameinfo(at->ifa_addr, length, m->address[m->addresses], sizeof m->address[0], NULL, 0,
                                         NI_NUMERICHOST) == 0)
            m->addresses++;
    }
    freeifaddrs(list);
    if (m->addresses > 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DEVICE, "this machine has no address but its own loopback's, and the job is on several");
}

static nib_status announce(nib_ranks *self, meeting *m, int *listener)
{
    int port;
    bool here = self->local_size == self->size;
    strcpy(self->address, here ? "127.0.0.1" : "");
    NIB_TRY(nib_tcp_listen(self, 0, 1, listener, &port));
    m->port = port;
    if (getrandom(m->token, sizeof m->token, 0) != sizeof m->token)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "the system gives no random numbers: %s", strerror(errno));
    if (!here) return list_addresses(m);
    strcpy(m->address[m->addresses++], self->address);
    return NIB_OK;
}

static nib_status call(const nib_ranks *self, const meeting *m, int *peer)
{
    double until = nib_train_clock() + JOIN_SECONDS;
    nib_status status = NIB_ERROR_DEVICE;
    for (int i = 0; status == NIB_ERROR_DEVICE && nib_train_clock() < until; i = (i + 1) % m->addresses)
        status = nib_tcp_call(self, 0, m->address[i], m->port, 1, NIB_CHANNEL_CONTROL, 0, NULL,
                              nib_train_clock() + CALL_SECONDS, peer);
    return status;
}

/* peer [size], all -1 */
static nib_status meet(nib_ranks *self, int *listener, int *peer)
{
    meeting m = {.port = 0};
    nib_status status = self->rank == 0 ? announce(self, &m, listener) : NIB_OK;
    if (status != NIB_OK) return status;
    if (MPI_Bcast(&m, sizeof m, MPI_BYTE, 0, MPI_COMM_WORLD) != MPI_SUCCESS)
        return NIB_FAIL(NIB_ERROR_DEVICE, "rank %d cannot be told by MPI where rank 0 listens", self->rank);
    memcpy(self->token, m.token, sizeof self->token);
    if (self->rank > 0) return call(self, &m, &peer[0]);
    return nib_tcp_accept(self, *listener, NIB_CHANNEL_CONTROL, NULL, nib_train_clock() + JOIN_SECONDS, peer, NULL);
}

nib_status nib_mpi_watch(const nib_ranks *ranks, nib_control **control)
{
    nib_ranks self = *ranks;
    int listener = -1;
    int *peer = nib_calloc((size_t)self.size, sizeof *peer);
    if (peer == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d ranks", self.size);
    for (int p = 0; p < self.size; p++) peer[p] = -1;
    nib_status status = meet(&self, &listener, peer);
    if (status == NIB_OK) {
        MPI_Barrier(MPI_COMM_WORLD); /* nobody is silent while another still calls */
        status = nib_control_start(&self, peer, &nib_control_job_limits, control);
    } else if (status == NIB_ERROR_DEVICE) {
        status = nib_error_context(status, "the ranks of an MPI job are watched over TCP");
    }
    if (listener >= 0) close(listener);
    nib_free(peer);
    return status;
}
