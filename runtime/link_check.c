#include "link_check.h"
#include "base/memory.h"
#include "base/random.h"
#include "train.h"

#include <math.h>
#include <stdio.h>

#define ROUND_TRIPS 24
#define ACK         ((size_t)8)
#define LEAST_BYTES ((size_t)1 << 16)
#define MOST_BYTES  ((size_t)1 << 26)
#define GROWTH      4
#define LONG_ENOUGH 5e-3 /* seconds of a message, after which none is larger */
#define REPEATS     4    /* of the largest: the quickest counts, since other work only makes it slower */
#define TOO_LONG    20   /* times as long: not repeated */
#define MANY_RANKS  256  /* of more, messages are timed over less, so that all is done within a minute */

/* What carries bytes between this rank and one other: the collectives, from out and into in; or devices, from and into
 * their copies of both. */
typedef struct {
    nib_collectives *c;
    nib_ops *ops;
    nib_device_exchange *exchange; /* NULL: the collectives */
    uint64_t *out, *in;            /* host [capacity] */
    size_t capacity;               /* bytes */
    char *device;                  /* [2][MOST_BYTES]: out, in */
    double long_enough;
} carrier;

static nib_status carry_on_device(carrier *x, bool send, int peer, size_t bytes)
{
    nib_move move = {send, peer, x->device + (send ? 0 : MOST_BYTES), bytes};
    NIB_TRY(nib_device_exchange_run(x->exchange, x->ops->queue, &move, 1));
    return x->ops->synchronize(x->ops);
}

static nib_status send(carrier *x, int to, size_t bytes)
{
    return x->exchange != NULL ? carry_on_device(x, true, to, bytes) : x->c->send(x->c, to, x->out, bytes);
}

static nib_status receive(carrier *x, int from, size_t bytes)
{
    return x->exchange != NULL ? carry_on_device(x, false, from, bytes) : x->c->receive(x->c, from, x->in, bytes);
}

static uint64_t word(uint64_t key, size_t i) { return key + i * 0x9e3779b97f4a7c15u; }

static uint64_t key_of(int from, int to) { return nib_random_key((uint64_t)from, (uint64_t)to); }

static nib_status reserve(carrier *x, size_t bytes)
{
    if (bytes <= x->capacity) return NIB_OK;
    nib_free(x->out);
    nib_free(x->in);
    x->capacity = bytes;
    x->out = nib_calloc(1, bytes);
    x->in = nib_calloc(1, bytes);
    if (x->out == NULL || x->in == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for messages of %zu bytes between ranks", bytes);
    return NIB_OK;
}

/* The message to `to`: known, and another for every pair and direction. Makes room for its answer, too. */
static nib_status fill(carrier *x, int to, size_t bytes)
{
    NIB_TRY(reserve(x, bytes));
    const uint64_t key = key_of(x->c->rank, to);
    for (size_t i = 0; i < bytes / sizeof key; i++) x->out[i] = word(key, i);
    return x->exchange != NULL ? x->ops->upload(x->ops, x->device, x->out, bytes) : NIB_OK;
}

static nib_status compare(carrier *x, int from, size_t bytes, bool *wrong)
{
    const uint64_t key = key_of(from, x->c->rank);
    if (x->exchange != NULL) NIB_TRY(x->ops->download(x->ops, x->in, x->device + MOST_BYTES, bytes));
    for (size_t i = 0; i < bytes / sizeof key; i++) *wrong = *wrong || x->in[i] != word(key, i);
    return NIB_OK;
}

/* Words between the two, beside what is measured: always by the collectives. */
static nib_status tell(carrier *x, int to, int64_t value) { return x->c->send(x->c, to, &value, sizeof value); }

static nib_status hear(carrier *x, int from, int64_t *value) { return x->c->receive(x->c, from, value, sizeof *value); }

static float rate(size_t bytes, double seconds, float latency)
{
    return (float)((double)bytes / fmax(seconds - (double)latency, seconds / 2));
}

/* A message of known bytes there and one back: the link keeps the higher rate. *longest: seconds of the longer. */
static nib_status exchange(carrier *x, int peer, size_t bytes, nib_link *link, double *longest, bool *wrong)
{
    int64_t ready;
    NIB_TRY(tell(x, peer, (int64_t)bytes));
    NIB_TRY(fill(x, peer, bytes));
    NIB_TRY(hear(x, peer, &ready));
    const double begun = nib_train_clock();
    NIB_TRY(send(x, peer, bytes));
    NIB_TRY(receive(x, peer, ACK));
    const double there = nib_train_clock() - begun;
    NIB_TRY(hear(x, peer, &ready));
    const double turned = nib_train_clock();
    NIB_TRY(send(x, peer, ACK));
    NIB_TRY(receive(x, peer, bytes));
    const double back = nib_train_clock() - turned;
    NIB_TRY(compare(x, peer, bytes, wrong));
    link->there = fmaxf(link->there, rate(bytes, there, link->latency));
    link->back = fmaxf(link->back, rate(bytes, back, link->latency));
    *longest = fmax(there, back);
    return NIB_OK;
}

/* The lower rank of a pair says what is done, and has the clock. */
static nib_status lead(carrier *x, int peer, nib_link *link)
{
    double least = 1e9, longest = 0;
    int64_t ready, theirs_wrong;
    bool wrong = false;
    size_t bytes = LEAST_BYTES;
    NIB_TRY(fill(x, peer, ACK));
    NIB_TRY(hear(x, peer, &ready));
    for (int i = 0; i < ROUND_TRIPS; i++) {
        const double begun = nib_train_clock();
        NIB_TRY(send(x, peer, ACK));
        NIB_TRY(receive(x, peer, ACK));
        least = fmin(least, nib_train_clock() - begun);
    }
    link->latency = (float)(least / 2);
    NIB_TRY(exchange(x, peer, bytes, link, &longest, &wrong));
    while (longest < x->long_enough && bytes < MOST_BYTES)
        NIB_TRY(exchange(x, peer, bytes *= GROWTH, link, &longest, &wrong));
    for (int i = 1; i < REPEATS && longest < TOO_LONG * x->long_enough; i++)
        NIB_TRY(exchange(x, peer, bytes, link, &longest, &wrong));
    NIB_TRY(tell(x, peer, 0));
    NIB_TRY(hear(x, peer, &theirs_wrong));
    link->wrong = (uint8_t)((theirs_wrong != 0 ? 1 : 0) | (wrong ? 2 : 0));
    return NIB_OK;
}

static nib_status follow(carrier *x, int peer)
{
    int64_t bytes;
    bool wrong = false;
    NIB_TRY(fill(x, peer, ACK));
    NIB_TRY(tell(x, peer, 0));
    for (int i = 0; i < ROUND_TRIPS; i++) {
        NIB_TRY(receive(x, peer, ACK));
        NIB_TRY(send(x, peer, ACK));
    }
    for (;;) {
        NIB_TRY(hear(x, peer, &bytes));
        if (bytes == 0) return tell(x, peer, wrong);
        if (bytes < 0 || (size_t)bytes > MOST_BYTES)
            return NIB_FAIL(NIB_ERROR_DEVICE, "rank %d asks rank %d for a message of %lld bytes", peer, x->c->rank,
                            (long long)bytes);
        NIB_TRY(fill(x, peer, (size_t)bytes));
        NIB_TRY(tell(x, peer, 0));
        NIB_TRY(receive(x, peer, (size_t)bytes));
        NIB_TRY(send(x, peer, ACK));
        NIB_TRY(compare(x, peer, (size_t)bytes, &wrong));
        NIB_TRY(tell(x, peer, 0));
        NIB_TRY(receive(x, peer, ACK));
        NIB_TRY(send(x, peer, (size_t)bytes));
    }
}

/* Of an odd number of ranks one has none: the number itself. The circle method, where the last stays in its place. */
static int partner(int rank, int size, int round)
{
    const int odd = (size - 1) | 1; /* seats that move */
    if (rank == odd) return round * ((odd + 1) / 2) % odd;
    const int other = (round - rank + odd) % odd;
    return other != rank ? other : odd;
}

static nib_status meet_all(carrier *x, nib_link *own)
{
    const int size = x->c->size, rank = x->c->rank, rounds = (size - 1) | 1;
    char note[64];
    for (int round = 0; round < rounds; round++) {
        const int peer = partner(rank, size, round);
        if (peer >= size) continue;
        snprintf(note, sizeof note, "the link with rank %d over %s", peer, x->exchange != NULL ? "NCCL" : x->c->name);
        x->c->note(x->c, note);
        nib_status status = rank < peer ? lead(x, peer, &own[peer]) : follow(x, peer);
        if (status != NIB_OK) return nib_error_context(status, "rank %d, %s", rank, note);
    }
    return x->c->barrier(x->c);
}

/* own [size]: pairs that this rank has led. */
static nib_status bring_to_first(nib_collectives *c, nib_link *own, nib_link *link)
{
    if (c->rank > 0) return c->send(c, 0, own, (size_t)c->size * sizeof *own);
    for (int a = 0; a < c->size; a++) {
        if (a > 0) NIB_TRY(c->receive(c, a, own, (size_t)c->size * sizeof *own));
        for (int b = a + 1; b < c->size; b++) link[nib_link_index(a, b)] = own[b];
    }
    return NIB_OK;
}

nib_status nib_link_check(nib_collectives *c, nib_ops *ops, nib_device_exchange *exchange, nib_link *link)
{
    carrier x = {.c = c, .ops = ops, .exchange = exchange, .long_enough = LONG_ENOUGH};
    void *device = NULL;
    nib_status status = NIB_OK;
    if (c->size > MANY_RANKS) x.long_enough *= (double)MANY_RANKS / c->size;
    nib_link *own = nib_calloc((size_t)c->size, sizeof *own);
    if (own == NULL) status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to check the links of %d ranks", c->size);
    if (status == NIB_OK && exchange != NULL)
        status = ops->allocate(ops, "the check of links", 2 * MOST_BYTES, &device);
    x.device = device;
    if (status == NIB_OK) status = meet_all(&x, own);
    if (status == NIB_OK) status = bring_to_first(c, own, link);
    if (device != NULL) ops->release(ops, device, 2 * MOST_BYTES);
    nib_free(own);
    nib_free(x.out);
    nib_free(x.in);
    return status;
}
