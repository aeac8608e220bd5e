/* One query tile of one head against the key tiles it sees, with running maximum and sum (Dao et al.,
 * "FlashAttention", 2022): scores of 64 x 64, their exponentials, the product with the values. */
#include "cpu/simd/level.h"
#include "cpu/simd/tile_product.h"

typedef struct {
    float *q;      /* [TILE][units] */
    float *k;      /* [units][TILE] */
    float *v;      /* [TILE units][padded] */
    float *scores; /* [TILE][TILE], then the probabilities in units */
    float *out;    /* [TILE][padded] */
    float maximum[TILE], sum[TILE];
    float end[TILE], position[TILE]; /* of the keys; end is counted from the tile's first key */
} forward_state;

static tile_source source_of(nib_matrix m, const nib_attention_tile *tile, int64_t head, int64_t head_dim)
{
    return (tile_source){nib_matrix_at(m, tile->first, head * head_dim), m.stride, m.dtype, tile->rows, head_dim};
}

static void load_limits(const nib_attention_job *job, const nib_attention_tile *keys, forward_state *s)
{
    for (int i = 0; i < TILE; i++) {
        bool exists = i < keys->rows;
        s->end[i] = exists ? (float)(job->tree.end[keys->first + i] - keys->first) : -1.0f;
        s->position[i] = exists ? (float)job->tree.position[keys->first + i] : 0.0f;
    }
}

/* Scaled, capped and masked scores of one query; returns their maximum. */
ALWAYS_INLINE float finish_scores(const nib_attention_job *job, const nib_attention_tile *keys, int64_t query,
                                  bool masked, const forward_state *s, float *row)
{
    const nib_attention_shape *shape = &job->shape;
    vec highest = vec_set(-INFINITY), hidden = vec_set(-INFINITY), scale = vec_set(shape->scale);
    vec from_first = vec_set((float)(query - keys->first)), cap = vec_set(shape->softcap);
    vec oldest = vec_set((float)(job->tree.position[query] - shape->window));
    for (int i = 0; i < TILE; i += LANES) {
        vec x = vec_load(row + i) * scale;
        if (shape->softcap > 0.0f) x = cap * vec_tanh(x / cap);
        if (masked) {
            x = vec_if_less(from_first, vec_count((float)i), hidden, x);
            x = vec_if_less(from_first, vec_load(s->end + i), x, hidden);
            if (shape->window > 0) x = vec_if_less(oldest, vec_load(s->position + i), x, hidden);
        }
        vec_store(row + i, x);
        highest = vec_max(highest, x);
    }
    return vec_maximum(highest);
}

/* Scores of one query become probabilities against the new maximum; what was summed before is scaled to it. */
ALWAYS_INLINE void update_row(forward_state *s, int64_t r, int64_t padded, float maximum, bool pairs)
{
    float *row = s->scores + r * TILE, *out = s->out + r * padded;
    float highest = s->maximum[r] > maximum ? s->maximum[r] : maximum;
    if (highest == -INFINITY) { /* sees nothing yet */
        memset(row, 0, TILE * sizeof *row);
        return;
    }
    if (highest > s->maximum[r]) {
        float factor = expf(s->maximum[r] - highest);
        s->sum[r] *= factor;
        for (int64_t c = 0; c < padded; c += LANES) vec_store(out + c, vec_load(out + c) * vec_set(factor));
        s->maximum[r] = highest;
    }
    vec shift = vec_set(highest), sum = vec_zero();
    for (int i = 0; i < TILE; i += 2 * LANES) {
        vec low = vec_exp(vec_load(row + i) - shift), high = vec_exp(vec_load(row + i + LANES) - shift);
        sum += low + high;
        store_units(row, i, low, high, pairs);
    }
    s->sum[r] += vec_sum(sum);
}

ALWAYS_INLINE void visit_keys(const nib_attention_job *job, const nib_attention_tile *queries,
                              const nib_attention_tile *keys, int64_t kv_head, bool masked, forward_state *s,
                              bool pairs)
{
    int64_t HD = job->shape.head_dim, padded = PADDED(HD), units = pairs ? HD / 2 : HD;
    int64_t rows = ROWS_PADDED(queries->rows);
    tile_source k = source_of(job->k, keys, kv_head, HD), v = source_of(job->v, keys, kv_head, HD);
    pack_transposed(&k, s->k, pairs);
    pack_columns(&v, s->v, pairs);
    load_limits(job, keys, s);
    tile_product(rows, TILE, units, s->q, units, s->k, s->scores, false, pairs);
    for (int64_t r = 0; r < queries->rows; r++) {
        float maximum = finish_scores(job, keys, queries->first + r, masked, s, s->scores + r * TILE);
        update_row(s, r, padded, maximum, pairs);
    }
    for (int64_t r = queries->rows; r < rows; r++) memset(s->scores + r * TILE, 0, TILE * sizeof(float));
    tile_product(rows, padded, pairs ? TILE / 2 : TILE, s->scores, TILE, s->v, s->out, true, pairs);
}

ALWAYS_INLINE void run(const nib_attention_job *job, int64_t index, int64_t head, float *workspace, bool pairs)
{
    const nib_attention_tile *queries = &job->tile[index];
    int64_t HD = job->shape.head_dim, padded = PADDED(HD), kv_head = head / (job->shape.heads / job->shape.kv_heads);
    forward_state s = {.q = workspace,
                       .k = workspace + TILE * HD,
                       .v = workspace + 2 * TILE * HD,
                       .scores = workspace + 2 * TILE * HD + TILE * padded,
                       .out = workspace + 2 * TILE * HD + TILE * padded + TILE * TILE};
    tile_source q = source_of(job->q, queries, head, HD);
    pack_rows(&q, s.q, pairs);
    memset(s.out, 0, (size_t)(TILE * padded) * sizeof *s.out);
    for (int r = 0; r < TILE; r++) s.maximum[r] = -INFINITY, s.sum[r] = 0.0f;

    for (int64_t t = job->segment[queries->segment].first_tile; t <= index; t++) {
        nib_tile_kind kind = nib_attention_tile_kind(queries, &job->tile[t], job->shape.window);
        if (kind != NIB_TILE_EMPTY)
            visit_keys(job, queries, &job->tile[t], kv_head, kind == NIB_TILE_MASKED, &s, pairs);
    }
    for (int64_t r = 0; r < queries->rows; r++) {
        void *out = nib_matrix_at(job->out, queries->first + r, head * HD);
        vec inverse = vec_set(1.0f / s.sum[r]);
        for (int64_t c = 0; c < HD; c += LANES)
            vec_put(out, job->out.dtype, c, HD, vec_load(s.out + r * padded + c) * inverse);
        if (job->lse_out != NULL) job->lse_out[head * job->tree.T + queries->first + r] = s.maximum[r] + logf(s.sum[r]);
    }
}

void NIB_SIMD(nib_attention_forward_tile)(const nib_attention_job *job, int64_t tile, int64_t head, float *workspace)
{
    tiles_begin();
    if (HAVE_PAIRS && job->q.dtype == NIB_DTYPE_BF16)
        run(job, tile, head, workspace, HAVE_PAIRS);
    else
        run(job, tile, head, workspace, false);
    tiles_end();
}
