/* For the distinct rows of x that have a target, a chunk at a time, with the selected rows h of the head:
 *     z = h x,  logsumexp = nll + head[label] x,  dz = scale * (sum of weights * softmax(z) - weights at the labels),
 *     drows += dz^T x.
 * The loss has been through all of the vocabulary already: its nll gives the logsumexp back, so that only the selected
 * logits are computed here, in fp32. */
#include "cpu/head_rows_backward.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/target_chunk.h"
#include "cpu/vector.h"

#include <math.h>

typedef struct {
    nib_matrix x, head;
    nib_targets targets;
    float gradient_scale;
    const float *nll;
    int64_t n;
    const int32_t *row;
} head_inputs;

static nib_status take(nib_ops *ops, int64_t rows, int64_t columns, nib_matrix *matrix)
{
    *matrix = (nib_matrix){.rows = rows, .columns = columns, .stride = columns, .dtype = NIB_DTYPE_F32};
    return nib_arena_take(ops->scratch, rows * columns, sizeof(float), &matrix->data);
}

/* x [C] fp32 times a row of the head, in a fixed order. */
static float label_logit(const float *x, const head_inputs *in, int32_t label)
{
    enum { PIECE = 256 };
    float piece[PIECE], sum = 0.0f;
    const char *row = nib_matrix_at(in->head, label, 0);
    int64_t size = in->head.dtype == NIB_DTYPE_F32 ? 4 : 2;
    for (int64_t c = 0; c < in->head.columns; c += PIECE) {
        int64_t count = in->head.columns - c < PIECE ? in->head.columns - c : PIECE;
        nib_load_row(row + c * size, in->head.dtype, count, piece);
        for (int64_t i = 0; i < count; i++) sum += piece[i] * x[c + i];
    }
    return sum;
}

/* z [n], the selected logits of chunk row i, becomes dz. What is left of a nearly certain label is not found by taking
 * one from its softmax, but from the loss itself. */
static void row_gradient(const head_inputs *in, const nib_target_chunk *chunk, int64_t i, const float *x, float *z)
{
    int64_t first = chunk->first_target[i], last = chunk->first_target[i + 1];
    float weight = 0.0f, lse = in->nll[first] + label_logit(x, in, in->targets.label[first]);
    for (int64_t t = first; t < last; t++) weight += in->targets.weight[t];
    for (int64_t k = 0; k < in->n; k++) {
        float own = 0.0f, nll = 0.0f;
        for (int64_t t = first; t < last; t++) {
            if (in->targets.label[t] != in->row[k]) continue;
            own += in->targets.weight[t];
            nll = in->nll[t];
        }
        float value = own > 0.0f ? expm1f(-nll) * weight + (weight - own) : expf(z[k] - lse) * weight;
        z[k] = value * in->gradient_scale;
    }
}

static nib_status chunk_gradient(nib_ops *ops, const head_inputs *in, nib_matrix selected,
                                 const nib_target_chunk *chunk, float *drows)
{
    nib_matrix x, z;
    int64_t scored = ops->rehearsal ? 0 : chunk->rows;
    NIB_TRY(take(ops, chunk->rows, in->x.columns, &x));
    NIB_TRY(take(ops, chunk->rows, in->n, &z));
    for (int64_t i = 0; i < scored; i++)
        nib_load_row(nib_matrix_at(in->x, chunk->row[i], 0), in->x.dtype, in->x.columns, nib_matrix_at(x, i, 0));
    NIB_TRY(nib_cpu_matmul(ops, x, false, selected, true, false, z));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < scored; i++) row_gradient(in, chunk, i, nib_matrix_at(x, i, 0), nib_matrix_at(z, i, 0));
    nib_matrix gradient = {drows, in->n, in->x.columns, in->x.columns, NIB_DTYPE_F32};
    return nib_cpu_matmul(ops, z, true, x, false, true, gradient);
}

nib_status nib_cpu_head_rows_backward(nib_ops *ops, nib_matrix x, nib_matrix head, nib_targets targets,
                                      float gradient_scale, const float *nll, int64_t n, const int32_t *row,
                                      float *drows)
{
    if (x.columns != head.columns)
        return NIB_FAIL(NIB_ERROR_SHAPE, "head_rows_backward: x [%lld, %lld], head [%lld, %lld]", (long long)x.rows,
                        (long long)x.columns, (long long)head.rows, (long long)head.columns);
    for (int64_t k = 0; k < n && !ops->rehearsal; k++)
        if (row[k] < 0 || row[k] >= head.rows)
            return NIB_FAIL(NIB_ERROR_SHAPE, "head_rows_backward: row %d of a head of %lld", row[k],
                            (long long)head.rows);
    head_inputs in = {x, head, targets, gradient_scale, nll, n, row};
    size_t mark = ops->scratch->used;
    nib_matrix selected;
    NIB_TRY(take(ops, n, head.columns, &selected));
    for (int64_t k = 0; k < n && !ops->rehearsal; k++)
        nib_load_row(nib_matrix_at(head, row[k], 0), head.dtype, head.columns, nib_matrix_at(selected, k, 0));
    size_t chunk_mark = ops->scratch->used;
    for (int64_t at = 0; at < targets.N;) {
        nib_target_chunk chunk;
        at = nib_target_chunk_next(targets, at, &chunk);
        NIB_TRY(chunk_gradient(ops, &in, selected, &chunk, drows));
        nib_arena_reset(ops->scratch, chunk_mark);
    }
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
