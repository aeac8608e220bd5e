#include "collectives_check.h"
#include "base/memory.h"
#include "base/random.h"
#include "train.h"

#define MOST_ROOTS 16 /* of broadcasts: every one costs a round trip */

static uint64_t word(nib_check_kind kind, int from, int to, int i)
{
    return nib_random_key((uint64_t)kind << 32 | (uint64_t)from, (uint64_t)to << 32 | (uint64_t)i);
}

void nib_check_fill(uint64_t *words, nib_check_kind kind, int from, int to)
{
    for (int i = 0; i < NIB_CHECK_WORDS; i++) words[i] = word(kind, from, to, i);
}

void nib_check_compare(const uint64_t *words, nib_check_kind kind, int from, int to, int64_t *wrong)
{
    for (int i = 0; i < NIB_CHECK_WORDS && *wrong == 0; i++)
        if (words[i] != word(kind, from, to, i)) *wrong = 1 + (int64_t)kind * NIB_MAX_RANKS + from;
}

nib_status nib_check_report(nib_collectives *c, int64_t wrong, const char *transport)
{
    static const char *const names[NIB_CHECK_KINDS] = {"all_to_all", "all_gather", "broadcast", "send", "a move"};
    int64_t *all = nib_calloc((size_t)c->size, sizeof *all);
    if (all == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to check %d ranks", c->size);
    nib_status status = nib_gather_values(c, wrong, all);
    for (int r = 0; r < c->size && status == NIB_OK; r++)
        if (all[r] != 0)
            status = NIB_FAIL(NIB_ERROR_DEVICE, "%s over %s from rank %d to rank %d delivers wrong bytes",
                              names[(all[r] - 1) / NIB_MAX_RANKS % NIB_CHECK_KINDS], transport,
                              (int)((all[r] - 1) % NIB_MAX_RANKS), r);
    nib_free(all);
    return status;
}

typedef struct {
    uint64_t *sent, *received; /* [size][NIB_CHECK_WORDS] */
    nib_part *send, *receive;  /* [size] views of them */
} buffers;

/* A ring of sends, to rank + way: the even ranks first, so that none waits for another in a circle. */
static nib_status send_around(nib_collectives *c, const buffers *b, int way, int64_t *wrong)
{
    int next = (c->rank + way + c->size) % c->size, before = (c->rank - way + c->size) % c->size;
    size_t bytes = NIB_CHECK_WORDS * sizeof *b->sent;
    nib_check_fill(b->sent, NIB_CHECK_SEND, c->rank, next);
    if (c->rank % 2 == 0) NIB_TRY(c->send(c, next, b->sent, bytes));
    NIB_TRY(c->receive(c, before, b->received, bytes));
    if (c->rank % 2 != 0) NIB_TRY(c->send(c, next, b->sent, bytes));
    nib_check_compare(b->received, NIB_CHECK_SEND, before, c->rank, wrong);
    return NIB_OK;
}

static nib_status exchange(nib_collectives *c, const buffers *b, int64_t *wrong)
{
    int64_t W = NIB_CHECK_WORDS;
    for (int p = 0; p < c->size; p++) nib_check_fill(b->sent + p * W, NIB_CHECK_ALL_TO_ALL, c->rank, p);
    NIB_TRY(c->all_to_all(c, b->send, b->receive));
    for (int p = 0; p < c->size; p++) nib_check_compare(b->received + p * W, NIB_CHECK_ALL_TO_ALL, p, c->rank, wrong);
    nib_check_fill(b->received + c->rank * W, NIB_CHECK_ALL_GATHER, c->rank, 0);
    NIB_TRY(c->all_gather(c, b->receive));
    for (int p = 0; p < c->size; p++) nib_check_compare(b->received + p * W, NIB_CHECK_ALL_GATHER, p, 0, wrong);
    int roots = c->size < MOST_ROOTS ? c->size : MOST_ROOTS;
    for (int i = 0; i < roots; i++) {
        int root = (int)((int64_t)i * (c->size - 1) / (roots > 1 ? roots - 1 : 1));
        if (c->rank == root) nib_check_fill(b->received, NIB_CHECK_BROADCAST, root, 0);
        NIB_TRY(c->broadcast(c, b->received, NIB_CHECK_WORDS * sizeof *b->received, root));
        nib_check_compare(b->received, NIB_CHECK_BROADCAST, root, 0, wrong);
    }
    NIB_TRY(send_around(c, b, 1, wrong));
    NIB_TRY(send_around(c, b, -1, wrong));
    return c->barrier(c);
}

nib_status nib_collectives_check(nib_collectives *c)
{
    size_t size = (size_t)c->size;
    buffers b = {.sent = nib_calloc(size * NIB_CHECK_WORDS, sizeof *b.sent),
                 .received = nib_calloc(size * NIB_CHECK_WORDS, sizeof *b.received),
                 .send = nib_calloc(size, sizeof *b.send),
                 .receive = nib_calloc(size, sizeof *b.receive)};
    int64_t wrong = 0;
    nib_status status = NIB_OK;
    if (b.sent == NULL || b.received == NULL || b.send == NULL || b.receive == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to check %zu ranks", size);
        goto done;
    }
    for (size_t p = 0; p < size; p++) {
        b.send[p] = (nib_part){b.sent + p * NIB_CHECK_WORDS, NIB_CHECK_WORDS * sizeof *b.sent};
        b.receive[p] = (nib_part){b.received + p * NIB_CHECK_WORDS, NIB_CHECK_WORDS * sizeof *b.received};
    }
    NIB_TRY_GOTO(c->barrier(c), done);
    const double begun = nib_train_clock();
    NIB_TRY_GOTO(exchange(c, &b, &wrong), done);
    status = nib_check_report(c, wrong, c->name);
    c->check_seconds = nib_train_clock() - begun;
done:
    nib_free(b.sent);
    nib_free(b.received);
    nib_free(b.send);
    nib_free(b.receive);
    return status;
}
