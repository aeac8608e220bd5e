/* Attention of generated tokens over the key/value cache: each query walks its own ranges of rows. */
#include "cpu/attention.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

#include <math.h>

#define KEYS      64  /* in a tile */
#define SEGMENT   256 /* keys of a task, where there are fewer heads of keys than FEW_TASKS */
#define FEW_TASKS 16

/* Head dims padded with zeros to whole vectors. */
NIB_INLINE int64_t padded_columns(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

/* softcap * tanh(s / softcap) in place. */
NIB_INLINE void cap_scores(float softcap, float *scores)
{
    for (int i = 0; i < KEYS; i++) scores[i] = softcap * tanhf(scores[i] / softcap);
}

/* One row's step of the online softmax: scores become exponentials, sum and total are rescaled. */
NIB_INLINE void softmax_step(float *scores, float *largest, float *total, float *sum, int64_t columns)
{
    nib_v16 *s = (nib_v16 *)scores, top = nib_v16_max(nib_v16_max(s[0], s[1]), nib_v16_max(s[2], s[3]));
    float lanes[16], now = *largest;
    memcpy(lanes, &top, sizeof lanes);
    for (int i = 0; i < 16; i++) now = lanes[i] > now ? lanes[i] : now;
    if (now == -INFINITY) { /* nothing seen so far */
        for (int i = 0; i < 4; i++) s[i] = nib_v16_set(0.0f);
        return;
    }
    nib_v16 added = nib_v16_set(0.0f);
    for (int i = 0; i < 4; i++) {
        s[i] = nib_v16_exp(s[i] - now);
        added += s[i];
    }
    if (now > *largest) {
        float rescale = *largest == -INFINITY ? 0.0f : expf(*largest - now);
        for (int64_t c = 0; c < columns; c += 16) *(nib_v16 *)(sum + c) *= rescale;
        *total *= rescale;
        *largest = now;
    }
    *total += nib_v16_sum(added);
}

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

/* Number i of `segments`: SEGMENT keys of them, or the rest; the last may be empty. */
static visible_keys segment_of(visible_keys keys, int64_t i, int64_t segments)
{
    const int64_t first = keys.skip + i * SEGMENT, end = first + SEGMENT;
    if (segments == 1) return keys;
    keys.skip = first < keys.count ? first : keys.count;
    keys.count = end < keys.count ? end : keys.count;
    return keys;
}

/* Where the walk over a query's ranges stands. */
typedef struct {
    const nib_cache_range *range;
    int32_t offset; /* in the range */
} key_cursor;

static key_cursor cursor_at_first(visible_keys keys)
{
    key_cursor cursor = {.range = keys.range};
    if (keys.skip == keys.count) return cursor; /* nothing follows */
    int64_t before = keys.skip;
    for (; before >= cursor.range->count; cursor.range++) before -= cursor.range->count;
    cursor.offset = (int32_t)before;
    return cursor;
}

/* The next cache row. The caller knows how many there are. */
NIB_INLINE int64_t next_key(key_cursor *cursor)
{
    while (cursor->offset == cursor->range->count) {
        cursor->range++;
        cursor->offset = 0;
    }
    return cursor->range->first + cursor->offset++;
}

/* Rows lie too far apart for the processor to see where a walk leads: asked for before they are needed. */
NIB_INLINE void prefetch_row(nib_matrix head, int64_t row)
{
    const char *first = nib_matrix_at(head, row, 0);
    const int64_t bytes = head.columns * (head.dtype == NIB_DTYPE_F32 ? 4 : 2);
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(first + b);
}

/* Row of HD values by sixteen; padding lanes are zero. */
NIB_INLINE void load_vectors(nib_matrix head, int64_t row, int64_t columns, float *out)
{
    nib_load_row(nib_matrix_at(head, row, 0), head.dtype, head.columns, out);
    for (int64_t c = head.columns; c < columns; c++) out[c] = 0.0f;
}

/* What a task works on: the heads of one key/value head for one query. */
typedef struct {
    float *queries, *sums;  /* [group, columns] */
    float *scores;          /* [group, KEYS] */
    float *largest, *total; /* [group] */
} attention_state;

static int64_t state_floats(nib_attention_shape shape)
{
    return shape.heads / shape.kv_heads * (2 * padded_columns(shape.head_dim) + KEYS + 2);
}

static attention_state state_in(float *block, nib_attention_shape shape)
{
    const int64_t group = shape.heads / shape.kv_heads, columns = padded_columns(shape.head_dim);
    float *scores = block + 2 * group * columns, *largest = scores + group * KEYS;
    return (attention_state){block, block + group * columns, scores, largest, largest + group};
}

/* Sums over keys.skip to keys.count, a tile of keys at a time, so that each row of the cache is read once. */
NIB_CPU_CLONES static void attend(nib_attention_shape shape, nib_matrix q, nib_matrix k_head, nib_matrix v_head,
                                  visible_keys keys, int64_t query, int64_t kv, float *block)
{
    int64_t group = shape.heads / shape.kv_heads, HD = shape.head_dim, columns = padded_columns(HD);
    const attention_state state = state_in(block, shape);
    float *queries = state.queries, *sums = state.sums, *scores = state.scores;
    float *largest = state.largest, *total = state.total, row[NIB_ATTENTION_HEAD_DIM];
    int64_t at[KEYS];
    key_cursor cursor = cursor_at_first(keys);
    for (int64_t g = 0; g < group; g++) {
        load_vectors(nib_matrix_columns(q, (kv * group + g) * HD, HD), query, columns, queries + g * columns);
        for (int64_t c = 0; c < columns; c++) queries[g * columns + c] *= shape.scale, sums[g * columns + c] = 0.0f;
        largest[g] = -INFINITY;
        total[g] = 0.0f;
    }
    for (int64_t done = keys.skip; done < keys.count; done += KEYS) {
        int64_t n = keys.count - done < KEYS ? keys.count - done : KEYS;
        for (int64_t i = 0; i < n; i++) prefetch_row(k_head, at[i] = next_key(&cursor));
        for (int64_t i = 0; i < n; i++) {
            prefetch_row(v_head, at[i]);
            load_vectors(k_head, at[i], columns, row);
            for (int64_t g = 0; g < group; g++) {
                nib_v16 sum = {0};
                for (int64_t c = 0; c < columns; c += 16)
                    sum += *(nib_v16 *)(queries + g * columns + c) * *(nib_v16 *)(row + c);
                scores[g * KEYS + i] = nib_v16_sum(sum);
            }
        }
        for (int64_t g = 0; g < group; g++) {
            float *tile = scores + g * KEYS;
            if (shape.softcap > 0.0f) cap_scores(shape.softcap, tile);
            for (int64_t i = n; i < KEYS; i++) tile[i] = -INFINITY;
            softmax_step(tile, &largest[g], &total[g], sums + g * columns, columns);
        }
        for (int64_t i = 0; i < n; i++) {
            load_vectors(v_head, at[i], columns, row);
            for (int64_t g = 0; g < group; g++)
                for (int64_t c = 0; c < columns; c += 16)
                    *(nib_v16 *)(sums + g * columns + c) += scores[g * KEYS + i] * *(nib_v16 *)(row + c);
        }
    }
}

/* The segments of a query's keys, summed each for itself, become one in the first's place, and out. */
NIB_CPU_CLONES static void finish(nib_attention_shape shape, float *blocks, int64_t segments, int64_t query, int64_t kv,
                                  nib_matrix out)
{
    const int64_t group = shape.heads / shape.kv_heads, HD = shape.head_dim, columns = padded_columns(HD);
    const attention_state all = state_in(blocks, shape);
    for (int64_t g = 0; g < group; g++) {
        float *sum = all.sums + g * columns;
        for (int64_t s = 1; s < segments; s++) {
            const attention_state more = state_in(blocks + s * state_floats(shape), shape);
            const float top = fmaxf(all.largest[g], more.largest[g]);
            const float old = expf(all.largest[g] - top), new = expf(more.largest[g] - top);
            for (int64_t c = 0; c < HD; c++) sum[c] = sum[c] * old + more.sums[g * columns + c] * new;
            all.total[g] = all.total[g] * old + more.total[g] * new;
            all.largest[g] = top;
        }
        for (int64_t c = 0; c < HD; c++) sum[c] /= all.total[g];
        nib_store_row(sum, out.dtype, HD, nib_matrix_at(nib_matrix_columns(out, (kv * group + g) * HD, HD), query, 0));
    }
}

/* Into how many segments the keys of each query are cut, by the shape alone: more than one where heads are too few for
 * threads to share them. */
static int64_t segments_of(nib_attention_shape shape, const int32_t *range_begin, const nib_cache_range *range,
                           int64_t queries)
{
    int64_t most = 1;
    for (int64_t i = 0; i < queries && queries * shape.kv_heads < FEW_TASKS; i++) {
        const visible_keys keys = keys_of(range_begin, range, i, shape.window);
        const int64_t segments = (keys.count - keys.skip + SEGMENT - 1) / SEGMENT;
        most = segments > most ? segments : most;
    }
    return most;
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
    const int64_t HD = shape.head_dim, NKV = shape.kv_heads, heads = q.rows * NKV, threads = nib_cpu_threads();
    const int64_t floats = state_floats(shape), segments = segments_of(shape, range_begin, range, q.rows);
    size_t mark = ops->scratch->used;
    float *state; /* of each thread, or of each segment, to be joined */
    NIB_TRY(nib_arena_take(ops->scratch, (segments == 1 ? threads : heads * segments) * floats, sizeof *state, &state));
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
    for (int64_t task = 0; task < heads * segments; task++) {
        const int64_t query = task / segments / NKV, kv = task / segments % NKV;
        float *own = state + (segments == 1 ? nib_cpu_thread() : task) * floats;
        attend(shape, q, nib_matrix_columns(k, kv * HD, HD), nib_matrix_columns(v, kv * HD, HD),
               segment_of(keys_of(range_begin, range, query, shape.window), task % segments, segments), query, kv, own);
        if (segments == 1) finish(shape, own, 1, query, kv, out);
    }
    for (int64_t i = 0; i < heads && segments > 1; i++)
        finish(shape, state + i * segments * floats, segments, i / NKV, i % NKV, out);
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
