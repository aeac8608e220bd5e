/* norm[i] = ||W[i] + scale B[i] A||, gain[i] = magnitude[i] / norm[i].
 *
 * A row of W is decoded, the adapter's row added and the squares summed while it lies in the cache: nothing of W's size
 * is written. Expanding the square, ||W[i]||^2 + 2 scale W[i].(B A)[i] + scale^2 ||(B A)[i]||^2, would need W A^T,
 * which is as many products as B A, and would cancel where the adapter undoes a row; the sum itself does not. */
#include "cpu/dora.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/nf4.h"
#include "cpu/vector.h"

#include <math.h>

/* row += sum over r of scale b[r] a[r], then its norm; a fp32 [R, K]. */
NIB_CPU_CLONES static float adapted_norm(float *row, const float *a, const float *b, float scale, int64_t R, int64_t K)
{
    nib_v16 lanes = {0};
    float tail = 0.0f;
    for (int64_t r = 0; r < R; r++) {
        const float factor = scale * b[r];
        for (int64_t k = 0; k < K; k++) row[k] += factor * a[r * K + k];
    }
    int64_t k = 0;
    for (; k + 16 <= K; k += 16) lanes += *(const nib_v16 *)(row + k) * *(const nib_v16 *)(row + k);
    for (; k < K; k++) tail += row[k] * row[k];
    return sqrtf(nib_v16_sum(lanes) + tail);
}

static nib_status widened(nib_ops *ops, nib_matrix from, nib_matrix *to)
{
    *to = (nib_matrix){.rows = from.rows, .columns = from.columns, .stride = from.columns, .dtype = NIB_DTYPE_F32};
    NIB_TRY(nib_arena_take(ops->scratch, from.rows * from.columns, sizeof(float), &to->data));
    return nib_cpu_convert(ops, from, *to);
}

static nib_status norms(nib_ops *ops, const nib_linear_part *part, int64_t K)
{
    const nib_lora *lora = &part->lora;
    const nib_dora *dora = &lora->dora;
    nib_matrix a, b;
    float *rows; /* [threads, K] */
    NIB_TRY(widened(ops, lora->a, &a));
    NIB_TRY(widened(ops, lora->b, &b));
    NIB_TRY(nib_arena_take(ops->scratch, nib_cpu_threads() * K, sizeof *rows, &rows));
    if (ops->rehearsal) return NIB_OK;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < part->rows; n++) {
        float *row = rows + nib_cpu_thread() * K;
        if (part->nf4.codes != NULL)
            nib_cpu_nf4_row(ops, &part->nf4, n, K, NIB_DTYPE_F32, row);
        else
            nib_load_row(nib_matrix_at(part->dense, n, 0), part->dense.dtype, K, row);
        dora->norm[n] = adapted_norm(row, a.data, nib_matrix_at(b, n, 0), lora->scale, lora->rank, K);
        dora->gain[n] = dora->norm[n] > 0.0f ? dora->magnitude[n] / dora->norm[n] : 0.0f;
    }
    return NIB_OK;
}

nib_status nib_cpu_dora_norm(nib_ops *ops, const nib_linear_part *part, int64_t K)
{
    const nib_lora *lora = &part->lora;
    if (lora->rank == 0 || lora->a.columns != K || lora->b.rows != part->rows)
        return NIB_FAIL(NIB_ERROR_SHAPE, "dora_norm: A [%lld, %lld], B [%lld, %lld], expected [R, %lld], [%lld, R]",
                        (long long)lora->a.rows, (long long)lora->a.columns, (long long)lora->b.rows,
                        (long long)lora->b.columns, (long long)K, (long long)part->rows);
    size_t mark = ops->scratch->used;
    nib_status status = norms(ops, part, K);
    nib_arena_reset(ops->scratch, mark);
    return status;
}

/* gain - less of every output; parts without DoRA have gain 1. */
static nib_status gains(nib_ops *ops, const nib_linear *linear, float less, float **out)
{
    NIB_TRY(nib_arena_take(ops->scratch, nib_linear_outputs(linear), sizeof **out, out));
    for (int64_t p = 0, first = 0; p < linear->parts && !ops->rehearsal; first += linear->part[p++].rows)
        for (int64_t n = 0; n < linear->part[p].rows; n++) {
            const float *gain = linear->part[p].lora.dora.gain;
            (*out)[first + n] = (gain == NULL ? 1.0f : gain[n]) - less;
        }
    return NIB_OK;
}

NIB_CPU_CLONES static void output_row(const float *base, const float *through, const float *gain, const float *bias,
                                      int64_t N, float *sum)
{
    for (int64_t n = 0; n < N; n++) sum[n] = base[n] + gain[n] * through[n] + (bias == NULL ? 0.0f : bias[n]);
}

nib_status nib_cpu_dora_output(nib_ops *ops, const nib_linear *linear, nib_matrix base, nib_matrix through,
                               const float *bias, nib_matrix y)
{
    float *gain;
    NIB_TRY(gains(ops, linear, 1.0f, &gain));
    if (ops->rehearsal) return NIB_OK;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < y.rows; t++) {
        float *sum = nib_matrix_at(base, t, 0);
        output_row(sum, nib_matrix_at(through, t, 0), gain, bias, y.columns, sum);
        nib_store_row(sum, y.dtype, y.columns, nib_matrix_at(y, t, 0));
    }
    return NIB_OK;
}

/* Pieces of a row at a time, so that any width takes the same stack. */
NIB_CPU_CLONES static void gradient_row(const void *dy, nib_dtype from, const float *factor, int64_t N, nib_dtype to,
                                        void *out)
{
    enum { PIECE = 256 };
    float piece[PIECE];
    for (int64_t n = 0; n < N; n += PIECE) {
        const int64_t count = N - n < PIECE ? N - n : PIECE;
        nib_load_row((const char *)dy + n * (from == NIB_DTYPE_F32 ? 4 : 2), from, count, piece);
        for (int64_t i = 0; i < count; i++) piece[i] *= factor[n + i];
        nib_store_row(piece, to, count, (char *)out + n * (to == NIB_DTYPE_F32 ? 4 : 2));
    }
}

nib_status nib_cpu_dora_gradient(nib_ops *ops, const nib_linear *linear, nib_matrix dy, float less, nib_matrix out)
{
    float *factor;
    NIB_TRY(gains(ops, linear, less, &factor));
    if (ops->rehearsal) return NIB_OK;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < dy.rows; t++)
        gradient_row(nib_matrix_at(dy, t, 0), dy.dtype, factor, dy.columns, out.dtype, nib_matrix_at(out, t, 0));
    return NIB_OK;
}

/* Sums of up to 64 columns from `first` on, in order of t. */
static void sum_columns(nib_matrix dy, nib_matrix through, int64_t first, int64_t count, double *sum)
{
    float piece[64];
    for (int64_t t = 0; t < dy.rows; t++) {
        const float *z = nib_matrix_at(through, t, first);
        nib_load_row(nib_matrix_at(dy, t, first), dy.dtype, count, piece);
        for (int64_t i = 0; i < count; i++) sum[i] += (double)piece[i] * (double)z[i];
    }
}

void nib_cpu_dora_magnitude(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix through)
{
    for (int64_t p = 0, first = 0; p < linear->parts && !ops->rehearsal; first += linear->part[p++].rows) {
        const nib_dora *dora = &linear->part[p].lora.dora;
        const int64_t rows = linear->part[p].rows;
        if (dora->dmagnitude == NULL) continue;
#pragma omp parallel for schedule(static)
        for (int64_t n = 0; n < rows; n += 64) {
            const int64_t count = rows - n < 64 ? rows - n : 64;
            double sum[64] = {0};
            sum_columns(dy, through, first + n, count, sum);
            for (int64_t i = n; i < n + count; i++)
                if (dora->norm[i] > 0.0f) dora->dmagnitude[i] += (float)(sum[i - n] / (double)dora->norm[i]);
        }
    }
}
