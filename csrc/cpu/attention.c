#include "cpu/attention.h"
#include "cpu/attention_tiles.h"

nib_status nib_attention_check(const char *op, nib_attention_shape s, nib_matrix q, nib_matrix k, nib_matrix v)
{
    if (s.head_dim > NIB_TILE_MAX_HEAD_DIM || s.kv_heads < 1 || s.heads % s.kv_heads != 0 ||
        q.columns != s.heads * s.head_dim || k.columns != s.kv_heads * s.head_dim || v.columns != k.columns ||
        k.rows != v.rows || q.dtype != k.dtype || q.dtype != v.dtype)
        return NIB_FAIL(
            NIB_ERROR_SHAPE,
            "%s: q [%lld, %lld], k [%lld, %lld], v [%lld, %lld] for %lld heads, %lld key/value heads of %lld "
            "(at most %d)",
            op, (long long)q.rows, (long long)q.columns, (long long)k.rows, (long long)k.columns, (long long)v.rows,
            (long long)v.columns, (long long)s.heads, (long long)s.kv_heads, (long long)s.head_dim,
            NIB_TILE_MAX_HEAD_DIM);
    return NIB_OK;
}

/* The state of one task: the queries of all heads of a group in one tile, so that they share each tile of K and V.
 * Row r is head r / NIB_TILE_QUERIES of the group. Buffers lie in scratch. */
typedef struct {
    int64_t rows, columns;  /* group * NIB_TILE_QUERIES; padded head dim */
    float *q, *sum;         /* [rows, columns] scaled queries; unnormalised output */
    float *scores;          /* [rows, NIB_TILE_KEYS] */
    float *keys, *values;   /* [columns, NIB_TILE_KEYS], [NIB_TILE_KEYS, columns] */
    float *largest, *total; /* [rows] running maximum and sum of exponentials */
} tile_state;

static int64_t state_floats(int64_t rows, int64_t columns)
{
    return 2 * rows * columns + rows * NIB_TILE_KEYS + 2 * columns * NIB_TILE_KEYS + 2 * rows;
}

static tile_state state_in(float *memory, int64_t rows, int64_t columns)
{
    tile_state s = {.rows = rows, .columns = columns, .q = memory};
    s.sum = s.q + rows * columns;
    s.scores = s.sum + rows * columns;
    s.keys = s.scores + rows * NIB_TILE_KEYS;
    s.values = s.keys + columns * NIB_TILE_KEYS;
    s.largest = s.values + columns * NIB_TILE_KEYS;
    s.total = s.largest + rows;
    return s;
}

NIB_CPU_CLONES static void softmax_row(float *scores, float *largest, float *total, float *sum, int64_t columns)
{
    nib_tile_softmax_step(scores, largest, total, sum, columns);
}

static void attend_tile(nib_attention_shape shape, nib_tree tree, int64_t from, int64_t count, int64_t first, int64_t n,
                        int32_t least_end, tile_state *s)
{
    bool whole = nib_tile_is_whole(shape, first, n, least_end, from, from + count - 1);
    nib_tile_matmul(&(nib_tile_product){.a = s->q,
                                        .a_row = s->columns,
                                        .a_column = 1,
                                        .b = s->keys,
                                        .b_stride = NIB_TILE_KEYS,
                                        .c = s->scores,
                                        .c_stride = NIB_TILE_KEYS,
                                        .M = s->rows,
                                        .N = NIB_TILE_KEYS,
                                        .K = s->columns});
    for (int64_t r = 0; r < s->rows; r++) {
        float *scores = s->scores + r * NIB_TILE_KEYS;
        int64_t query = r % NIB_TILE_QUERIES;
        if (query >= count) { /* a row that pads the tile */
            memset(scores, 0, NIB_TILE_KEYS * sizeof *scores);
            continue;
        }
        if (shape.softcap > 0.0f) nib_tile_softcap(shape.softcap, scores);
        if (!whole) nib_tile_mask(shape, tree, from + query, first, n, scores);
        softmax_row(scores, &s->largest[r], &s->total[r], s->sum + r * s->columns, s->columns);
    }
    nib_tile_matmul(&(nib_tile_product){.a = s->scores,
                                        .a_row = NIB_TILE_KEYS,
                                        .a_column = 1,
                                        .b = s->values,
                                        .b_stride = s->columns,
                                        .c = s->sum,
                                        .c_stride = s->columns,
                                        .M = s->rows,
                                        .N = s->columns,
                                        .K = n,
                                        .accumulate = true});
}

/* Queries from .. from + count of the heads that share key/value head kv. */
static void attend_queries(nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k, nib_matrix v,
                           nib_matrix out, float *lse, int64_t kv, int64_t from, int64_t count, tile_state *s)
{
    int64_t group = shape.heads / shape.kv_heads, HD = shape.head_dim;
    nib_matrix k_head = nib_matrix_columns(k, kv * HD, HD), v_head = nib_matrix_columns(v, kv * HD, HD);
    memset(s->q, 0, (size_t)(s->rows * s->columns) * sizeof *s->q);
    memset(s->sum, 0, (size_t)(s->rows * s->columns) * sizeof *s->sum);
    memset(s->keys, 0, (size_t)(s->columns * NIB_TILE_KEYS) * sizeof *s->keys);
    for (int64_t g = 0; g < group; g++)
        nib_tile_load(nib_matrix_columns(q, (kv * group + g) * HD, HD), from, count, s->columns,
                      s->q + g * NIB_TILE_QUERIES * s->columns);
    for (int64_t i = 0; i < s->rows * s->columns; i++) s->q[i] *= shape.scale;
    for (int64_t r = 0; r < s->rows; r++) {
        s->largest[r] = -INFINITY;
        s->total[r] = 0.0f;
    }
    for (int64_t first = 0; first < from + count; first += NIB_TILE_KEYS) {
        int64_t n = from + count - first < NIB_TILE_KEYS ? from + count - first : NIB_TILE_KEYS;
        int32_t least, most;
        nib_tile_ends(tree, first, n, &least, &most);
        if (most <= from) continue; /* no key of the tile reaches a query */
        nib_tile_load_transposed(k_head, first, n, s->keys);
        nib_tile_load(v_head, first, n, s->columns, s->values);
        attend_tile(shape, tree, from, count, first, n, least, s);
    }
    for (int64_t r = 0; r < s->rows; r++) {
        int64_t head = kv * group + r / NIB_TILE_QUERIES, query = from + r % NIB_TILE_QUERIES;
        if (query >= from + count) continue;
        float *sum = s->sum + r * s->columns, inverse = 1.0f / s->total[r];
        for (int64_t c = 0; c < HD; c++) sum[c] *= inverse;
        nib_store_row(sum, out.dtype, HD, nib_row(nib_matrix_columns(out, head * HD, HD), query));
        if (lse != NULL) lse[head * tree.T + query] = s->largest[r] + logf(s->total[r]);
    }
}

nib_status nib_cpu_attention_forward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                     nib_matrix v, nib_matrix out, float *lse)
{
    NIB_TRY(nib_attention_check("attention_forward", shape, q, k, v));
    int64_t rows = shape.heads / shape.kv_heads * NIB_TILE_QUERIES, columns = nib_tile_columns(shape.head_dim);
    int64_t floats = state_floats(rows, columns), threads = nib_cpu_threads();
    int64_t tiles = (tree.T + NIB_TILE_QUERIES - 1) / NIB_TILE_QUERIES;
    size_t mark = ops->scratch->used;
    float *memory;
    NIB_TRY(nib_arena_take(ops->scratch, threads * floats, sizeof *memory, &memory));
    if (ops->rehearsal) tiles = 0;
        /* The last tiles of a long document see most keys: they go first, so that threads end together. */
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
    for (int64_t task = 0; task < shape.kv_heads * tiles; task++) {
        tile_state state = state_in(memory + nib_cpu_thread() * floats, rows, columns);
        int64_t from = (tiles - 1 - task / shape.kv_heads) * NIB_TILE_QUERIES;
        int64_t count = tree.T - from < NIB_TILE_QUERIES ? tree.T - from : NIB_TILE_QUERIES;
        attend_queries(shape, tree, q, k, v, out, lse, task % shape.kv_heads, from, count, &state);
    }
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
