/* Attention of generated tokens over the key/value cache: each query walks its own ranges of rows. */
#include "cpu/attention.h"
#include "cpu/attention_tiles.h"

/* Rows of the cache that query i sees, in order: row number j of them. */
typedef struct {
    const nib_cache_range *range;
    int32_t ranges;
    int64_t skip; /* keys before the window */
    int64_t count;
} visible_keys;

static visible_keys keys_of(const int32_t *range_begin, const nib_cache_range *range, int64_t query, int64_t window)
{
    visible_keys keys = {.range = range + range_begin[query], .ranges = range_begin[query + 1] - range_begin[query]};
    for (int32_t r = 0; r < keys.ranges; r++) keys.count += keys.range[r].count;
    if (window > 0 && keys.count > window) keys.skip = keys.count - window;
    return keys;
}

/* Where the walk over a query's ranges stands. */
typedef struct {
    const nib_cache_range *range;
    int32_t offset; /* in the range */
} key_cursor;

/* The next cache row. The caller knows how many there are. */
NIB_INLINE int64_t next_key(key_cursor *cursor)
{
    while (cursor->offset == cursor->range->count) {
        cursor->range++;
        cursor->offset = 0;
    }
    return cursor->range->first + cursor->offset++;
}

/* Row of HD values by sixteen; padding lanes are zero. */
NIB_INLINE void load_vectors(nib_matrix head, int64_t row, int64_t columns, float *out)
{
    nib_load_row(nib_row(head, row), head.dtype, head.columns, out);
    for (int64_t c = head.columns; c < columns; c++) out[c] = 0.0f;
}

/* The heads of one key/value head for one query, a tile of keys at a time, so that each row of the cache is read once.
 * state: [group, columns] queries and sums, [group, NIB_TILE_KEYS] scores, [group] maxima and totals. */
NIB_CPU_CLONES static void attend(nib_attention_shape shape, nib_matrix q, nib_matrix k_head, nib_matrix v_head,
                                  visible_keys keys, int64_t query, int64_t kv, float *state, nib_matrix out)
{
    int64_t group = shape.heads / shape.kv_heads, HD = shape.head_dim, columns = nib_tile_columns(HD);
    float *queries = state, *sums = queries + group * columns, *scores = sums + group * columns;
    float *largest = scores + group * NIB_TILE_KEYS, *total = largest + group, row[NIB_TILE_MAX_HEAD_DIM];
    int64_t at[NIB_TILE_KEYS];
    key_cursor cursor = {.range = keys.range};
    for (int64_t g = 0; g < group; g++) {
        load_vectors(nib_matrix_columns(q, (kv * group + g) * HD, HD), query, columns, queries + g * columns);
        for (int64_t c = 0; c < columns; c++) queries[g * columns + c] *= shape.scale, sums[g * columns + c] = 0.0f;
        largest[g] = -INFINITY;
        total[g] = 0.0f;
    }
    for (int64_t i = 0; i < keys.skip; i++) next_key(&cursor);
    for (int64_t done = keys.skip; done < keys.count; done += NIB_TILE_KEYS) {
        int64_t n = keys.count - done < NIB_TILE_KEYS ? keys.count - done : NIB_TILE_KEYS;
        for (int64_t i = 0; i < n; i++) {
            at[i] = next_key(&cursor);
            load_vectors(k_head, at[i], columns, row);
            for (int64_t g = 0; g < group; g++) {
                nib_v16 sum = {0};
                for (int64_t c = 0; c < columns; c += 16)
                    sum += *(nib_v16 *)(queries + g * columns + c) * *(nib_v16 *)(row + c);
                scores[g * NIB_TILE_KEYS + i] = nib_v16_sum(sum);
            }
        }
        for (int64_t g = 0; g < group; g++) {
            float *tile = scores + g * NIB_TILE_KEYS;
            if (shape.softcap > 0.0f) nib_tile_softcap(shape.softcap, tile);
            for (int64_t i = n; i < NIB_TILE_KEYS; i++) tile[i] = -INFINITY;
            nib_tile_softmax_step(tile, &largest[g], &total[g], sums + g * columns, columns);
        }
        for (int64_t i = 0; i < n; i++) {
            load_vectors(v_head, at[i], columns, row);
            for (int64_t g = 0; g < group; g++)
                for (int64_t c = 0; c < columns; c += 16)
                    *(nib_v16 *)(sums + g * columns + c) += scores[g * NIB_TILE_KEYS + i] * *(nib_v16 *)(row + c);
        }
    }
    for (int64_t g = 0; g < group; g++) {
        for (int64_t c = 0; c < HD; c++) sums[g * columns + c] /= total[g];
        nib_store_row(sums + g * columns, out.dtype, HD,
                      nib_row(nib_matrix_columns(out, (kv * group + g) * HD, HD), query));
    }
}

nib_status nib_cpu_attention_cached(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                    const int32_t *range_begin, const nib_cache_range *range, nib_matrix out)
{
    NIB_TRY(nib_attention_check("attention_cached", shape, q, k, v));
    for (int64_t i = 0; i < q.rows; i++)
        for (int32_t r = range_begin[i]; r < range_begin[i + 1]; r++)
            if (range[r].first < 0 || range[r].count < 0 || range[r].first > k.rows - range[r].count)
                return NIB_FAIL(NIB_ERROR_SHAPE, "attention_cached: rows %d + %d of a cache of %lld", range[r].first,
                                range[r].count, (long long)k.rows);
    int64_t HD = shape.head_dim, group = shape.heads / shape.kv_heads, threads = nib_cpu_threads();
    int64_t floats = group * (2 * nib_tile_columns(HD) + NIB_TILE_KEYS + 2);
    size_t mark = ops->scratch->used;
    float *state;
    NIB_TRY(nib_arena_take(ops->scratch, threads * floats, sizeof *state, &state));
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
    for (int64_t task = 0; task < q.rows * shape.kv_heads; task++) {
        int64_t query = task / shape.kv_heads, kv = task % shape.kv_heads;
        attend(shape, q, nib_matrix_columns(k, kv * HD, HD), nib_matrix_columns(v, kv * HD, HD),
               keys_of(range_begin, range, query, shape.window), query, kv, state + nib_cpu_thread() * floats, out);
    }
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
