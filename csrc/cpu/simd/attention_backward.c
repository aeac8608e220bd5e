/* One segment of one head, backward (Dao et al., "FlashAttention", 2022): for each key tile, over the query tiles that
 * see it in ascending order, so that every sum has one order.
 *
 * All five products have keys down and queries across, so the limits of a key are two scalars to a row and nothing is
 * transposed on the way:
 *     S = K Q^T, P = exp(scale S - lse), dP = V dO^T, dS = scale P (dP - D), D = sum(dO O) of a query,
 *     dV += P dO, dK += dS Q, dQ^T += K^T dS.
 */
#include "cpu/simd/level.h"
#include "cpu/simd/tile_product.h"

/* A query tile, packed once and used by all key tiles. */
typedef struct {
    float *q_transposed, *dout_transposed; /* [units][TILE] */
    float *q_columns, *dout_columns;       /* [TILE units][padded] */
    float *dq;                             /* [HD][TILE], the sum */
    float *lse, *d, *position;             /* [TILE] */
} query_tile;

typedef struct {
    float *k, *v;        /* [TILE][units] */
    float *k_by_key;     /* [HD][TILE units]: K^T */
    float *p, *ds;       /* [TILE][TILE] of keys by queries, then units along the queries */
    float *ds_by_key;    /* [TILE units along keys][TILE] */
    float *dk, *dv;      /* [TILE][padded] */
    float *query_memory; /* a query_tile for every tile of the segment */
} key_state;

static tile_source source_of(nib_matrix m, const nib_attention_tile *tile, int64_t head, int64_t head_dim)
{
    return (tile_source){nib_matrix_at(m, tile->first, head * head_dim), m.stride, m.dtype, tile->rows, head_dim};
}

static query_tile query_nib_matrix_at(float *memory, int64_t index, int64_t HD)
{
    int64_t padded = PADDED(HD);
    float *p = memory + index * NIB_ATTENTION_QUERY_FLOATS(HD);
    query_tile q = {.q_transposed = p, .dout_transposed = p + HD * TILE, .dq = p + 2 * HD * TILE};
    p += 3 * HD * TILE;
    q.q_columns = p;
    q.dout_columns = p + padded * TILE;
    q.lse = p + 2 * padded * TILE;
    q.d = q.lse + TILE;
    q.position = q.d + TILE;
    return q;
}

ALWAYS_INLINE void pack_queries(const nib_attention_job *job, const nib_attention_tile *tile, int64_t head,
                                query_tile *to, bool pairs)
{
    int64_t HD = job->shape.head_dim;
    tile_source q = source_of(job->q, tile, head, HD), dout = source_of(job->dout, tile, head, HD);
    pack_transposed(&q, to->q_transposed, pairs);
    pack_columns(&q, to->q_columns, pairs);
    pack_transposed(&dout, to->dout_transposed, pairs);
    pack_columns(&dout, to->dout_columns, pairs);
    memset(to->dq, 0, (size_t)(HD * TILE) * sizeof *to->dq);
    for (int64_t r = 0; r < TILE; r++) {
        to->lse[r] = to->d[r] = to->position[r] = 0.0f;
        if (r >= tile->rows) continue;
        int64_t t = tile->first + r;
        const void *o = nib_matrix_at(job->out, t, head * HD), *d = nib_matrix_at(job->dout, t, head * HD);
        vec sum = vec_zero();
        for (int64_t c = 0; c < HD; c += LANES)
            sum = vec_fma(vec_get(o, job->out.dtype, c, HD), vec_get(d, job->dout.dtype, c, HD), sum);
        to->d[r] = vec_sum(sum);
        to->lse[r] = job->lse[head * job->tree.T + t];
        to->position[r] = (float)job->tree.position[t];
    }
}

/* P and dS of one vector of queries for one key, from S and dP. */
ALWAYS_INLINE void gradient_vector(const nib_attention_job *job, int64_t i, float key, float key_end, float newest,
                                   bool masked, const query_tile *q, const float *s, const float *dp, vec *p, vec *ds)
{
    const nib_attention_shape *shape = &job->shape;
    vec scale = vec_set(shape->scale), slope = scale, x = vec_load(s + i) * scale;
    if (shape->softcap > 0.0f) {
        vec t = vec_tanh(x / vec_set(shape->softcap));
        x = t * vec_set(shape->softcap);
        slope = scale * (vec_set(1.0f) - t * t);
    }
    vec probability = vec_exp(x - vec_load(q->lse + i));
    if (masked) {
        vec query = vec_count((float)i);
        probability = vec_if_less(query, vec_set(key), vec_zero(), probability);
        probability = vec_if_less(query, vec_set(key_end), probability, vec_zero());
        if (shape->window > 0)
            probability = vec_if_less(vec_load(q->position + i), vec_set(newest), probability, vec_zero());
    }
    *p = probability;
    *ds = probability * (vec_load(dp + i) - vec_load(q->d + i)) * slope;
}

/* One key row: p and ds become units along the queries; ds itself is left in `plain` too. */
ALWAYS_INLINE void gradient_row(const nib_attention_job *job, const nib_attention_tile *queries, int64_t key,
                                bool exists, bool masked, const query_tile *q, float *p_row, float *ds_row,
                                float *plain, bool pairs)
{
    if (!exists) {
        memset(p_row, 0, TILE * sizeof *p_row);
        memset(ds_row, 0, TILE * sizeof *ds_row);
        memset(plain, 0, TILE * sizeof *plain);
        return;
    }
    float from = (float)(key - queries->first), to = (float)(job->tree.end[key] - queries->first);
    float newest = (float)(job->tree.position[key] + job->shape.window);
    for (int i = 0; i < TILE; i += 2 * LANES) {
        vec p[2], ds[2];
        for (int half = 0; half < 2; half++)
            gradient_vector(job, i + half * LANES, from, to, newest, masked, q, p_row, ds_row, &p[half], &ds[half]);
        vec_store(plain + i, ds[0]);
        vec_store(plain + i + LANES, ds[1]);
        store_units(p_row, i, p[0], p[1], pairs);
        store_units(ds_row, i, ds[0], ds[1], pairs);
    }
}

/* Two rows of dS as one row of units along the keys. */
ALWAYS_INLINE void interleave(const float *even, const float *odd, float *to)
{
    for (int i = 0; i < TILE; i++) to[i] = unit_of(nib_bf16_from_float(even[i]), nib_bf16_from_float(odd[i]));
}

ALWAYS_INLINE void visit_queries(const nib_attention_job *job, const nib_attention_tile *queries,
                                 const nib_attention_tile *keys, bool masked, const query_tile *q, key_state *s,
                                 bool pairs)
{
    int64_t HD = job->shape.head_dim, padded = PADDED(HD), units = pairs ? HD / 2 : HD;
    int64_t rows = ROWS_PADDED(keys->rows), tile_units = pairs ? TILE / 2 : TILE;
    tile_product(rows, TILE, units, s->k, units, q->q_transposed, s->p, false, pairs);
    tile_product(rows, TILE, units, s->v, units, q->dout_transposed, s->ds, false, pairs);
    /* Rows of the tile are padded for the products, to an even number: pairs of keys are whole. */
    for (int64_t r = 0; r < rows; r += 2) {
        float plain[2][TILE];
        for (int64_t i = 0; i < 2; i++)
            gradient_row(job, queries, keys->first + r + i, r + i < keys->rows, masked, q, s->p + (r + i) * TILE,
                         s->ds + (r + i) * TILE, pairs ? plain[i] : s->ds_by_key + (r + i) * TILE, pairs);
        if (pairs) interleave(plain[0], plain[1], s->ds_by_key + r / 2 * TILE);
    }
    tile_product(rows, padded, tile_units, s->p, TILE, q->dout_columns, s->dv, true, pairs);
    tile_product(rows, padded, tile_units, s->ds, TILE, q->q_columns, s->dk, true, pairs);
    tile_product(HD, TILE, pairs ? rows / 2 : rows, s->k_by_key, tile_units, s->ds_by_key, q->dq, true, pairs);
}

ALWAYS_INLINE void load_keys(const nib_attention_job *job, const nib_attention_tile *keys, int64_t kv_head,
                             key_state *s, bool pairs)
{
    int64_t HD = job->shape.head_dim, tile_units = pairs ? TILE / 2 : TILE;
    tile_source k = source_of(job->k, keys, kv_head, HD), v = source_of(job->v, keys, kv_head, HD);
    pack_rows(&k, s->k, pairs);
    pack_rows(&v, s->v, pairs);
    memset(s->k_by_key, 0, (size_t)(HD * tile_units) * sizeof(float));
    for (int64_t r = 0; r < keys->rows; r += pairs ? 2 : 1)
        for (int64_t c = 0; c < HD; c++)
            s->k_by_key[c * tile_units + (pairs ? r / 2 : r)] =
                pairs ? unit_of(source_bf16(&k, r, c), r + 1 < keys->rows ? source_bf16(&k, r + 1, c) : (nib_bf16){0})
                      : source_at(&k, r, c);
}

ALWAYS_INLINE void run(const nib_attention_job *job, int64_t segment, int64_t head, float *workspace, bool pairs)
{
    int64_t HD = job->shape.head_dim, padded = PADDED(HD), kv_head = head / (job->shape.heads / job->shape.kv_heads);
    int64_t first = job->segment[segment].first_tile, last = job->segment[segment].last_tile;
    key_state s = {.k = workspace, .v = workspace + TILE * HD, .k_by_key = workspace + 2 * TILE * HD};
    s.dk = workspace + 3 * TILE * HD;
    s.dv = s.dk + TILE * padded;
    s.p = s.dv + TILE * padded;
    s.ds = s.p + TILE * TILE;
    s.ds_by_key = s.ds + TILE * TILE;
    s.query_memory = s.ds_by_key + TILE * TILE;
    for (int64_t t = first; t < last; t++) {
        query_tile q = query_nib_matrix_at(s.query_memory, t - first, HD);
        pack_queries(job, &job->tile[t], head, &q, pairs);
    }
    for (int64_t n = first; n < last; n++) {
        const nib_attention_tile *keys = &job->tile[n];
        load_keys(job, keys, kv_head, &s, pairs);
        memset(s.dk, 0, (size_t)(2 * TILE * padded) * sizeof(float)); /* dv lies behind dk */
        for (int64_t m = n; m < last; m++) {
            nib_tile_kind kind = nib_attention_tile_kind(&job->tile[m], keys, job->shape.window);
            query_tile q = query_nib_matrix_at(s.query_memory, m - first, HD);
            if (job->tile[m].rows < TILE && kind == NIB_TILE_WHOLE) kind = NIB_TILE_MASKED;
            if (kind != NIB_TILE_EMPTY) visit_queries(job, &job->tile[m], keys, kind == NIB_TILE_MASKED, &q, &s, pairs);
        }
        for (int64_t r = 0; r < keys->rows; r++) {
            int64_t row = (head * job->tree.T + keys->first + r) * HD;
            memcpy(job->dk + row, s.dk + r * padded, (size_t)HD * sizeof(float));
            memcpy(job->dv + row, s.dv + r * padded, (size_t)HD * sizeof(float));
        }
    }
    for (int64_t t = first; t < last; t++) {
        query_tile q = query_nib_matrix_at(s.query_memory, t - first, HD);
        for (int64_t r = 0; r < job->tile[t].rows; r++) {
            float row[NIB_ATTENTION_HEAD_DIM];
            for (int64_t c = 0; c < HD; c++) row[c] = q.dq[c * TILE + r];
            void *dq = nib_matrix_at(job->dq, job->tile[t].first + r, head * HD);
            for (int64_t c = 0; c < HD; c += LANES)
                vec_put(dq, job->dq.dtype, c, HD, vec_get(row, NIB_DTYPE_F32, c, HD));
        }
    }
}

void NIB_SIMD(nib_attention_backward_segment)(const nib_attention_job *job, int64_t segment, int64_t head,
                                              float *workspace)
{
    tiles_begin();
    if (HAVE_PAIRS && job->q.dtype == NIB_DTYPE_BF16)
        run(job, segment, head, workspace, HAVE_PAIRS);
    else
        run(job, segment, head, workspace, false);
    tiles_end();
}
