#include "gradient_sum.h"
#include "base/memory.h"

#include <string.h>

#define BLOCK_VALUES     (1 << 22) /* of all rows together */
#define ROW_VALUES_LEAST (1 << 16) /* of one row: smaller messages waste the link */

typedef struct {
    nib_collectives *c;
    nib_gradient_tree *tree;
    float *gradient;          /* the backend's */
    int *first;               /* [size + 1] rows of each rank's nodes; the last: rows in all */
    nib_slot_node *node;      /* [rows] */
    int64_t row_values;       /* room of a row */
    float *row;               /* [rows][row_values] this rank's chunk of every node */
    float *own;               /* [nodes of this rank][size * row_values] a block of its own nodes; then of the sum */
    nib_part *send, *receive; /* [size] */
    /* Over devices, row is the backend's memory, and own, send and receive are not needed. */
    nib_device_exchange *exchange; /* NULL: over the host */
    nib_move *move;                /* room for all moves of a block */
    void *queue;                   /* that moves and additions are asked of */
} summation;

struct nib_gradient_stream {
    summation s;
    int64_t from, to; /* values from .. to - 1 have been added in this step */
};

/* Where chunk `part` of `parts` begins in n values: no two differ by more than one value. */
static int64_t chunk_begin(int64_t n, int parts, int part) { return n / parts * part + n % parts * part / parts; }

static nib_slot_order nodes_of(const summation *s, int rank)
{
    int slots = s->tree->order.slots, most;
    return nib_slot_order_of_range(slots, nib_slot_range_of_rank(slots, s->c->size, rank), &most);
}

static int64_t block_values(const summation *s) { return s->row_values * s->c->size; }

static nib_status no_memory(const summation *s)
{
    return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to sum the gradients of %d ranks", s->c->size);
}

static nib_status allocate_on_host(summation *s)
{
    size_t size = (size_t)s->c->size;
    s->send = nib_calloc(size, sizeof *s->send);
    s->receive = nib_calloc(size, sizeof *s->receive);
    s->row = nib_calloc((size_t)s->first[size], (size_t)s->row_values * sizeof *s->row);
    s->own = nib_calloc((size_t)s->tree->order.depth, (size_t)block_values(s) * sizeof *s->own);
    return s->send == NULL || s->receive == NULL || s->row == NULL || s->own == NULL ? no_memory(s) : NIB_OK;
}

static size_t row_bytes(const summation *s) { return (size_t)(s->first[s->c->size] * s->row_values) * sizeof *s->row; }

/* A node goes to every rank, and so does a sum; a row comes for every node, and a sum from every rank. */
static nib_status allocate_on_device(summation *s)
{
    nib_ops *ops = s->tree->ops;
    size_t size = (size_t)s->c->size, depth = (size_t)nodes_of(s, s->c->rank).depth;
    void *block;
    s->move = nib_calloc(depth * size + (size_t)s->first[size] + 2 * size, sizeof *s->move);
    if (s->move == NULL) return no_memory(s);
    NIB_TRY(ops->allocate(ops, "gradient slots", row_bytes(s), &block));
    s->row = block;
    return NIB_OK;
}

/* Room of a row, where rows of n values in all are held. */
static int64_t row_room(int64_t n, int rows, int ranks)
{
    const int64_t whole = n / ranks + 1;
    const int64_t room = BLOCK_VALUES / rows > ROW_VALUES_LEAST ? BLOCK_VALUES / rows : ROW_VALUES_LEAST;
    return room < whole ? room : whole;
}

static nib_status allocate(summation *s)
{
    int size = s->c->size;
    s->first = nib_calloc((size_t)size + 1, sizeof *s->first);
    if (s->first == NULL) return no_memory(s);
    for (int r = 0; r < size; r++) s->first[r + 1] = s->first[r] + nodes_of(s, r).depth;
    int rows = s->first[size];
    s->row_values = row_room(s->tree->n, rows, size);
    s->node = nib_calloc((size_t)rows, sizeof *s->node);
    if (s->node == NULL) return no_memory(s);
    for (int r = 0; r < size; r++) {
        nib_slot_order order = nodes_of(s, r);
        memcpy(s->node + s->first[r], order.node, (size_t)order.depth * sizeof *order.node);
    }
    return s->exchange != NULL ? allocate_on_device(s) : allocate_on_host(s);
}

/* Node i of this rank. */
static float *own_node(const summation *s, int i)
{
    return i == s->tree->order.depth - 1 ? s->gradient : s->tree->partial[i];
}

/* Brings this rank its chunk of every node, one node of each rank at a time. */
static nib_status bring_rows(summation *s, int64_t begin, int64_t n)
{
    int size = s->c->size, rank = s->c->rank, most = 0, depth = s->tree->order.depth;
    int64_t mine = chunk_begin(n, size, rank + 1) - chunk_begin(n, size, rank);
    for (int r = 0; r < size; r++)
        if (s->first[r + 1] - s->first[r] > most) most = s->first[r + 1] - s->first[r];
    for (int i = 0; i < most; i++) {
        float *own = s->own + i * block_values(s);
        if (i < depth)
            NIB_TRY(s->tree->ops->download(s->tree->ops, own, own_node(s, i) + begin, (size_t)n * sizeof(float)));
        for (int r = 0; r < size; r++) {
            int64_t from = chunk_begin(n, size, r), values = chunk_begin(n, size, r + 1) - from;
            bool sends = i < depth, receives = i < s->first[r + 1] - s->first[r];
            float *row = s->row + (s->first[r] + i) * s->row_values;
            s->send[r] = sends ? (nib_part){own + from, (size_t)values * sizeof(float)} : (nib_part){0};
            s->receive[r] = receives ? (nib_part){row, (size_t)mine * sizeof(float)} : (nib_part){0};
        }
        NIB_TRY(s->c->all_to_all(s->c, s->send, s->receive));
    }
    return NIB_OK;
}

static nib_status bring_rows_to_device(summation *s, int64_t begin, int64_t n)
{
    int size = s->c->size, rank = s->c->rank, count = 0;
    int64_t mine = chunk_begin(n, size, rank + 1) - chunk_begin(n, size, rank);
    for (int r = 0; r < size; r++) {
        int64_t from = chunk_begin(n, size, r), values = chunk_begin(n, size, r + 1) - from;
        for (int i = 0; i < s->tree->order.depth; i++)
            s->move[count++] = (nib_move){true, r, own_node(s, i) + begin + from, (size_t)values * sizeof(float)};
        for (int i = s->first[r]; i < s->first[r + 1]; i++)
            s->move[count++] = (nib_move){false, r, s->row + i * s->row_values, (size_t)mine * sizeof(float)};
    }
    return nib_device_exchange_run(s->exchange, s->queue, s->move, count);
}

/* row += what it joins, from the last of `held` backwards. */
static nib_status join(const summation *s, float *row, int joined, float *const *held_end, int64_t values)
{
    const float *left[NIB_SLOT_NODES];
    for (int k = 0; k < joined; k++) left[k] = held_end[-1 - k];
    if (s->exchange != NULL) return s->tree->ops->tree_sum(s->tree->ops, row, joined, left, values, row);
    for (int k = 0; k < joined; k++)
        for (int64_t v = 0; v < values; v++) row[v] += left[k][v];
    return NIB_OK;
}

/* Adds the rows in the tree's order; *sum is the one that holds the sum. */
static nib_status add_rows(const summation *s, int64_t values, float **sum)
{
    nib_slot_order order = nib_slot_order_begin(s->tree->order.slots);
    float *held[NIB_SLOT_NODES];
    for (int i = 0; i < s->first[s->c->size]; i++) {
        float *row = s->row + i * s->row_values;
        int before = order.depth, joined = nib_slot_order_push(&order, s->node[i]);
        if (joined > 0) NIB_TRY(join(s, row, joined, held + before, values));
        held[order.depth - 1] = row;
    }
    *sum = held[0];
    return NIB_OK;
}

/* The ranks' sums of their chunks, sum of this rank's, into the array on all. */
static nib_status hand_out_on_device(summation *s, int64_t begin, int64_t n, float *sum)
{
    int size = s->c->size, rank = s->c->rank, count = 0;
    int64_t mine = chunk_begin(n, size, rank + 1) - chunk_begin(n, size, rank);
    for (int r = 0; r < size; r++) {
        int64_t from = chunk_begin(n, size, r), values = chunk_begin(n, size, r + 1) - from;
        s->move[count++] = (nib_move){true, r, sum, (size_t)mine * sizeof(float)};
        s->move[count++] = (nib_move){false, r, s->gradient + begin + from, (size_t)values * sizeof(float)};
    }
    return nib_device_exchange_run(s->exchange, s->queue, s->move, count);
}

static nib_status hand_out(summation *s, int64_t begin, int64_t n, const float *sum)
{
    for (int r = 0; r < s->c->size; r++) {
        int64_t from = chunk_begin(n, s->c->size, r), values = chunk_begin(n, s->c->size, r + 1) - from;
        s->receive[r] = (nib_part){s->own + from, (size_t)values * sizeof(float)};
    }
    memcpy(s->receive[s->c->rank].data, sum, s->receive[s->c->rank].bytes);
    NIB_TRY(s->c->all_gather(s->c, s->receive));
    return s->tree->ops->upload(s->tree->ops, s->gradient + begin, s->own, (size_t)n * sizeof(float));
}

/* Values begin .. begin + n - 1 of the array. */
static nib_status sum_block(summation *s, int64_t begin, int64_t n)
{
    int size = s->c->size, rank = s->c->rank;
    float *sum;
    NIB_TRY(s->exchange != NULL ? bring_rows_to_device(s, begin, n) : bring_rows(s, begin, n));
    NIB_TRY(add_rows(s, chunk_begin(n, size, rank + 1) - chunk_begin(n, size, rank), &sum));
    return s->exchange != NULL ? hand_out_on_device(s, begin, n, sum) : hand_out(s, begin, n, sum);
}

static nib_status sum_blocks(summation *s, int64_t begin, int64_t n)
{
    const int64_t end = begin + n;
    nib_status status = NIB_OK;
    for (; status == NIB_OK && begin < end; begin += block_values(s))
        status = sum_block(s, begin, end - begin < block_values(s) ? end - begin : block_values(s));
    return status;
}

static void free_tables(summation *s)
{
    nib_free(s->first);
    nib_free(s->node);
    nib_free(s->own);
    nib_free(s->send);
    nib_free(s->receive);
    nib_free(s->move);
}

nib_status nib_gradient_sum(nib_collectives *c, nib_gradient_tree *tree, float *gradient)
{
    summation s = {.c = c, .tree = tree, .gradient = gradient};
    if (c->size == 1) return NIB_OK;
    nib_status status = allocate(&s);
    if (status == NIB_OK) status = sum_blocks(&s, 0, tree->n);
    nib_free(s.row);
    free_tables(&s);
    return status;
}

size_t nib_gradient_stream_bytes(int64_t n, int slots, int ranks)
{
    int rows = 0, most;
    for (int r = 0; r < ranks; r++)
        rows += nib_slot_order_of_range(slots, nib_slot_range_of_rank(slots, ranks, r), &most).depth;
    return (size_t)(rows * row_room(n, rows, ranks)) * sizeof(float);
}

nib_status nib_gradient_stream_open(nib_collectives *c, nib_gradient_tree *tree, float *gradient,
                                    nib_device_exchange *exchange, nib_gradient_stream **stream)
{
    *stream = NULL;
    if (exchange == NULL) return NIB_OK;
    nib_gradient_stream *x = nib_calloc(1, sizeof *x);
    if (x == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to sum the gradients of %d ranks", c->size);
    *x = (nib_gradient_stream){
        .s = {.c = c, .tree = tree, .gradient = gradient, .exchange = exchange}, .from = tree->n, .to = tree->n};
    nib_status status = allocate(&x->s);
    if (status == NIB_OK)
        *stream = x;
    else
        nib_gradient_stream_close(x);
    return status;
}

void nib_gradient_stream_close(nib_gradient_stream *x)
{
    if (x == NULL) return;
    if (x->s.row != NULL) x->s.tree->ops->release(x->s.tree->ops, x->s.row, row_bytes(&x->s));
    free_tables(&x->s);
    nib_free(x);
}

/* What is asked before is complete for the side queue; what is asked after it does not wait. */
static nib_status add_beside(nib_gradient_stream *x, int64_t begin, int64_t n)
{
    nib_ops *ops = x->s.tree->ops;
    NIB_TRY(ops->fork(ops, NIB_SIDE_GRADIENTS, &x->s.queue));
    ops->aside(ops, x->s.queue);
    nib_status status = nib_gradient_tree_finish(x->s.tree, x->s.gradient, begin, n);
    if (status == NIB_OK) status = sum_blocks(&x->s, begin, n);
    ops->aside(ops, NULL);
    return status;
}

nib_status nib_gradient_stream_add(void *stream, int64_t begin, int64_t n)
{
    nib_gradient_stream *x = stream;
    if (x->from == x->to) x->to = begin + n;
    x->from = begin;
    return add_beside(x, begin, n);
}

nib_status nib_gradient_stream_end(nib_gradient_stream *x)
{
    nib_ops *ops = x->s.tree->ops;
    const int64_t n = x->s.tree->n;
    if (x->to < n) NIB_TRY(add_beside(x, x->to, n - x->to));
    if (x->from > 0) NIB_TRY(add_beside(x, 0, x->from));
    x->from = x->to = n;
    return ops->join(ops, NIB_SIDE_GRADIENTS);
}
