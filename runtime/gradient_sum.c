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
} summation;

/* Where chunk `part` of `parts` begins in n values: no two differ by more than one value. */
static int64_t chunk_begin(int64_t n, int parts, int part) { return n / parts * part + n % parts * part / parts; }

static nib_slot_order nodes_of(const summation *s, int rank)
{
    int slots = s->tree->order.slots, most;
    return nib_slot_order_of_range(slots, nib_slot_range_of_rank(slots, s->c->size, rank), &most);
}

static int64_t block_values(const summation *s) { return s->row_values * s->c->size; }

static nib_status allocate(summation *s)
{
    int size = s->c->size;
    s->first = nib_calloc((size_t)size + 1, sizeof *s->first);
    s->send = nib_calloc((size_t)size, sizeof *s->send);
    s->receive = nib_calloc((size_t)size, sizeof *s->receive);
    if (s->first == NULL || s->send == NULL || s->receive == NULL) goto no_memory;
    for (int r = 0; r < size; r++) s->first[r + 1] = s->first[r] + nodes_of(s, r).depth;
    int rows = s->first[size];
    int64_t whole = s->tree->n / size + 1;
    s->row_values = BLOCK_VALUES / rows > ROW_VALUES_LEAST ? BLOCK_VALUES / rows : ROW_VALUES_LEAST;
    if (s->row_values > whole) s->row_values = whole;
    s->node = nib_calloc((size_t)rows, sizeof *s->node);
    s->row = nib_calloc((size_t)rows, (size_t)s->row_values * sizeof *s->row);
    s->own = nib_calloc((size_t)s->tree->order.depth, (size_t)block_values(s) * sizeof *s->own);
    if (s->node == NULL || s->row == NULL || s->own == NULL) goto no_memory;
    for (int r = 0; r < size; r++) {
        nib_slot_order order = nodes_of(s, r);
        memcpy(s->node + s->first[r], order.node, (size_t)order.depth * sizeof *order.node);
    }
    return NIB_OK;
no_memory:
    return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to sum the gradients of %d ranks", size);
}

/* Brings this rank its chunk of every node, one node of each rank at a time. */
static nib_status exchange(summation *s, int64_t begin, int64_t n)
{
    int size = s->c->size, rank = s->c->rank, most = 0, depth = s->tree->order.depth;
    int64_t mine = chunk_begin(n, size, rank + 1) - chunk_begin(n, size, rank);
    for (int r = 0; r < size; r++)
        if (s->first[r + 1] - s->first[r] > most) most = s->first[r + 1] - s->first[r];
    for (int i = 0; i < most; i++) {
        float *own = s->own + i * block_values(s);
        const float *node = i == depth - 1 ? s->gradient : s->tree->partial[i];
        if (i < depth) NIB_TRY(s->tree->ops->download(s->tree->ops, own, node + begin, (size_t)n * sizeof(float)));
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

/* Adds the rows in the tree's order; returns the one that holds the sum. */
static const float *add_rows(const summation *s, int64_t values)
{
    nib_slot_order order = nib_slot_order_begin(s->tree->order.slots);
    const float *held[NIB_SLOT_NODES];
    for (int i = 0; i < s->first[s->c->size]; i++) {
        float *row = s->row + i * s->row_values;
        int before = order.depth, joined = nib_slot_order_push(&order, s->node[i]);
        for (int k = 1; k <= joined; k++)
            for (int64_t v = 0; v < values; v++) row[v] += held[before - k][v];
        held[order.depth - 1] = row;
    }
    return held[0];
}

/* Values begin .. begin + n - 1 of the array. */
static nib_status sum_block(summation *s, int64_t begin, int64_t n)
{
    int size = s->c->size, rank = s->c->rank;
    NIB_TRY(exchange(s, begin, n));
    const float *sum = add_rows(s, chunk_begin(n, size, rank + 1) - chunk_begin(n, size, rank));
    for (int r = 0; r < size; r++) {
        int64_t from = chunk_begin(n, size, r), values = chunk_begin(n, size, r + 1) - from;
        s->receive[r] = (nib_part){s->own + from, (size_t)values * sizeof(float)};
    }
    memcpy(s->receive[rank].data, sum, s->receive[rank].bytes);
    NIB_TRY(s->c->all_gather(s->c, s->receive));
    return s->tree->ops->upload(s->tree->ops, s->gradient + begin, s->own, (size_t)n * sizeof(float));
}

nib_status nib_gradient_sum(nib_collectives *c, nib_gradient_tree *tree, float *gradient)
{
    summation s = {.c = c, .tree = tree, .gradient = gradient};
    if (c->size == 1) return NIB_OK;
    nib_status status = allocate(&s);
    for (int64_t begin = 0; status == NIB_OK && begin < tree->n; begin += block_values(&s)) {
        int64_t left = tree->n - begin;
        status = sum_block(&s, begin, left < block_values(&s) ? left : block_values(&s));
    }
    nib_free(s.first);
    nib_free(s.node);
    nib_free(s.row);
    nib_free(s.own);
    nib_free(s.send);
    nib_free(s.receive);
    return status;
}
