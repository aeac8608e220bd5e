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

/* All heads of one key/value head for one query, over `count - skip` keys, by tiles of the online softmax. */
NIB_CPU_CLONES static void attend(nib_attention_shape shape, nib_matrix q, nib_matrix k_head, nib_matrix v_head,
                                  visible_keys keys, int64_t query, int64_t kv, nib_matrix out)
{
    int64_t group = shape.heads / shape.kv_heads, HD = shape.head_dim;
    for (int64_t g = 0; g < group; g++) {
        int64_t head = kv * group + g, passed = 0;
        float row[NIB_TILE_MAX_HEAD_DIM], sum[NIB_TILE_MAX_HEAD_DIM] = {0}, piece[NIB_TILE_MAX_HEAD_DIM];
        float largest = -INFINITY, total = 0.0f;
        nib_load_row(nib_row(nib_matrix_columns(q, head * HD, HD), query), q.dtype, HD, row);
        for (int32_t r = 0; r < keys.ranges; r++)
            for (int32_t i = 0; i < keys.range[r].count; i++) {
                if (passed++ < keys.skip) continue;
                int64_t at = keys.range[r].first + i;
                float score = 0.0f;
                nib_load_row(nib_row(k_head, at), k_head.dtype, HD, piece);
                for (int64_t c = 0; c < HD; c++) score += row[c] * piece[c];
                score *= shape.scale;
                if (shape.softcap > 0.0f) score = shape.softcap * tanhf(score / shape.softcap);
                if (score > largest) {
                    float rescale = expf(largest - score);
                    for (int64_t c = 0; c < HD; c++) sum[c] *= rescale;
                    total *= rescale;
                    largest = score;
                }
                float weight = expf(score - largest);
                nib_load_row(nib_row(v_head, at), v_head.dtype, HD, piece);
                for (int64_t c = 0; c < HD; c++) sum[c] += weight * piece[c];
                total += weight;
            }
        for (int64_t c = 0; c < HD; c++) sum[c] /= total;
        nib_store_row(sum, out.dtype, HD, nib_row(nib_matrix_columns(out, head * HD, HD), query));
    }
}

nib_status nib_cpu_attention_cached(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                    const int32_t *range_begin, const nib_cache_range *range, nib_matrix out)
{
    (void)ops;
    NIB_TRY(nib_attention_check("attention_cached", shape, q, k, v));
    for (int64_t i = 0; i < q.rows; i++)
        for (int32_t r = range_begin[i]; r < range_begin[i + 1]; r++)
            if (range[r].first < 0 || range[r].count < 0 || range[r].first > k.rows - range[r].count)
                return NIB_FAIL(NIB_ERROR_SHAPE, "attention_cached: rows %d + %d of a cache of %lld", range[r].first,
                                range[r].count, (long long)k.rows);
    int64_t HD = shape.head_dim;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t task = 0; task < q.rows * shape.kv_heads; task++) {
        int64_t query = task / shape.kv_heads, kv = task % shape.kv_heads;
        attend(shape, q, nib_matrix_columns(k, kv * HD, HD), nib_matrix_columns(v, kv * HD, HD),
               keys_of(range_begin, range, query, shape.window), query, kv, out);
    }
    return NIB_OK;
}
