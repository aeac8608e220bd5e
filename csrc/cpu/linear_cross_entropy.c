/* For the distinct rows that have a target, a chunk at a time:
 *     z = head x,  nll = logsumexp(z) - z[label],  dz = scale * (sum of weights * softmax(z) - weights at the labels),
 *     dx = dz head,  dhead += dz^T x.
 * The logits of a chunk are all that ever exists; dz overwrites them in the activation type. */
#include "cpu/linear_cross_entropy.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/target_chunk.h"
#include "cpu/vector.h"

#include <math.h>

/* logsumexp of a row, capping it in place if softcap > 0. */
NIB_CPU_CLONES static float log_sum_exp(float *z, int64_t V, float softcap)
{
    if (softcap > 0.0f)
        for (int64_t v = 0; v < V; v++) z[v] = softcap * tanhf(z[v] / softcap);
    nib_v16 top = nib_v16_set(-INFINITY), sum = nib_v16_set(0.0f);
    float lanes[16], largest = -INFINITY, tail = 0.0f;
    int64_t v = 0;
    for (; v + 16 <= V; v += 16) top = nib_v16_max(top, *(const nib_v16 *)(z + v));
    memcpy(lanes, &top, sizeof lanes);
    for (int i = 0; i < 16; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    for (int64_t i = v; i < V; i++) largest = z[i] > largest ? z[i] : largest;
    for (v = 0; v + 16 <= V; v += 16) sum += nib_v16_exp(*(const nib_v16 *)(z + v) - largest);
    for (; v < V; v++) tail += expf(z[v] - largest);
    return largest + logf(nib_v16_sum(sum) + tail);
}

/* dz of one row in dtype, written to `out`, but for its labels: weight * softmax. */
NIB_CPU_CLONES static void softmax_gradient(const float *z, int64_t V, float lse, float weight, float softcap,
                                            nib_dtype dtype, void *out)
{
    float piece[16];
    for (int64_t v = 0; v < V; v += 16) {
        int64_t n = V - v < 16 ? V - v : 16;
        nib_v16 x = nib_v16_set(-INFINITY);
        memcpy(&x, z + v, (size_t)n * sizeof *z);
        nib_v16 p = nib_v16_exp(x - lse) * weight;
        if (softcap > 0.0f) p *= 1.0f - x * x / (softcap * softcap);
        memcpy(piece, &p, sizeof piece);
        nib_store_row(piece, dtype, n, (char *)out + v * (dtype == NIB_DTYPE_F32 ? 4 : 2));
    }
}

typedef struct {
    nib_matrix x, head;
    float softcap, gradient_scale;
    nib_targets targets;
    float *nll;
    bool backward;
} loss_inputs;

/* dz at the label of target n: softmax less the weight of every target with that label, rounded once. Taken off a
 * softmax that is rounded already, what is left of a nearly certain label would be that rounding. */
static void label_gradient(const loss_inputs *in, int64_t first, int64_t last, int64_t n, float lse, float weight,
                           void *dz)
{
    int32_t label = in->targets.label[n];
    float z = lse - in->nll[n], own = 0.0f; /* the label's logit; z itself is overwritten by now */
    for (int64_t m = first; m < last; m++) own += in->targets.label[m] == label ? in->targets.weight[m] : 0.0f;
    float value = (expm1f(-in->nll[n]) * weight + (weight - own)) * in->gradient_scale;
    if (in->softcap > 0.0f) value *= 1.0f - z * z / (in->softcap * in->softcap);
    nib_store_row(&value, in->x.dtype, 1, (char *)dz + label * (in->x.dtype == NIB_DTYPE_F32 ? 4 : 2));
}

/* One row of logits: its targets' losses, and dz over it in the activation type. */
static void score_row(const loss_inputs *in, const nib_target_chunk *chunk, int64_t i, float *z, void *dz)
{
    int64_t V = in->head.rows, first = chunk->first_target[i], last = chunk->first_target[i + 1];
    float lse = log_sum_exp(z, V, in->softcap), weight = 0.0f;
    for (int64_t n = first; n < last; n++) {
        in->nll[n] = lse - z[in->targets.label[n]];
        weight += in->targets.weight[n];
    }
    if (!in->backward) return;
    softmax_gradient(z, V, lse, weight * in->gradient_scale, in->softcap, in->x.dtype, dz);
    for (int64_t n = first; n < last; n++) label_gradient(in, first, last, n, lse, weight, dz);
}

static nib_status take_matrix(nib_ops *ops, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *matrix)
{
    *matrix = (nib_matrix){.rows = rows, .columns = columns, .stride = columns, .dtype = dtype};
    return nib_arena_take(ops->scratch, rows * columns, dtype == NIB_DTYPE_F32 ? 4 : 2, &matrix->data);
}

static nib_status chunk_loss(nib_ops *ops, const loss_inputs *in, const nib_target_chunk *chunk, nib_matrix dx,
                             float *dhead)
{
    int64_t V = in->head.rows, C = in->x.columns;
    nib_matrix x, z, dz, dx_rows;
    NIB_TRY(take_matrix(ops, chunk->rows, C, in->x.dtype, &x));
    NIB_TRY(take_matrix(ops, chunk->rows, V, NIB_DTYPE_F32, &z));
    for (int64_t i = 0; i < chunk->rows && !ops->rehearsal; i++)
        memcpy(nib_matrix_at(x, i, 0), nib_matrix_at(in->x, chunk->row[i], 0),
               (size_t)C * (in->x.dtype == NIB_DTYPE_F32 ? 4 : 2));
    NIB_TRY(nib_cpu_matmul(ops, x, false, in->head, true, false, z));
    dz = z; /* fp32: in place; bf16: a row of its own, half as wide, at the front of each row of z */
    dz.dtype = in->x.dtype;
    dz.stride = in->x.dtype == NIB_DTYPE_F32 ? V : 2 * V;
    int64_t scored = ops->rehearsal ? 0 : chunk->rows;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < scored; i++) score_row(in, chunk, i, nib_matrix_at(z, i, 0), nib_matrix_at(dz, i, 0));
    if (!in->backward) return NIB_OK;
    NIB_TRY(take_matrix(ops, chunk->rows, C, dx.dtype, &dx_rows));
    NIB_TRY(nib_cpu_matmul(ops, dz, false, in->head, false, false, dx_rows));
    for (int64_t i = 0; i < scored; i++)
        memcpy(nib_matrix_at(dx, chunk->row[i], 0), nib_matrix_at(dx_rows, i, 0),
               (size_t)C * (dx.dtype == NIB_DTYPE_F32 ? 4 : 2));
    if (dhead == NULL) return NIB_OK;
    nib_matrix gradient = {.data = dhead, .rows = V, .columns = C, .stride = C, .dtype = NIB_DTYPE_F32};
    return nib_cpu_matmul(ops, dz, true, x, false, true, gradient);
}

nib_status nib_cpu_linear_cross_entropy(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, nib_targets targets,
                                        float gradient_scale, float *nll, nib_matrix dx, float *dhead)
{
    if (x.columns != head.columns || (dx.data != NULL && (dx.rows != x.rows || dx.columns != x.columns)))
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear_cross_entropy: x [%lld, %lld], head [%lld, %lld], dx [%lld, %lld]",
                        (long long)x.rows, (long long)x.columns, (long long)head.rows, (long long)head.columns,
                        (long long)dx.rows, (long long)dx.columns);
    for (int64_t n = 0; n < targets.N; n++)
        if (targets.row[n] < 0 || targets.row[n] >= x.rows || (n > 0 && targets.row[n] < targets.row[n - 1]) ||
            targets.label[n] < 0 || targets.label[n] >= head.rows)
            return NIB_FAIL(NIB_ERROR_SHAPE, "linear_cross_entropy: target %lld is row %d, label %d", (long long)n,
                            targets.row[n], targets.label[n]);
    loss_inputs in = {.x = x,
                      .head = head,
                      .softcap = softcap,
                      .gradient_scale = gradient_scale,
                      .targets = targets,
                      .nll = nll,
                      .backward = dx.data != NULL};
    size_t mark = ops->scratch->used;
    nib_dtype operand = nib_cpu_operand_type(ops, x.dtype);
    if (head.dtype != operand) { /* once for all chunks */
        NIB_TRY(take_matrix(ops, head.rows, head.columns, operand, &in.head));
        NIB_TRY(nib_cpu_convert(ops, head, in.head));
    }
    if (in.backward && !ops->rehearsal)
        for (int64_t t = 0; t < dx.rows; t++)
            memset(nib_matrix_at(dx, t, 0), 0, (size_t)dx.columns * (dx.dtype == NIB_DTYPE_F32 ? 4 : 2));
    size_t chunk_mark = ops->scratch->used;
    for (int64_t at = 0; at < targets.N;) {
        nib_target_chunk chunk;
        at = nib_target_chunk_next(targets, at, &chunk);
        NIB_TRY(chunk_loss(ops, &in, &chunk, dx, dhead));
        nib_arena_reset(ops->scratch, chunk_mark);
    }
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
