/* Cases of what multiplies matrices: linear layers, attention, the loss. Their kernels use tensor cores. */
#include "base/memory.h"
#include "self_check_case.h"

#include <math.h>

static nib_status random_bytes(nib_check_run *run, uint64_t seed, int64_t n, uint8_t **bytes)
{
    uint8_t *host = nib_calloc((size_t)n, 1);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld codes of the self-check", (long long)n);
    for (int64_t i = 0; i < n; i++) host[i] = (uint8_t)(128.0f * (1.0f + nib_check_uniform(seed, (uint64_t)i)));
    nib_status status = nib_check_upload(run, host, (size_t)n, bytes);
    nib_free(host);
    return status;
}

/* Double quantised; weights of up to 0.08. */
static nib_status random_nf4(nib_check_run *run, uint64_t seed, int64_t n, nib_nf4 *nf4)
{
    const int64_t blocks = (n + 63) / 64, nested = (blocks + 255) / 256;
    uint8_t *codes, *absmax_codes;
    float *map, *nested_absmax;
    NIB_TRY(random_bytes(run, seed, (n + 1) / 2, &codes));
    NIB_TRY(random_bytes(run, seed + 1, blocks, &absmax_codes));
    NIB_TRY(nib_check_floats(run, seed + 2, nested, &nested_absmax));
    NIB_TRY(nib_check_upload(run, nib_nf4_dynamic_map, 256 * sizeof *map, &map));
    *nf4 = (nib_nf4){.codes = codes,
                     .absmax_codes = absmax_codes,
                     .nested_absmax = nested_absmax,
                     .nested_map = map,
                     .nested_offset = 0.0625f};
    return NIB_OK;
}

static nib_status make_part(nib_check_run *run, uint64_t seed, int64_t K, int64_t rows, int64_t rank,
                            nib_linear_part *part)
{
    float *bias;
    *part = (nib_linear_part){.rows = rows};
    NIB_TRY(random_nf4(run, seed, rows * K, &part->nf4));
    NIB_TRY(nib_check_floats(run, seed + 3, rows, &bias));
    part->bias = bias;
    part->lora = (nib_lora){.rank = rank, .scale = 1.5f};
    if (rank == 0) return NIB_OK;
    NIB_TRY(nib_check_matrix(run, seed + 4, rank, K, &part->lora.a));
    NIB_TRY(nib_check_matrix(run, seed + 5, rows, rank, &part->lora.b));
    NIB_TRY(nib_check_floats(run, seed + 6, rank * K, &part->lora.da));
    return nib_check_floats(run, seed + 7, rows * rank, &part->lora.db);
}

typedef struct {
    nib_linear linear;
    nib_dropout dropout;
    nib_matrix x, u, y;
} layer;

/* Makes a part DoRA's, which it must be before the linear is computed. */
static nib_status add_magnitudes(nib_check_run *run, uint64_t seed, int64_t K, nib_linear_part *part)
{
    nib_dora *dora = &part->lora.dora;
    float *magnitude;
    NIB_TRY(nib_check_floats(run, seed, part->rows, &magnitude));
    NIB_TRY(nib_check_floats(run, seed + 1, part->rows, &dora->dmagnitude));
    NIB_TRY(nib_check_empty_floats(run, part->rows, &dora->norm));
    NIB_TRY(nib_check_empty_floats(run, part->rows, &dora->gain));
    dora->magnitude = magnitude;
    return run->ops->dora_norm(run->ops, part, K);
}

static nib_status dora_norm(nib_check_run *run, const int64_t *size)
{
    nib_linear_part part;
    NIB_TRY(make_part(run, 10, size[1], size[0], size[2], &part));
    NIB_TRY(add_magnitudes(run, 18, size[1], &part));
    NIB_TRY(nib_check_keep_floats(run, "norm", part.lora.dora.norm, part.rows, NIB_CHECK_FP32));
    return nib_check_keep_floats(run, "gain", part.lora.dora.gain, part.rows, NIB_CHECK_FP32);
}

/* size: T, K, rows and rank of the first part, of the second, dropout in percent. DoRA: the first part, if asked for.
 */
static nib_status make_layer(nib_check_run *run, const int64_t *size, bool dora, layer *l)
{
    const int64_t T = size[0], K = size[1];
    const uint64_t key[] = {0x1234567, 0x89abcdef01};
    *l = (layer){.linear = {.name = "self-check", .K = K, .parts = 2}, .dropout = {.p = (float)size[6] / 100}};
    NIB_TRY(nib_check_upload(run, key, sizeof key, &l->dropout.key));
    NIB_TRY(make_part(run, 10, K, size[2], size[3], &l->linear.part[0]));
    NIB_TRY(make_part(run, 20, K, size[4], size[5], &l->linear.part[1]));
    if (dora) NIB_TRY(add_magnitudes(run, 18, K, &l->linear.part[0]));
    NIB_TRY(nib_check_matrix(run, 1, T, K, &l->x));
    NIB_TRY(nib_check_empty(run, T, size[3] + size[5], &l->u));
    NIB_TRY(nib_check_empty(run, T, size[2] + size[4], &l->y));
    return run->ops->linear_forward(run->ops, &l->linear, l->x, l->dropout, l->u, l->y);
}

static nib_status forward(nib_check_run *run, const int64_t *size, bool dora)
{
    layer l;
    NIB_TRY(make_layer(run, size, dora, &l));
    NIB_TRY(nib_check_keep(run, "u", l.u, NIB_CHECK_BF16));
    return nib_check_keep(run, "y", l.y, NIB_CHECK_BF16);
}

static nib_status backward(nib_check_run *run, const int64_t *size, bool dora, bool accumulate)
{
    layer l;
    nib_matrix dy, dx;
    NIB_TRY(make_layer(run, size, dora, &l));
    NIB_TRY(nib_check_matrix(run, 2, size[0], l.y.columns, &dy));
    NIB_TRY(nib_check_matrix(run, 3, size[0], size[1], &dx));
    NIB_TRY(run->ops->linear_backward(run->ops, &l.linear, l.x, l.dropout, l.u, dy, accumulate, dx));
    NIB_TRY(nib_check_keep(run, "dx", dx, NIB_CHECK_BF16));
    for (int p = 0; p < 2; p++) {
        const nib_linear_part *part = &l.linear.part[p];
        if (part->lora.rank == 0) continue;
        NIB_TRY(nib_check_keep_floats(run, "da", part->lora.da, part->lora.rank * size[1], NIB_CHECK_BF16));
        NIB_TRY(nib_check_keep_floats(run, "db", part->lora.db, part->rows * part->lora.rank, NIB_CHECK_BF16));
        if (part->lora.dora.gain == NULL) continue;
        NIB_TRY(nib_check_keep_floats(run, "dmagnitude", part->lora.dora.dmagnitude, part->rows, NIB_CHECK_BF16));
    }
    return NIB_OK;
}

static nib_status linear_forward(nib_check_run *run, const int64_t *size) { return forward(run, size, false); }
static nib_status linear_backward(nib_check_run *run, const int64_t *size) { return backward(run, size, false, true); }
static nib_status linear_dx(nib_check_run *run, const int64_t *size) { return backward(run, size, false, false); }
static nib_status dora_forward(nib_check_run *run, const int64_t *size) { return forward(run, size, true); }
static nib_status dora_backward(nib_check_run *run, const int64_t *size) { return backward(run, size, true, true); }

/* Numbers of four bits, which e4m3 holds: eighths up to 15. */
static nib_status eighths(nib_check_run *run, uint64_t seed, int64_t rows, int64_t columns, nib_matrix *m)
{
    const int64_t n = rows * columns;
    const size_t element = run->dtype == NIB_DTYPE_F32 ? 4 : 2;
    *m = (nib_matrix){.rows = rows, .columns = columns, .stride = columns, .dtype = run->dtype};
    void *host = nib_calloc((size_t)n, element);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a matrix of the self-check");
    for (int64_t i = 0; i < n; i++) {
        const float value = truncf(16 * nib_check_uniform(seed, (uint64_t)i)) / 8;
        if (run->dtype == NIB_DTYPE_F32)
            ((float *)host)[i] = value;
        else
            ((nib_bf16 *)host)[i] = nib_bf16_from_float(value);
    }
    nib_status status = nib_check_upload(run, host, (size_t)n * element, &m->data);
    nib_free(host);
    return status;
}

/* A part of rank 4 whose weights e4m3 holds: zero, or plus or minus a power of two. */
static nib_status make_fp8_part(nib_check_run *run, uint64_t seed, int64_t K, int64_t rows, nib_linear_part *part)
{
    static const uint8_t code[4] = {0, 7, 15, 15}; /* -1, 0, 1, 1 */
    const int64_t bytes = rows * K / 2, blocks = (rows * K + 63) / 64;
    uint8_t *codes;
    float *absmax, *host_absmax = nib_calloc((size_t)blocks, sizeof *absmax);
    uint8_t *host = nib_calloc((size_t)bytes, 1);
    nib_status status = NIB_OK;
    if (host == NULL || host_absmax == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a weight of the self-check");
        goto done;
    }
    for (int64_t i = 0; i < bytes; i++) {
        const int word = (int)(8 + 8 * nib_check_uniform(seed, (uint64_t)i));
        host[i] = (uint8_t)(code[word & 3] << 4 | code[word >> 2 & 3]);
    }
    for (int64_t i = 0; i < blocks; i++) host_absmax[i] = i % 3 == 0 ? 0.125f : 0.5f;
    NIB_TRY_GOTO(make_part(run, seed + 1, K, rows, 4, part), done);
    NIB_TRY_GOTO(nib_check_upload(run, host, (size_t)bytes, &codes), done);
    NIB_TRY_GOTO(nib_check_upload(run, host_absmax, (size_t)blocks * sizeof *absmax, &absmax), done);
    part->nf4 = (nib_nf4){.codes = codes, .absmax = absmax};
done:
    nib_free(host_absmax);
    nib_free(host);
    return status;
}

/* In 8-bit floating point where the device has it, on operands that lose nothing by it. size: T, K, rows of each part,
 * dropout in percent. */
static nib_status linear_fp8(nib_check_run *run, const int64_t *size)
{
    nib_ops *ops = run->ops;
    const int64_t T = size[0], K = size[1], rows = size[2];
    const uint64_t key[] = {0x1234567, 0x89abcdef01};
    nib_dropout dropout = {.p = (float)size[3] / 100};
    nib_linear linear = {.name = "self-check", .K = K, .parts = 2, .fp8_forward = ops->fp8, .fp8_backward = ops->fp8};
    nib_matrix x, u, y, dy, dx;
    for (int p = 0; p < 2; p++) NIB_TRY(make_fp8_part(run, 10 + 20 * (uint64_t)p, K, rows, &linear.part[p]));
    NIB_TRY(nib_check_upload(run, key, sizeof key, &dropout.key));
    NIB_TRY(eighths(run, 1, T, K, &x));
    NIB_TRY(eighths(run, 2, T, 2 * rows, &dy));
    NIB_TRY(nib_check_empty(run, T, 8, &u));
    NIB_TRY(nib_check_empty(run, T, 2 * rows, &y));
    NIB_TRY(nib_check_matrix(run, 3, T, K, &dx));
    NIB_TRY(ops->linear_forward(ops, &linear, x, dropout, u, y));
    NIB_TRY(ops->linear_backward(ops, &linear, x, dropout, u, dy, true, dx));
    NIB_TRY(nib_check_keep(run, "y", y, NIB_CHECK_BF16));
    NIB_TRY(nib_check_keep(run, "dx", dx, NIB_CHECK_BF16));
    return nib_check_keep_floats(run, "da", linear.part[0].lora.da, 4 * K, NIB_CHECK_BF16);
}

/* A dense weight that is trained itself. size: T, K, outputs. */
static nib_status linear_dense(nib_check_run *run, const int64_t *size)
{
    nib_ops *ops = run->ops;
    const int64_t T = size[0], K = size[1], N = size[2];
    nib_linear linear = {.name = "self-check", .K = K, .parts = 1, .part = {{.rows = N}}};
    nib_linear_part *part = &linear.part[0];
    nib_matrix x, y, dy, dx, none = {0};
    NIB_TRY(nib_check_matrix(run, 1, N, K, &part->dense));
    NIB_TRY(nib_check_floats(run, 2, N * K, &part->dweight));
    NIB_TRY(nib_check_floats(run, 3, N, &part->dbias));
    NIB_TRY(nib_check_matrix(run, 4, T, K, &x));
    NIB_TRY(nib_check_empty(run, T, N, &y));
    NIB_TRY(nib_check_matrix(run, 5, T, N, &dy));
    NIB_TRY(nib_check_empty(run, T, K, &dx));
    NIB_TRY(ops->linear_forward(ops, &linear, x, (nib_dropout){0}, none, y));
    NIB_TRY(ops->linear_backward(ops, &linear, x, (nib_dropout){0}, none, dy, false, dx));
    NIB_TRY(nib_check_keep(run, "y", y, NIB_CHECK_BF16));
    NIB_TRY(nib_check_keep(run, "dx", dx, NIB_CHECK_BF16));
    NIB_TRY(nib_check_keep_floats(run, "dweight", part->dweight, N * K, NIB_CHECK_FP32));
    return nib_check_keep_floats(run, "dbias", part->dbias, N, NIB_CHECK_FP32);
}

static nib_status nf4_dequantize(nib_check_run *run, const int64_t *size)
{
    nib_nf4 nf4;
    nib_matrix out;
    NIB_TRY(random_nf4(run, 1, size[0] * size[1], &nf4));
    NIB_TRY(nib_check_empty(run, size[0], size[1], &out));
    NIB_TRY(run->ops->nf4_dequantize(run->ops, &nf4, out));
    return nib_check_keep(run, "weights", out, NIB_CHECK_BITS);
}

/* Two documents, each a first third with the two other thirds as children that do not see each other. */
static nib_status make_tree(nib_check_run *run, int64_t T, nib_tree *tree)
{
    int32_t *position = nib_calloc((size_t)(2 * T), sizeof *position), *end = position + T, *on_device;
    if (position == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a tree of the self-check");
    const int64_t begin[] = {0, T / 5 * 2, T};
    for (int d = 0; d < 2; d++) {
        const int64_t first = begin[d], last = begin[d + 1], third = (last - first) / 3;
        for (int64_t t = first; t < last; t++) {
            const bool shared = t < first + third, second = t >= first + 2 * third;
            position[t] = (int32_t)(second ? t - first - third : t - first);
            end[t] = (int32_t)(shared || second ? last : first + 2 * third);
        }
    }
    nib_status status = nib_check_upload(run, position, (size_t)(2 * T) * sizeof *position, &on_device);
    if (status == NIB_OK) *tree = (nib_tree){T, on_device, on_device + T};
    nib_free(position);
    return status;
}

typedef struct {
    nib_attention_shape shape;
    nib_tree tree;
    nib_matrix q, k, v, out;
    float *lse;
} attention;

/* size: T, heads, key/value heads, head dim, window, soft-cap. */
static nib_status make_attention(nib_check_run *run, const int64_t *size, attention *a)
{
    const int64_t T = size[0], queries = size[1] * size[3], keys = size[2] * size[3];
    a->shape = (nib_attention_shape){size[1], size[2], size[3], 1.0f / sqrtf((float)size[3]), size[4], (float)size[5]};
    NIB_TRY(make_tree(run, T, &a->tree));
    NIB_TRY(nib_check_matrix(run, 1, T, queries, &a->q));
    NIB_TRY(nib_check_matrix(run, 2, T, keys, &a->k));
    NIB_TRY(nib_check_matrix(run, 3, T, keys, &a->v));
    NIB_TRY(nib_check_empty(run, T, queries, &a->out));
    NIB_TRY(nib_check_empty_floats(run, T * size[1], &a->lse));
    return run->ops->attention_forward(run->ops, a->shape, a->tree, a->q, a->k, a->v, a->out, a->lse);
}

static nib_status attention_forward(nib_check_run *run, const int64_t *size)
{
    attention a;
    NIB_TRY(make_attention(run, size, &a));
    NIB_TRY(nib_check_keep(run, "out", a.out, NIB_CHECK_BF16));
    return nib_check_keep_floats(run, "lse", a.lse, size[0] * size[1], NIB_CHECK_FP32);
}

static nib_status attention_backward(nib_check_run *run, const int64_t *size)
{
    attention a;
    nib_matrix dout, dq, dk, dv;
    NIB_TRY(make_attention(run, size, &a));
    NIB_TRY(nib_check_matrix(run, 4, size[0], a.q.columns, &dout));
    NIB_TRY(nib_check_empty(run, size[0], a.q.columns, &dq));
    NIB_TRY(nib_check_empty(run, size[0], a.k.columns, &dk));
    NIB_TRY(nib_check_empty(run, size[0], a.k.columns, &dv));
    NIB_TRY(run->ops->attention_backward(run->ops, a.shape, a.tree, a.q, a.k, a.v, a.out, a.lse, dout, dq, dk, dv));
    /* Gradients shrink with the number of keys: of a long context the first rows are many times the size of the rest.
     */
    const double allowed = size[0] > 256 ? 4 * NIB_CHECK_BF16 : NIB_CHECK_BF16;
    NIB_TRY(nib_check_keep(run, "dq", dq, allowed));
    NIB_TRY(nib_check_keep(run, "dk", dk, allowed));
    return nib_check_keep(run, "dv", dv, allowed);
}

/* size: rows of the cache (300 at least), heads, key/value heads, head dim, window. */
static nib_status attention_cached(nib_check_run *run, const int64_t *size)
{
    static const nib_cache_range ranges[] = {{3, 1}, {10, 200}, {0, 0}, {260, 29}, {5, 7}, {0, 300}};
    static const int32_t begin[] = {0, 1, 4, 5, 6};
    const nib_attention_shape shape = {size[1], size[2], size[3], 1.0f / sqrtf((float)size[3]), size[4], 0};
    nib_matrix q, k, v, out;
    NIB_TRY(nib_check_matrix(run, 1, 4, size[1] * size[3], &q));
    NIB_TRY(nib_check_matrix(run, 2, size[0], size[2] * size[3], &k));
    NIB_TRY(nib_check_matrix(run, 3, size[0], size[2] * size[3], &v));
    NIB_TRY(nib_check_empty(run, 4, size[1] * size[3], &out));
    NIB_TRY(run->ops->attention_cached(run->ops, shape, q, k, v, begin, ranges, out));
    return nib_check_keep(run, "out", out, NIB_CHECK_BF16);
}

/* Up to three labels a row, some rows without. */
static nib_status make_targets(nib_check_run *run, int64_t T, int64_t V, nib_targets *targets)
{
    enum { MOST = 2048 };
    int32_t row[MOST], label[MOST], *rows, *labels;
    float weight[MOST], *weights;
    int64_t N = 0;
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < (t * 7 + 1) % 4 && N < MOST; k++, N++) {
            row[N] = (int32_t)t;
            label[N] = (int32_t)((t * 5 + k / 2 * 3) % V);
            weight[N] = 0.5f + 0.25f * (float)k;
        }
    NIB_TRY(nib_check_upload(run, row, (size_t)N * sizeof *row, &rows));
    NIB_TRY(nib_check_upload(run, label, (size_t)N * sizeof *label, &labels));
    NIB_TRY(nib_check_upload(run, weight, (size_t)N * sizeof *weight, &weights));
    *targets = (nib_targets){N, rows, labels, weights};
    return NIB_OK;
}

/* size: T, C, V, soft-cap. */
static nib_status linear_cross_entropy(nib_check_run *run, const int64_t *size)
{
    const int64_t T = size[0], C = size[1], V = size[2];
    nib_targets targets;
    float *nll, *dhead;
    nib_matrix x, head, dx;
    NIB_TRY(make_targets(run, T, V, &targets));
    NIB_TRY(nib_check_matrix(run, 1, T, C, &x));
    NIB_TRY(nib_check_matrix(run, 2, V, C, &head));
    NIB_TRY(nib_check_empty(run, T, C, &dx));
    NIB_TRY(nib_check_floats(run, 3, V * C, &dhead));
    NIB_TRY(nib_check_empty_floats(run, targets.N, &nll));
    NIB_TRY(run->ops->linear_cross_entropy(run->ops, x, head, (float)size[3], targets, 1.0f / (float)targets.N, nll, dx,
                                           dhead));
    NIB_TRY(nib_check_keep_floats(run, "nll", nll, targets.N, NIB_CHECK_FP32));
    NIB_TRY(nib_check_keep(run, "dx", dx, NIB_CHECK_BF16));
    return nib_check_keep_floats(run, "dhead", dhead, V * C, NIB_CHECK_BF16);
}

/* size: T, C, V, selected rows of the head, of which some are labels. */
static nib_status head_rows_backward(nib_check_run *run, const int64_t *size)
{
    const int64_t T = size[0], C = size[1], V = size[2], n = size[3];
    int32_t selected[64], *row;
    nib_targets targets;
    float *nll, *drows;
    nib_matrix x, head;
    for (int64_t k = 0; k < n; k++) selected[k] = (int32_t)(V - 1 - 2 * k);
    NIB_TRY(nib_check_upload(run, selected, (size_t)n * sizeof *selected, &row));
    NIB_TRY(make_targets(run, T, V, &targets));
    NIB_TRY(nib_check_matrix(run, 1, T, C, &x));
    NIB_TRY(nib_check_matrix(run, 2, V, C, &head));
    NIB_TRY(nib_check_empty_floats(run, targets.N, &nll));
    NIB_TRY(nib_check_floats(run, 3, n * C, &drows));
    NIB_TRY(run->ops->linear_cross_entropy(run->ops, x, head, 0.0f, targets, 1.0f, nll, (nib_matrix){0}, NULL));
    NIB_TRY(run->ops->head_rows_backward(run->ops, x, head, targets, 0.25f, nll, n, row, drows));
    return nib_check_keep_floats(run, "drows", drows, n * C, NIB_CHECK_FP32);
}

/* size: rows, C, V, soft-cap. */
static nib_status logits(nib_check_run *run, const int64_t *size)
{
    nib_matrix x, head;
    float *out;
    NIB_TRY(nib_check_matrix(run, 1, size[0], size[1], &x));
    NIB_TRY(nib_check_matrix(run, 2, size[2], size[1], &head));
    NIB_TRY(nib_check_empty_floats(run, size[0] * size[2], &out));
    NIB_TRY(run->ops->logits(run->ops, x, head, (float)size[3], out));
    return nib_check_keep_floats(run, "logits", out, size[0] * size[2], NIB_CHECK_FP32);
}

#define LINEAR    "T %lld, K %lld, %lld outputs of rank %lld and %lld of rank %lld, dropout %lld %%"
#define ATTENTION "T %lld, %lld heads on %lld of %lld, window %lld, soft-cap %lld"
#define CACHED    "%lld rows, %lld heads on %lld of %lld, window %lld"
#define LOSS      "T %lld, C %lld, V %lld, soft-cap %lld"
#define ROWS      "T %lld, C %lld, V %lld, %lld rows"

/* Linears by number of rows: a product with a vector, with few, with many; without cublasLt Hopper decodes the weights
 * of many in registers, which comes first, so that cublasLt's plain sibling has no kernel beside it that may be wrong.
 * Attention: each head dim is a kernel of its own, and so is one with a soft-cap. */
/* clang-format off */
const nib_check_case nib_check_products[] = {
    {"nf4_dequantize", "[%lld, %lld]", nf4_dequantize, .two = true, .size = {33, 192}},
    {"nf4_dequantize", "[%lld, %lld]", nf4_dequantize, .size = {7, 33}},
    {"nf4_dequantize", "[%lld, %lld]", nf4_dequantize, .two = true, .full = true, .size = {2048, 4096}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .without = "matmul", .size = {66, 128, 48, 4, 24, 0, 25}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .size = {1, 192, 48, 4, 16, 0, 0}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .size = {12, 192, 48, 4, 16, 8, 0}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .size = {65, 128, 48, 4, 24, 0, 25}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .full = true, .size = {1, 4096, 1024, 16, 512, 16, 0}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .full = true, .size = {60, 4096, 1024, 16, 512, 16, 0}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .full = true, .size = {259, 2048, 1024, 64, 512, 16, 0}},
    {"linear_forward", LINEAR, linear_forward, .two = true, .full = true, .without = "matmul", .size = {259, 2048, 1024, 64, 512, 16, 0}},
    {"linear_backward, dx written", LINEAR, linear_dx, .two = true, .without = "matmul", .size = {66, 128, 48, 4, 24, 0, 0}},
    {"linear_backward", LINEAR, linear_backward, .two = true, .size = {65, 128, 48, 4, 24, 0, 25}},
    {"linear_backward, dx written", LINEAR, linear_dx, .two = true, .full = true, .size = {259, 2048, 1024, 64, 512, 16, 0}},
    {"linear_backward, dx written", LINEAR, linear_dx, .two = true, .full = true, .without = "matmul", .size = {259, 2048, 1024, 64, 512, 16, 0}},
    {"linear_backward", LINEAR, linear_backward, .two = true, .full = true, .size = {259, 2048, 1024, 64, 512, 16, 10}},
    {"linear, fp8", "T %lld, K %lld, 2 x %lld outputs, dropout %lld %%", linear_fp8, .two = true, .size = {65, 144, 48, 25}},
    {"linear, fp8", "T %lld, K %lld, 2 x %lld outputs, dropout %lld %%", linear_fp8, .two = true, .full = true, .size = {259, 2048, 1024, 0}},
    {"dora_norm", "[%lld, %lld], rank %lld", dora_norm, .size = {33, 128, 4}},
    {"dora_norm", "[%lld, %lld], rank %lld", dora_norm, .size = {20, 100, 40}},
    {"dora_norm", "[%lld, %lld], rank %lld", dora_norm, .full = true, .size = {1024, 2048, 16}},
    {"linear_forward, DoRA", LINEAR, dora_forward, .two = true, .size = {12, 192, 48, 4, 16, 8, 0}},
    {"linear_forward, DoRA", LINEAR, dora_forward, .two = true, .size = {65, 128, 48, 4, 24, 0, 0}},
    {"linear_forward, DoRA", LINEAR, dora_forward, .two = true, .size = {65, 128, 48, 4, 24, 0, 25}},
    {"linear_backward, DoRA", LINEAR, dora_backward, .two = true, .size = {65, 128, 48, 4, 24, 0, 0}},
    {"linear_backward, DoRA", LINEAR, dora_backward, .two = true, .full = true, .size = {259, 2048, 1024, 64, 512, 16, 10}},
    {"linear, trained", "T %lld, K %lld, %lld outputs", linear_dense, .two = true, .size = {33, 72, 40}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .size = {70, 2, 1, 64, 0, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .size = {70, 2, 1, 128, 0, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .size = {33, 2, 1, 16, 0, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .size = {33, 2, 2, 80, 9, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .size = {33, 2, 2, 96, 0, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .size = {33, 1, 1, 256, 0, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .size = {33, 1, 1, 256, 9, 5}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .full = true, .size = {1001, 8, 2, 64, 0, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .full = true, .size = {1001, 8, 2, 128, 0, 0}},
    {"attention_forward", ATTENTION, attention_forward, .two = true, .full = true, .size = {1001, 4, 1, 128, 300, 30}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .size = {70, 2, 1, 64, 0, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .size = {70, 2, 1, 128, 0, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .size = {33, 2, 1, 16, 0, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .size = {33, 2, 2, 80, 9, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .size = {33, 2, 2, 96, 0, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .size = {33, 1, 1, 256, 0, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .size = {33, 1, 1, 256, 9, 5}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .full = true, .size = {1001, 8, 2, 64, 0, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .full = true, .size = {1001, 8, 2, 128, 0, 0}},
    {"attention_backward", ATTENTION, attention_backward, .two = true, .full = true, .size = {1001, 4, 1, 128, 300, 30}},
    {"attention_cached", CACHED, attention_cached, .two = true, .size = {300, 6, 2, 64, 0}},
    {"attention_cached", CACHED, attention_cached, .two = true, .size = {300, 4, 1, 128, 33}},
    {"attention_cached", CACHED, attention_cached, .two = true, .full = true, .size = {3001, 32, 8, 128, 0}},
    {"linear_cross_entropy", LOSS, linear_cross_entropy, .two = true, .size = {33, 24, 97, 0}},
    {"linear_cross_entropy", LOSS, linear_cross_entropy, .two = true, .size = {9, 64, 300, 5}},
    {"linear_cross_entropy", LOSS, linear_cross_entropy, .two = true, .full = true, .size = {257, 512, 9001, 0}},
    {"head_rows_backward", ROWS, head_rows_backward, .size = {33, 24, 97, 3}},
    {"head_rows_backward", ROWS, head_rows_backward, .size = {33, 100, 97, 40}},
    {"head_rows_backward", ROWS, head_rows_backward, .full = true, .size = {257, 512, 9001, 7}},
    {"logits", LOSS, logits, .two = true, .size = {3, 64, 97, 0}},
    {"logits", LOSS, logits, .two = true, .full = true, .size = {3, 1024, 9001, 30}},
    {0},
};
/* clang-format on */
