#include "data/prefix_order.h"

#include "base/memory.h"

#include <stdlib.h>

/* Rows order[begin .. begin + count) agree in their first `depth` tokens. */
typedef struct {
    int64_t begin, count;
    int32_t depth;
} group;

/* A row, and the child it belongs to: the first row that has the same next token. */
typedef struct {
    int64_t row, first;
    int32_t token;
} branch;

/* An ended row has no next token: below every id, so that it comes first. */
#define ENDED INT32_MIN

static int by_token(const void *a, const void *b)
{
    const branch *x = a, *y = b;
    if (x->token != y->token) return x->token < y->token ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

static int by_child(const void *a, const void *b)
{
    const branch *x = a, *y = b;
    bool x_ended = x->token == ENDED, y_ended = y->token == ENDED;
    if (x_ended != y_ended) return x_ended ? -1 : 1;
    if (x->first != y->first) return x->first < y->first ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

/* Tokens on which all rows of the group agree. Goes forward in blocks over all rows at once, so that no row is read far
 * beyond the depth where another one parts. */
static int32_t common_depth(const nib_row *rows, const int64_t *order, group g)
{
    enum { BLOCK = 32 };
    const nib_row *first = &rows[order[g.begin]];
    int32_t shortest = first->length, common = g.depth;
    for (int64_t i = 1; i < g.count; i++)
        if (rows[order[g.begin + i]].length < shortest) shortest = rows[order[g.begin + i]].length;
    while (common < shortest) {
        int32_t block_end = shortest - common < BLOCK ? shortest : common + BLOCK, agreed = block_end;
        for (int64_t i = 1; i < g.count; i++) {
            const int32_t *ids = rows[order[g.begin + i]].ids;
            int32_t depth = common;
            while (depth < agreed && ids[depth] == first->ids[depth]) depth++;
            agreed = depth;
        }
        common = agreed;
        if (agreed < block_end) break;
    }
    return common;
}

/* Splits a group at the depth where its rows part; pushes the children that hold more than one row. */
static int64_t split(const nib_row *rows, group g, int64_t *order, int32_t *shared, branch *branches, group *stack,
                     int64_t top)
{
    int32_t depth = common_depth(rows, order, g);
    for (int64_t i = 0; i < g.count; i++) {
        int64_t row = order[g.begin + i];
        branches[i] = (branch){.row = row, .token = rows[row].length > depth ? rows[row].ids[depth] : ENDED};
    }
    qsort(branches, (size_t)g.count, sizeof *branches, by_token);
    for (int64_t i = 0; i < g.count; i++)
        branches[i].first =
            i > 0 && branches[i].token == branches[i - 1].token ? branches[i - 1].first : branches[i].row;
    qsort(branches, (size_t)g.count, sizeof *branches, by_child);

    for (int64_t i = 0, begin = 0; i < g.count; i++) {
        order[g.begin + i] = branches[i].row;
        if (i > 0) shared[g.begin + i] = depth;
        if (i + 1 < g.count && branches[i + 1].token == branches[i].token) continue;
        if (i > begin && branches[i].token != ENDED)
            stack[top++] = (group){.begin = g.begin + begin, .count = i + 1 - begin, .depth = depth};
        begin = i + 1;
    }
    return top;
}

nib_status nib_prefix_order(const nib_row *rows, int64_t count, int64_t *order, int32_t *shared)
{
    nib_status status = NIB_OK;
    branch *branches = nib_calloc((size_t)count, sizeof *branches);
    group *stack = nib_calloc((size_t)count + 1, sizeof *stack); /* groups are disjoint */
    if (branches == NULL || stack == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to order %lld rows", (long long)count);
        goto done;
    }
    for (int64_t i = 0; i < count; i++) {
        order[i] = i;
        shared[i] = 0;
    }
    int64_t top = 0;
    if (count > 1) stack[top++] = (group){.begin = 0, .count = count, .depth = 0};
    while (top > 0) {
        group next = stack[--top];
        top = split(rows, next, order, shared, branches, stack, top);
    }
done:
    nib_free(branches);
    nib_free(stack);
    return status;
}
