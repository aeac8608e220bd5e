#include "collectives_check.h"
#include "base/memory.h"
#include "base/random.h"

#define WORDS 256 /* to each peer */

/* The collectives that are checked, in this order. */
static const char *const names[] = {"all_to_all", "all_gather", "broadcast", "send"};

/* What rank `from` gives rank `to`: other bits for every pair and collective. */
static uint64_t word(int collective, int from, int to, int i)
{
    return nib_random_key((uint64_t)collective << 32 | (uint64_t)from, (uint64_t)to << 32 | (uint64_t)i);
}

static void fill(uint64_t *words, int collective, int from, int to)
{
    for (int i = 0; i < WORDS; i++) words[i] = word(collective, from, to, i);
}

/* Code of the first wrong value seen: 0, or collective and sender. */
static void compare(const uint64_t *words, int collective, int from, int to, int64_t *wrong)
{
    for (int i = 0; i < WORDS && *wrong == 0; i++)
        if (words[i] != word(collective, from, to, i)) *wrong = 1 + (int64_t)collective * NIB_MAX_RANKS + from;
}

typedef struct {
    uint64_t *sent, *received; /* [size][WORDS] */
    nib_part *send, *receive;  /* [size] views of them */
} buffers;

static nib_status exchange(nib_collectives *c, const buffers *b, int64_t *wrong)
{
    for (int p = 0; p < c->size; p++) fill(b->sent + (int64_t)p * WORDS, 0, c->rank, p);
    NIB_TRY(c->all_to_all(c, b->send, b->receive));
    for (int p = 0; p < c->size; p++) compare(b->received + (int64_t)p * WORDS, 0, p, c->rank, wrong);
    fill(b->received + (int64_t)c->rank * WORDS, 1, c->rank, 0);
    NIB_TRY(c->all_gather(c, b->receive));
    for (int p = 0; p < c->size; p++) compare(b->received + (int64_t)p * WORDS, 1, p, 0, wrong);
    int roots[] = {0, c->size - 1};
    for (int i = 0; i < 2; i++) {
        if (c->rank == roots[i]) fill(b->received, 2, roots[i], 0);
        NIB_TRY(c->broadcast(c, b->received, WORDS * sizeof *b->received, roots[i]));
        compare(b->received, 2, roots[i], 0, wrong);
    }
    /* A ring of sends: the even ranks first, so that none waits for another in a circle. */
    int next = (c->rank + 1) % c->size, before = (c->rank + c->size - 1) % c->size;
    fill(b->sent, 3, c->rank, next);
    if (c->rank % 2 == 0) NIB_TRY(c->send(c, next, b->sent, WORDS * sizeof *b->sent));
    NIB_TRY(c->receive(c, before, b->received, WORDS * sizeof *b->received));
    if (c->rank % 2 != 0) NIB_TRY(c->send(c, next, b->sent, WORDS * sizeof *b->sent));
    compare(b->received, 3, before, c->rank, wrong);
    return c->barrier(c);
}

nib_status nib_collectives_check(nib_collectives *c)
{
    size_t size = (size_t)c->size;
    buffers b = {.sent = nib_calloc(size * WORDS, sizeof *b.sent),
                 .received = nib_calloc(size * WORDS, sizeof *b.received),
                 .send = nib_calloc(size, sizeof *b.send),
                 .receive = nib_calloc(size, sizeof *b.receive)};
    int64_t *all = nib_calloc(size, sizeof *all), wrong = 0;
    nib_status status = NIB_OK;
    if (b.sent == NULL || b.received == NULL || b.send == NULL || b.receive == NULL || all == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to check %zu ranks", size);
        goto done;
    }
    for (size_t p = 0; p < size; p++) {
        b.send[p] = (nib_part){b.sent + p * WORDS, WORDS * sizeof *b.sent};
        b.receive[p] = (nib_part){b.received + p * WORDS, WORDS * sizeof *b.received};
    }
    NIB_TRY_GOTO(exchange(c, &b, &wrong), done);
    NIB_TRY_GOTO(nib_gather_values(c, wrong, all), done);
    for (int r = 0; r < c->size && status == NIB_OK; r++)
        if (all[r] != 0)
            status = NIB_FAIL(NIB_ERROR_DEVICE, "%s over %s from rank %d to rank %d delivers wrong bytes",
                              names[(all[r] - 1) / NIB_MAX_RANKS % 4], c->name, (int)((all[r] - 1) % NIB_MAX_RANKS), r);
done:
    nib_free(b.sent);
    nib_free(b.received);
    nib_free(b.send);
    nib_free(b.receive);
    nib_free(all);
    return status;
}
