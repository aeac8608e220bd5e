/* y = x W^T + bias + scale B (A x), for several weights W that read the same x.
 *
 * The weights of all parts are laid below each other in scratch (dequantised, or copied), so that the base is one
 * matrix product; likewise all A. B is small and goes part by part. Products are oneDNN's (cpu/matmul.h). */
#include "cpu/linear.h"
#include "base/random.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/matmul.h"
#include "cpu/nf4.h"

#include <string.h>

static nib_status scratch_matrix(nib_ops *ops, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *matrix)
{
    *matrix = (nib_matrix){.rows = rows, .columns = columns, .stride = columns, .dtype = dtype};
    return nib_arena_take(ops->scratch, rows * columns, dtype == NIB_DTYPE_F32 ? 4 : 2, &matrix->data);
}

/* W [N, K] of all parts, ready for products with activations of this type. */
static nib_status base_weight(nib_ops *ops, const nib_linear *linear, nib_dtype activation, nib_matrix *weight)
{
    nib_dtype dtype = nib_cpu_operand_type(ops, activation);
    const nib_linear_part *only = &linear->part[0];
    if (linear->parts == 1 && only->nf4.codes == NULL && only->dense.dtype == dtype) {
        *weight = only->dense;
        return NIB_OK;
    }
    NIB_TRY(scratch_matrix(ops, nib_linear_outputs(linear), linear->K, dtype, weight));
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix rows = nib_matrix_rows(*weight, row, part->rows);
        if (part->nf4.codes != NULL)
            NIB_TRY(nib_cpu_nf4_dequantize(ops, &part->nf4, rows));
        else
            NIB_TRY(nib_cpu_convert(ops, part->dense, rows));
    }
    return NIB_OK;
}

/* A [ranks, K] of all parts below each other. */
static nib_status stacked_a(nib_ops *ops, const nib_linear *linear, nib_dtype dtype, nib_matrix *a)
{
    NIB_TRY(scratch_matrix(ops, nib_linear_ranks(linear), linear->K, dtype, a));
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].lora.rank)
        if (linear->part[p].lora.rank > 0)
            NIB_TRY(nib_cpu_convert(ops, linear->part[p].lora.a, nib_matrix_rows(*a, row, linear->part[p].lora.rank)));
    return NIB_OK;
}

static float get(nib_matrix m, int64_t r, int64_t c)
{
    if (m.dtype == NIB_DTYPE_F32) return ((const float *)m.data)[r * m.stride + c];
    return nib_bf16_to_float(((const nib_bf16 *)m.data)[r * m.stride + c]);
}

static void set(nib_matrix m, int64_t r, int64_t c, float value)
{
    if (m.dtype == NIB_DTYPE_F32)
        ((float *)m.data)[r * m.stride + c] = value;
    else
        ((nib_bf16 *)m.data)[r * m.stride + c] = nib_bf16_from_float(value);
}

/* scale * B of one part, in the activation type. */
static nib_status scaled_b(nib_ops *ops, const nib_lora *lora, nib_matrix *b)
{
    NIB_TRY(scratch_matrix(ops, lora->b.rows, lora->b.columns, lora->b.dtype, b));
    if (ops->rehearsal) return NIB_OK;
    for (int64_t r = 0; r < b->rows; r++)
        for (int64_t c = 0; c < b->columns; c++) set(*b, r, c, lora->scale * get(lora->b, r, c));
    return NIB_OK;
}

/* out = mask * from / (1 - p), with the mask of one part; from and out may be the same. */
static void apply_dropout(const nib_ops *ops, nib_matrix from, nib_dropout dropout, int part, nib_matrix out)
{
    if (ops->rehearsal) return;
    uint64_t key = nib_random_key(dropout.key, (uint64_t)part);
    float keep = 1.0f / (1.0f - dropout.p);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < from.rows; t++)
        for (int64_t c = 0; c < from.columns; c += 4) {
            uint32_t word[4];
            nib_philox(key, (uint64_t)t, (uint64_t)c / 4, word);
            for (int64_t i = c; i < c + 4 && i < from.columns; i++)
                set(out, t, i, nib_uniform(word[i - c]) < dropout.p ? 0.0f : get(from, t, i) * keep);
        }
}

static void add_bias(const nib_ops *ops, const nib_linear *linear, nib_matrix y)
{
    if (ops->rehearsal) return;
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        if (part->bias == NULL) continue;
#pragma omp parallel for schedule(static)
        for (int64_t t = 0; t < y.rows; t++)
            for (int64_t n = 0; n < part->rows; n++) set(y, t, first + n, get(y, t, first + n) + part->bias[n]);
    }
}

static bool few_rows(const nib_linear *linear, nib_matrix x)
{
    bool all = x.rows <= NIB_CPU_MATVEC_ROWS && linear->K % 64 == 0;
    for (int p = 0; p < linear->parts; p++) all = all && linear->part[p].nf4.codes != NULL;
    return all;
}

/* The base product for generation: x widened, weights decoded in registers. */
static nib_status base_matvec(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix y)
{
    nib_matrix wide_x, wide_y;
    NIB_TRY(scratch_matrix(ops, x.rows, x.columns, NIB_DTYPE_F32, &wide_x));
    NIB_TRY(scratch_matrix(ops, y.rows, y.columns, NIB_DTYPE_F32, &wide_y));
    NIB_TRY(nib_cpu_convert(ops, x, wide_x));
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows)
        NIB_TRY(nib_cpu_nf4_matvec(ops, &linear->part[p].nf4, linear->part[p].rows, linear->K, x.rows, wide_x.data,
                                   (float *)wide_y.data + first, wide_y.stride));
    return nib_cpu_convert(ops, wide_y, y);
}

static nib_status check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    int64_t N = nib_linear_outputs(linear), R = nib_linear_ranks(linear);
    if (x.columns != linear->K || y.columns != N || y.rows != x.rows || x.dtype != y.dtype)
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear %s: x [%lld, %lld] to y [%lld, %lld], expected [T, %lld] to [T, %lld]",
                        linear->name, (long long)x.rows, (long long)x.columns, (long long)y.rows, (long long)y.columns,
                        (long long)linear->K, (long long)N);
    if (R > 0 && (u.data == NULL || u.rows != x.rows || u.columns != R || u.dtype != x.dtype))
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear %s: u is [%lld, %lld], expected [%lld, %lld]", linear->name,
                        (long long)u.rows, (long long)u.columns, (long long)x.rows, (long long)R);
    return NIB_OK;
}

/* u = A dropout(x), all parts in one product unless each has a mask of its own. */
static nib_status lora_down(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u)
{
    nib_matrix a, dropped;
    if (dropout.p <= 0.0f) {
        NIB_TRY(stacked_a(ops, linear, x.dtype, &a));
        return nib_cpu_matmul(ops, x, false, a, true, false, u);
    }
    NIB_TRY(scratch_matrix(ops, x.rows, x.columns, x.dtype, &dropped));
    for (int p = 0, column = 0; p < linear->parts; column += (int)linear->part[p++].lora.rank) {
        const nib_lora *lora = &linear->part[p].lora;
        if (lora->rank == 0) continue;
        apply_dropout(ops, x, dropout, p, dropped);
        NIB_TRY(nib_cpu_matmul(ops, dropped, false, lora->a, true, false, nib_matrix_columns(u, column, lora->rank)));
    }
    return NIB_OK;
}

static nib_status forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                          nib_matrix y)
{
    if (few_rows(linear, x)) {
        NIB_TRY(base_matvec(ops, linear, x, y));
    } else {
        nib_matrix weight;
        NIB_TRY(base_weight(ops, linear, x.dtype, &weight));
        NIB_TRY(nib_cpu_matmul(ops, x, false, weight, true, false, y));
    }
    add_bias(ops, linear, y);
    if (nib_linear_ranks(linear) == 0) return NIB_OK;
    NIB_TRY(lora_down(ops, linear, x, dropout, u));
    for (int64_t p = 0, first = 0, column = 0; p < linear->parts; p++) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix b;
        if (part->lora.rank > 0) {
            NIB_TRY(scaled_b(ops, &part->lora, &b));
            NIB_TRY(nib_cpu_matmul(ops, nib_matrix_columns(u, column, part->lora.rank), false, b, true, true,
                                   nib_matrix_columns(y, first, part->rows)));
        }
        first += part->rows;
        column += part->lora.rank;
    }
    return NIB_OK;
}

nib_status nib_cpu_linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                  nib_matrix u, nib_matrix y)
{
    NIB_TRY(check(linear, x, u, y));
    size_t mark = ops->scratch->used;
    nib_status status = forward(ops, linear, x, dropout, u, y);
    nib_arena_reset(ops->scratch, mark);
    return status;
}

/* to += scale * from, fp32, n elements. */
static void accumulate_scaled(float *to, const float *from, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] += scale * from[i];
}

/* The gradients of one part's adapter; du [T, R] = scale dy B is written for dx. */
static nib_status lora_part_backward(nib_ops *ops, const nib_lora *lora, nib_matrix x, nib_matrix u, nib_matrix dy,
                                     nib_matrix du)
{
    nib_matrix b, db, da;
    NIB_TRY(scaled_b(ops, lora, &b));
    NIB_TRY(nib_cpu_matmul(ops, dy, false, b, false, false, du));
    if (lora->db == NULL) return NIB_OK;
    NIB_TRY(scratch_matrix(ops, lora->rank, dy.columns, NIB_DTYPE_F32, &db)); /* transposed: longer rows */
    NIB_TRY(nib_cpu_matmul(ops, u, true, dy, false, false, db));
    NIB_TRY(scratch_matrix(ops, lora->rank, x.columns, NIB_DTYPE_F32, &da));
    NIB_TRY(nib_cpu_matmul(ops, du, true, x, false, false, da));
    if (ops->rehearsal) return NIB_OK;
    for (int64_t n = 0; n < dy.columns; n++)
        for (int64_t r = 0; r < lora->rank; r++)
            lora->db[n * lora->rank + r] += lora->scale * ((float *)db.data)[r * db.stride + n];
    accumulate_scaled(lora->da, da.data, 1.0f, da.rows * da.columns);
    return NIB_OK;
}

/* dx += mask * (du A) / (1 - p) of one part. */
static nib_status add_dropped(nib_ops *ops, nib_matrix du, nib_matrix a, nib_dropout dropout, int part, nib_matrix dx)
{
    nib_matrix through;
    NIB_TRY(scratch_matrix(ops, dx.rows, dx.columns, dx.dtype, &through));
    NIB_TRY(nib_cpu_matmul(ops, du, false, a, false, false, through));
    apply_dropout(ops, through, dropout, part, through);
    if (ops->rehearsal) return NIB_OK;
    for (int64_t t = 0; t < dx.rows; t++)
        for (int64_t c = 0; c < dx.columns; c++) set(dx, t, c, get(dx, t, c) + get(through, t, c));
    return NIB_OK;
}

static nib_status lora_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                                nib_matrix dy, nib_matrix dx)
{
    nib_matrix du, dropped = x;
    NIB_TRY(scratch_matrix(ops, x.rows, nib_linear_ranks(linear), x.dtype, &du));
    if (dropout.p > 0.0f) NIB_TRY(scratch_matrix(ops, x.rows, x.columns, x.dtype, &dropped));
    for (int64_t p = 0, first = 0, column = 0; p < linear->parts; p++) {
        const nib_linear_part *part = &linear->part[p];
        int64_t rank = part->lora.rank;
        nib_matrix du_p = nib_matrix_columns(du, column, rank);
        if (rank > 0) {
            if (dropout.p > 0.0f) apply_dropout(ops, x, dropout, (int)p, dropped);
            NIB_TRY(lora_part_backward(ops, &part->lora, dropped, nib_matrix_columns(u, column, rank),
                                       nib_matrix_columns(dy, first, part->rows), du_p));
            if (dx.data != NULL && dropout.p > 0.0f) NIB_TRY(add_dropped(ops, du_p, part->lora.a, dropout, (int)p, dx));
        }
        first += part->rows;
        column += rank;
    }
    if (dx.data == NULL || dropout.p > 0.0f) return NIB_OK;
    nib_matrix a;
    NIB_TRY(stacked_a(ops, linear, x.dtype, &a));
    return nib_cpu_matmul(ops, du, false, a, false, true, dx);
}

/* dW and dbias of a part that is trained itself. */
static nib_status weight_backward(nib_ops *ops, const nib_linear_part *part, nib_matrix x, nib_matrix dy)
{
    if (part->dweight != NULL) {
        nib_matrix dw = {.data = part->dweight,
                         .rows = part->rows,
                         .columns = x.columns,
                         .stride = x.columns,
                         .dtype = NIB_DTYPE_F32};
        NIB_TRY(nib_cpu_matmul(ops, dy, true, x, false, true, dw));
    }
    if (part->dbias != NULL && !ops->rehearsal)
        for (int64_t t = 0; t < dy.rows; t++)
            for (int64_t n = 0; n < part->rows; n++) part->dbias[n] += get(dy, t, n);
    return NIB_OK;
}

static nib_status backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                           nib_matrix dy, bool accumulate, nib_matrix dx)
{
    if (dx.data != NULL) {
        nib_matrix weight;
        NIB_TRY(base_weight(ops, linear, x.dtype, &weight));
        NIB_TRY(nib_cpu_matmul(ops, dy, false, weight, false, accumulate, dx));
    }
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows)
        NIB_TRY(weight_backward(ops, &linear->part[p], x, nib_matrix_columns(dy, first, linear->part[p].rows)));
    if (nib_linear_ranks(linear) == 0) return NIB_OK;
    return lora_backward(ops, linear, x, dropout, u, dy, dx);
}

nib_status nib_cpu_linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx)
{
    NIB_TRY(check(linear, x, u, dy));
    size_t mark = ops->scratch->used;
    nib_status status = backward(ops, linear, x, dropout, u, dy, accumulate, dx);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
