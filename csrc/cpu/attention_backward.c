/* The backward pass recomputes the probabilities from the log-sum-exp (Dao et al., 2022, algorithm 4):
 *     P = exp(S - lse),  dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(dO O)),  dQ = scale dS K,  dK = scale dS^T Q.
 * A task is one key/value head of one tree of the packed array: it owns every sum that it adds to, so the order of
 * additions, and with it every bit, is the same at any number of threads. */
#include "cpu/attention.h"
#include "cpu/attention_tiles.h"

typedef struct {
    int64_t rows, columns;                             /* group * NIB_TILE_QUERIES; padded head dim */
    float *q, *dout;                                   /* [rows, columns] q scaled */
    float *delta, *lse;                                /* [rows] */
    float *scores, *dscores;                           /* [rows, NIB_TILE_KEYS] */
    float *keys, *keys_transposed, *values_transposed; /* [NIB_TILE_KEYS, columns], [columns, NIB_TILE_KEYS] twice */
    float *dk, *dv;                                    /* [NIB_TILE_KEYS, columns] */
    float *dq;                                         /* [longest tree padded to a tile, group, columns] */
} tile_state;

static int64_t state_floats(int64_t rows, int64_t columns, int64_t group, int64_t longest)
{
    return 2 * rows * columns + 2 * rows + 2 * rows * NIB_TILE_KEYS + 5 * columns * NIB_TILE_KEYS +
           longest * group * columns;
}

static tile_state state_in(float *memory, int64_t rows, int64_t columns)
{
    tile_state s = {.rows = rows, .columns = columns, .q = memory};
    int64_t tile = columns * NIB_TILE_KEYS;
    s.dout = s.q + rows * columns;
    s.delta = s.dout + rows * columns;
    s.lse = s.delta + rows;
    s.scores = s.lse + rows;
    s.dscores = s.scores + rows * NIB_TILE_KEYS;
    s.keys = s.dscores + rows * NIB_TILE_KEYS;
    s.keys_transposed = s.keys + tile;
    s.values_transposed = s.keys_transposed + tile;
    s.dk = s.values_transposed + tile;
    s.dv = s.dk + tile;
    s.dq = s.dv + tile;
    return s;
}

/* Everything that the tasks read. */
typedef struct {
    nib_attention_shape shape;
    nib_tree tree;
    nib_matrix q, k, v, dout, dq, dk, dv;
    const float *lse, *delta; /* [NH, T] */
} backward_inputs;

/* One row: scores and dP become P and dS. `slope` of the soft-cap: d(c tanh(s/c))/ds = 1 - (capped/c)^2. */
NIB_CPU_CLONES static void row_gradient(float *scores, float *dscores, float lse, float delta, float softcap)
{
    nib_v16 *s = (nib_v16 *)scores, *d = (nib_v16 *)dscores;
    for (int i = 0; i < NIB_TILE_KEYS / 16; i++) {
        nib_v16 capped = s[i];
        nib_v16 p = nib_v16_exp(capped - lse);
        nib_v16 ds = p * (d[i] - delta);
        if (softcap > 0.0f) {
            nib_v16 slope = 1.0f - capped * capped / (softcap * softcap);
            ds = nib_v16_select(capped < -1e30f, nib_v16_set(0.0f), ds * slope); /* hidden keys */
        }
        s[i] = p;
        d[i] = ds;
    }
}

static void load_queries(const backward_inputs *in, int64_t kv, int64_t from, int64_t count, tile_state *s)
{
    int64_t group = in->shape.heads / in->shape.kv_heads, HD = in->shape.head_dim;
    memset(s->q, 0, (size_t)(s->rows * s->columns) * sizeof *s->q);
    memset(s->dout, 0, (size_t)(s->rows * s->columns) * sizeof *s->dout);
    for (int64_t g = 0; g < group; g++) {
        int64_t head = kv * group + g, row = g * NIB_TILE_QUERIES;
        nib_tile_load(nib_matrix_columns(in->q, head * HD, HD), from, count, s->columns, s->q + row * s->columns);
        nib_tile_load(nib_matrix_columns(in->dout, head * HD, HD), from, count, s->columns, s->dout + row * s->columns);
        for (int64_t i = 0; i < count; i++) {
            s->lse[row + i] = in->lse[head * in->tree.T + from + i];
            s->delta[row + i] = in->delta[head * in->tree.T + from + i];
        }
    }
    for (int64_t i = 0; i < s->rows * s->columns; i++) s->q[i] *= in->shape.scale;
}

/* One tile of queries against one tile of keys: dK and dV of the tile, dQ (row r of it at dq + r * columns). */
static void tile_gradient(const backward_inputs *in, int64_t from, int64_t count, int64_t first, int64_t n,
                          int32_t least_end, float *dq, tile_state *s)
{
    int64_t columns = s->columns;
    bool whole = nib_tile_is_whole(in->shape, first, n, least_end, from, from + count - 1);
    nib_tile_product product = {.a = s->q,
                                .a_row = columns,
                                .a_column = 1,
                                .b = s->keys_transposed,
                                .b_stride = NIB_TILE_KEYS,
                                .c = s->scores,
                                .c_stride = NIB_TILE_KEYS,
                                .M = s->rows,
                                .N = NIB_TILE_KEYS,
                                .K = columns};
    nib_tile_matmul(&product);
    product.a = s->dout;
    product.b = s->values_transposed;
    product.c = s->dscores;
    nib_tile_matmul(&product);
    for (int64_t r = 0; r < s->rows; r++) {
        float *scores = s->scores + r * NIB_TILE_KEYS, *dscores = s->dscores + r * NIB_TILE_KEYS;
        int64_t query = r % NIB_TILE_QUERIES;
        if (query >= count) {
            memset(scores, 0, NIB_TILE_KEYS * sizeof *scores);
            memset(dscores, 0, NIB_TILE_KEYS * sizeof *dscores);
            continue;
        }
        if (in->shape.softcap > 0.0f) nib_tile_softcap(in->shape.softcap, scores);
        if (!whole) nib_tile_mask(in->shape, in->tree, from + query, first, n, scores);
        row_gradient(scores, dscores, s->lse[r], s->delta[r], in->shape.softcap);
    }
    nib_tile_product over_queries = {.a = s->scores,
                                     .a_row = 1,
                                     .a_column = NIB_TILE_KEYS,
                                     .b = s->dout,
                                     .b_stride = columns,
                                     .c = s->dv,
                                     .c_stride = columns,
                                     .M = n,
                                     .N = columns,
                                     .K = s->rows,
                                     .accumulate = true};
    nib_tile_matmul(&over_queries);
    over_queries.a = s->dscores;
    over_queries.b = s->q; /* already scaled */
    over_queries.c = s->dk;
    nib_tile_matmul(&over_queries);
    nib_tile_matmul(&(nib_tile_product){.a = s->dscores,
                                        .a_row = NIB_TILE_KEYS,
                                        .a_column = 1,
                                        .b = s->keys,
                                        .b_stride = columns,
                                        .c = dq,
                                        .c_stride = columns,
                                        .M = s->rows,
                                        .N = columns,
                                        .K = n,
                                        .accumulate = true});
}

/* All keys and queries start .. stop of one tree, for key/value head kv. */
static void tree_gradient(const backward_inputs *in, int64_t kv, int64_t start, int64_t stop, tile_state *s)
{
    int64_t group = in->shape.heads / in->shape.kv_heads, HD = in->shape.head_dim, columns = s->columns;
    int64_t tile_floats = s->rows * columns; /* of dq, by tile of queries */
    int64_t query_tiles = (stop - start + NIB_TILE_QUERIES - 1) / NIB_TILE_QUERIES;
    memset(s->dq, 0, (size_t)(query_tiles * tile_floats) * sizeof *s->dq);
    for (int64_t first = start; first < stop; first += NIB_TILE_KEYS) {
        int64_t n = stop - first < NIB_TILE_KEYS ? stop - first : NIB_TILE_KEYS;
        int32_t least, most;
        nib_tile_ends(in->tree, first, n, &least, &most);
        memset(s->keys, 0, (size_t)(columns * NIB_TILE_KEYS) * sizeof *s->keys);
        memset(s->keys_transposed, 0, (size_t)(columns * NIB_TILE_KEYS) * sizeof *s->keys);
        memset(s->values_transposed, 0, (size_t)(columns * NIB_TILE_KEYS) * sizeof *s->keys);
        memset(s->dk, 0, (size_t)(columns * NIB_TILE_KEYS) * sizeof *s->dk);
        memset(s->dv, 0, (size_t)(columns * NIB_TILE_KEYS) * sizeof *s->dv);
        nib_tile_load(nib_matrix_columns(in->k, kv * HD, HD), first, n, columns, s->keys);
        nib_tile_load_transposed(nib_matrix_columns(in->k, kv * HD, HD), first, n, s->keys_transposed);
        nib_tile_load_transposed(nib_matrix_columns(in->v, kv * HD, HD), first, n, s->values_transposed);
        for (int64_t tile = (first - start) / NIB_TILE_QUERIES; tile < query_tiles; tile++) {
            int64_t from = start + tile * NIB_TILE_QUERIES;
            int64_t count = stop - from < NIB_TILE_QUERIES ? stop - from : NIB_TILE_QUERIES;
            if (from >= most) break; /* no key of the tile reaches this query or a later one */
            load_queries(in, kv, from, count, s);
            tile_gradient(in, from, count, first, n, least, s->dq + tile * tile_floats, s);
        }
        for (int64_t i = 0; i < n; i++) {
            nib_store_row(s->dk + i * columns, in->dk.dtype, HD,
                          nib_row(nib_matrix_columns(in->dk, kv * HD, HD), first + i));
            nib_store_row(s->dv + i * columns, in->dv.dtype, HD,
                          nib_row(nib_matrix_columns(in->dv, kv * HD, HD), first + i));
        }
    }
    for (int64_t query = start; query < stop; query++)
        for (int64_t g = 0; g < group; g++) {
            float *row = s->dq + (query - start) / NIB_TILE_QUERIES * tile_floats +
                         (g * NIB_TILE_QUERIES + (query - start) % NIB_TILE_QUERIES) * columns;
            for (int64_t c = 0; c < HD; c++) row[c] *= in->shape.scale;
            nib_store_row(row, in->dq.dtype, HD, nib_row(nib_matrix_columns(in->dq, (kv * group + g) * HD, HD), query));
        }
}

/* delta[h][t] = sum over the head's dims of dout * out. */
static void row_deltas(nib_attention_shape shape, nib_matrix out, nib_matrix dout, float *delta)
{
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < out.rows; t++)
        for (int64_t h = 0; h < shape.heads; h++) {
            float a[NIB_TILE_MAX_HEAD_DIM], b[NIB_TILE_MAX_HEAD_DIM], sum = 0.0f;
            int64_t HD = shape.head_dim;
            nib_load_row(nib_row(nib_matrix_columns(out, h * HD, HD), t), out.dtype, HD, a);
            nib_load_row(nib_row(nib_matrix_columns(dout, h * HD, HD), t), dout.dtype, HD, b);
            for (int64_t c = 0; c < HD; c++) sum += a[c] * b[c];
            delta[h * out.rows + t] = sum;
        }
}

/* First indices of the trees, and T at the end; returns their number. */
static int64_t find_trees(nib_tree tree, int32_t *start, int64_t *longest)
{
    int64_t count = 0;
    *longest = 0;
    for (int64_t t = 0; t < tree.T; t = tree.end[t]) {
        if (start != NULL) start[count] = (int32_t)t;
        count++;
        if (tree.end[t] - t > *longest) *longest = tree.end[t] - t;
    }
    if (start != NULL) start[count] = (int32_t)tree.T;
    return count;
}

nib_status nib_cpu_attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                      nib_matrix k, nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout,
                                      nib_matrix dq, nib_matrix dk, nib_matrix dv)
{
    NIB_TRY(nib_attention_check("attention_backward", shape, q, k, v));
    NIB_TRY(nib_attention_check("attention_backward", shape, dq, dk, dv));
    int64_t group = shape.heads / shape.kv_heads, rows = group * NIB_TILE_QUERIES;
    int64_t columns = nib_tile_columns(shape.head_dim), threads = nib_cpu_threads(), longest;
    size_t mark = ops->scratch->used;
    int32_t *start;
    float *memory, *delta;
    NIB_TRY(nib_arena_take(ops->scratch, tree.T + 1, sizeof *start, &start));
    NIB_TRY(nib_arena_take(ops->scratch, shape.heads * tree.T, sizeof *delta, &delta));
    int64_t trees = find_trees(tree, ops->rehearsal ? NULL : start, &longest);
    longest = (longest + NIB_TILE_QUERIES - 1) / NIB_TILE_QUERIES * NIB_TILE_QUERIES;
    int64_t floats = state_floats(rows, columns, group, longest);
    NIB_TRY(nib_arena_take(ops->scratch, threads * floats, sizeof *memory, &memory));
    if (ops->rehearsal) goto done;
    row_deltas(shape, out, dout, delta);
    backward_inputs in = {.shape = shape,
                          .tree = tree,
                          .q = q,
                          .k = k,
                          .v = v,
                          .dout = dout,
                          .dq = dq,
                          .dk = dk,
                          .dv = dv,
                          .lse = lse,
                          .delta = delta};
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
    for (int64_t task = 0; task < shape.kv_heads * trees; task++) {
        tile_state state = state_in(memory + nib_cpu_thread() * floats, rows, columns);
        int64_t index = task / shape.kv_heads;
        tree_gradient(&in, task % shape.kv_heads, start[index], start[index + 1], &state);
    }
done:
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
