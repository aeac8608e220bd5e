/* y = x W^T + bias + scale B (A x), for several weights W that read the same x, is one matrix product:
 *
 *     y = [x | u] [W | scale B]^T + bias,    u = A dropout(x),
 *
 * the W of all parts below each other (dequantised or copied into scratch), each part's B in columns of its own beside
 * its W and zeros in those of the others. So y is summed in fp32 and rounded once, and is written once. Likewise
 *
 *     dx = [dy | du] [W; A],    du = scale dy B.
 *
 * DoRA scales that sum by output: the base and its adapter are summed in fp32, then cpu/dora.h's arithmetic follows.
 *
 * Operands are in the type that products want (cpu/matmul.h): on a CPU without bf16 instructions x and dy are widened
 * here, once for all products. The zeros cost the share of the other parts' ranks in K. */
#include "cpu/linear.h"
#include "base/random.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/dora.h"
#include "cpu/linear_few.h"
#include "cpu/matmul.h"
#include "cpu/nf4.h"
#include "cpu/tree_sum.h"

#include <string.h>

static nib_status scratch_matrix(nib_ops *ops, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *matrix)
{
    *matrix = (nib_matrix){.rows = rows, .columns = columns, .stride = columns, .dtype = dtype};
    return nib_arena_take(ops->scratch, rows * columns, dtype == NIB_DTYPE_F32 ? 4 : 2, &matrix->data);
}

/* [from | room for `more` columns] in dtype; `from` itself if that is what it is. */
static nib_status operand(nib_ops *ops, nib_matrix from, int64_t more, nib_dtype dtype, nib_matrix *out)
{
    *out = from;
    if (more == 0 && from.dtype == dtype) return NIB_OK;
    NIB_TRY(scratch_matrix(ops, from.rows, from.columns + more, dtype, out));
    return nib_cpu_convert(ops, from, nib_matrix_columns(*out, 0, from.columns));
}

/* W [N, K] of all parts into `weight`. */
static nib_status base_weight(nib_ops *ops, const nib_linear *linear, nib_matrix weight)
{
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix rows = nib_matrix_rows(weight, row, part->rows);
        if (part->nf4.codes != NULL)
            NIB_TRY(nib_cpu_nf4_dequantize(ops, &part->nf4, rows));
        else
            NIB_TRY(nib_cpu_convert(ops, part->dense, rows));
    }
    return NIB_OK;
}

/* A single dense weight in the operand type needs no copy. */
static bool is_ready(const nib_linear *linear, nib_dtype dtype)
{
    const nib_linear_part *only = &linear->part[0];
    return linear->parts == 1 && only->nf4.codes == NULL && only->dense.dtype == dtype;
}

/* A [ranks, K] of all parts below each other into `a`. */
static nib_status stacked_a(nib_ops *ops, const nib_linear *linear, nib_matrix a)
{
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].lora.rank)
        if (linear->part[p].lora.rank > 0)
            NIB_TRY(nib_cpu_convert(ops, linear->part[p].lora.a, nib_matrix_rows(a, row, linear->part[p].lora.rank)));
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

/* out [n, R] = scale * B of one part. */
static void scaled_b(const nib_ops *ops, const nib_lora *lora, nib_matrix out)
{
    if (ops->rehearsal) return;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < out.rows; r++)
        for (int64_t c = 0; c < out.columns; c++) set(out, r, c, lora->scale * get(lora->b, r, c));
}

/* [W | scale B] of all parts, [N, K + ranks]. */
static nib_status joined_weight(nib_ops *ops, const nib_linear *linear, nib_dtype dtype, nib_matrix *weight)
{
    const int64_t K = linear->K, ranks = nib_linear_ranks(linear);
    *weight = linear->part[0].dense;
    if (ranks == 0 && is_ready(linear, dtype)) return NIB_OK;
    NIB_TRY(scratch_matrix(ops, nib_linear_outputs(linear), K + ranks, dtype, weight));
    NIB_TRY(base_weight(ops, linear, nib_matrix_columns(*weight, 0, K)));
    if (ranks == 0) return NIB_OK;
    const nib_matrix b = nib_matrix_columns(*weight, K, ranks);
    for (int64_t p = 0, row = 0, column = 0; p < linear->parts; p++) {
        const nib_linear_part *part = &linear->part[p];
        const nib_matrix rows = nib_matrix_rows(b, row, part->rows);
        for (int64_t r = 0; r < part->rows && linear->parts > 1 && !ops->rehearsal; r++)
            memset(nib_matrix_rows(rows, r, 1).data, 0, (size_t)ranks * (dtype == NIB_DTYPE_F32 ? 4 : 2));
        scaled_b(ops, &part->lora, nib_matrix_columns(rows, column, part->lora.rank));
        row += part->rows;
        column += part->lora.rank;
    }
    return NIB_OK;
}

/* The biases of all parts, fp32 [N]; NULL if there are none. */
static nib_status joined_bias(nib_ops *ops, const nib_linear *linear, float **bias)
{
    bool any = false;
    *bias = NULL;
    for (int p = 0; p < linear->parts; p++) any = any || linear->part[p].bias != NULL;
    if (!any) return NIB_OK;
    NIB_TRY(nib_arena_take(ops->scratch, nib_linear_outputs(linear), sizeof **bias, bias));
    for (int64_t p = 0, first = 0; p < linear->parts && !ops->rehearsal; first += linear->part[p++].rows)
        for (int64_t n = 0; n < linear->part[p].rows; n++)
            (*bias)[first + n] = linear->part[p].bias == NULL ? 0.0f : linear->part[p].bias[n];
    return NIB_OK;
}

/* out = mask * from / (1 - p), with the mask of one part; from and out may be the same. */
static void apply_dropout(const nib_ops *ops, nib_matrix from, nib_dropout dropout, int part, nib_matrix out)
{
    if (ops->rehearsal) return;
    uint64_t key = dropout.key[part];
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

static nib_status check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    int64_t N = nib_linear_outputs(linear), R = nib_linear_ranks(linear);
    if (x.columns < linear->K || y.columns < N || y.rows != x.rows || x.dtype != y.dtype)
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear %s: x [%lld, %lld] to y [%lld, %lld], expected [T, %lld] to [T, %lld]",
                        linear->name, (long long)x.rows, (long long)x.columns, (long long)y.rows, (long long)y.columns,
                        (long long)linear->K, (long long)N);
    if (R > 0 && (u.data == NULL || u.rows != x.rows || u.columns != R || u.dtype != x.dtype))
        return NIB_FAIL(NIB_ERROR_SHAPE, "linear %s: u is [%lld, %lld], expected [%lld, %lld]", linear->name,
                        (long long)u.rows, (long long)u.columns, (long long)x.rows, (long long)R);
    return NIB_OK;
}

/* u = A dropout(x), all parts in one product unless each has a mask of its own. x in the operand type. */
static nib_status lora_down(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u)
{
    nib_matrix a, dropped;
    if (dropout.p <= 0.0f) {
        NIB_TRY(scratch_matrix(ops, nib_linear_ranks(linear), linear->K, x.dtype, &a));
        NIB_TRY(stacked_a(ops, linear, a));
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

/* through [T, N] fp32 = W x + scale B u, where the x of each adapted part is dropped by its own mask; joined [x | u],
 * weight [W | scale B]. */
static nib_status dora_through(nib_ops *ops, const nib_linear *linear, nib_matrix joined, nib_matrix weight,
                               nib_dropout dropout, nib_matrix *through)
{
    const int64_t K = linear->K, ranks = nib_linear_ranks(linear);
    nib_matrix dropped;
    NIB_TRY(scratch_matrix(ops, joined.rows, nib_linear_outputs(linear), NIB_DTYPE_F32, through));
    if (dropout.p <= 0.0f) return nib_cpu_matmul(ops, joined, false, weight, true, false, *through);
    NIB_TRY(operand(ops, nib_matrix_columns(joined, 0, K), ranks, joined.dtype, &dropped));
    NIB_TRY(nib_cpu_convert(ops, nib_matrix_columns(joined, K, ranks), nib_matrix_columns(dropped, K, ranks)));
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows) {
        const int64_t rows = linear->part[p].rows;
        apply_dropout(ops, nib_matrix_columns(joined, 0, K), dropout, (int)p, nib_matrix_columns(dropped, 0, K));
        NIB_TRY(nib_cpu_matmul(ops, dropped, false, nib_matrix_rows(weight, first, rows), true, false,
                               nib_matrix_columns(*through, first, rows)));
    }
    return NIB_OK;
}

static nib_status dora_forward(nib_ops *ops, const nib_linear *linear, nib_matrix joined, nib_matrix weight,
                               nib_dropout dropout, const float *bias, nib_matrix y)
{
    nib_matrix base, through;
    NIB_TRY(dora_through(ops, linear, joined, weight, (nib_dropout){0}, &base));
    through = base;
    if (dropout.p > 0.0f) NIB_TRY(dora_through(ops, linear, joined, weight, dropout, &through));
    return nib_cpu_dora_output(ops, linear, base, through, bias, y);
}

static nib_status forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                          nib_matrix y)
{
    const nib_dtype dtype = nib_cpu_operand_type(ops, x.dtype);
    const int64_t K = linear->K, ranks = nib_linear_ranks(linear);
    nib_matrix joined, weight;
    float *bias;
    if (dropout.p <= 0.0f && nib_cpu_linear_is_few(linear, x)) return nib_cpu_linear_few(ops, linear, x, u, y);
    NIB_TRY(operand(ops, x, ranks, dtype, &joined));
    if (ranks > 0) {
        NIB_TRY(lora_down(ops, linear, nib_matrix_columns(joined, 0, K), dropout, u));
        NIB_TRY(nib_cpu_convert(ops, u, nib_matrix_columns(joined, K, ranks)));
    }
    NIB_TRY(joined_weight(ops, linear, dtype, &weight));
    NIB_TRY(joined_bias(ops, linear, &bias));
    if (nib_linear_is_dora(linear)) return dora_forward(ops, linear, joined, weight, dropout, bias, y);
    return nib_cpu_matmul_bias(ops, joined, weight, bias, y);
}

nib_status nib_cpu_linear_forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                  nib_matrix u, nib_matrix y)
{
    NIB_TRY(check(linear, x, u, y));
    size_t mark = ops->scratch->used;
    x = nib_matrix_columns(x, 0, linear->K); /* room beside x is of no use here */
    nib_status status = forward(ops, linear, x, dropout, u, nib_matrix_columns(y, 0, nib_linear_outputs(linear)));
    nib_arena_reset(ops->scratch, mark);
    return status;
}

/* to += scale * from, fp32, n elements. */
static void accumulate_scaled(float *to, const float *from, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] += scale * from[i];
}

/* The gradients of one part's adapter; du [T, R] = scale dy B is written for dx. x and dy in the operand type. */
static nib_status lora_part_backward(nib_ops *ops, const nib_lora *lora, nib_matrix x, nib_matrix u, nib_matrix dy,
                                     nib_matrix du)
{
    nib_matrix b, db, da;
    NIB_TRY(scratch_matrix(ops, lora->b.rows, lora->rank, dy.dtype, &b));
    scaled_b(ops, lora, b);
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

/* Gradients of all adapters; du [T, ranks] for dx. */
static nib_status lora_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                                nib_matrix dy, nib_matrix du)
{
    nib_matrix dropped = x;
    if (dropout.p > 0.0f) NIB_TRY(scratch_matrix(ops, x.rows, x.columns, x.dtype, &dropped));
    for (int64_t p = 0, first = 0, column = 0; p < linear->parts; p++) {
        const nib_linear_part *part = &linear->part[p];
        const int64_t rank = part->lora.rank;
        if (rank > 0) {
            if (dropout.p > 0.0f) apply_dropout(ops, x, dropout, (int)p, dropped);
            NIB_TRY(lora_part_backward(ops, &part->lora, dropped, nib_matrix_columns(u, column, rank),
                                       nib_matrix_columns(dy, first, part->rows),
                                       nib_matrix_columns(du, column, rank)));
        }
        first += part->rows;
        column += rank;
    }
    return NIB_OK;
}

/* sum += mask * (du A + dv W) / (1 - p) of one part; sum fp32; dv.data NULL: plain LoRA. */
static nib_status add_dropped(nib_ops *ops, nib_matrix du, nib_matrix a, nib_matrix dv, nib_matrix weight,
                              nib_dropout dropout, int part, nib_matrix sum)
{
    nib_matrix through;
    NIB_TRY(scratch_matrix(ops, sum.rows, sum.columns, NIB_DTYPE_F32, &through));
    NIB_TRY(nib_cpu_matmul(ops, du, false, a, false, false, through));
    if (dv.data != NULL) NIB_TRY(nib_cpu_matmul(ops, dv, false, weight, false, true, through));
    apply_dropout(ops, through, dropout, part, through);
    const float *const left[] = {through.data};
    return nib_cpu_tree_sum(ops, sum.data, 1, left, sum.rows * sum.columns, sum.data);
}

/* dx from dy and du where masks keep the parts' A, and what DoRA adds to W, out of the product: summed in fp32 beside
 * it. */
static nib_status masked_dx(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix du, nib_dropout dropout,
                            bool accumulate, nib_matrix dx)
{
    nib_matrix weight, sum, dv = {0}; /* dv [T, N] = (gain - 1) dy */
    NIB_TRY(scratch_matrix(ops, nib_linear_outputs(linear), linear->K, dy.dtype, &weight));
    NIB_TRY(base_weight(ops, linear, weight));
    NIB_TRY(scratch_matrix(ops, dx.rows, dx.columns, NIB_DTYPE_F32, &sum));
    if (accumulate) NIB_TRY(nib_cpu_convert(ops, dx, sum));
    NIB_TRY(nib_cpu_matmul(ops, dy, false, weight, false, accumulate, sum));
    if (nib_linear_is_dora(linear)) {
        NIB_TRY(scratch_matrix(ops, dy.rows, dy.columns, dy.dtype, &dv));
        NIB_TRY(nib_cpu_dora_gradient(ops, linear, dy, 1.0f, dv));
    }
    for (int64_t p = 0, first = 0, column = 0; p < linear->parts; p++) {
        const nib_lora *lora = &linear->part[p].lora;
        const int64_t rows = linear->part[p].rows;
        nib_matrix part_dv = dv.data == NULL ? dv : nib_matrix_columns(dv, first, rows);
        if (lora->rank > 0)
            NIB_TRY(add_dropped(ops, nib_matrix_columns(du, column, lora->rank), lora->a, part_dv,
                                nib_matrix_rows(weight, first, rows), dropout, (int)p, sum));
        first += rows;
        column += lora->rank;
    }
    return nib_cpu_convert(ops, sum, dx);
}

/* [W; A] of all parts, [N + ranks, K]. */
static nib_status stacked_weight(nib_ops *ops, const nib_linear *linear, nib_dtype dtype, nib_matrix *weight)
{
    const int64_t N = nib_linear_outputs(linear), ranks = nib_linear_ranks(linear);
    *weight = linear->part[0].dense;
    if (ranks == 0 && is_ready(linear, dtype)) return NIB_OK;
    NIB_TRY(scratch_matrix(ops, N + ranks, linear->K, dtype, weight));
    NIB_TRY(base_weight(ops, linear, nib_matrix_rows(*weight, 0, N)));
    return stacked_a(ops, linear, nib_matrix_rows(*weight, N, ranks));
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

/* dmagnitude, for which W x + scale B u is computed again; scaled [T, N] = gain dy. */
static nib_status dora_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                                nib_matrix dy, nib_matrix scaled)
{
    const int64_t K = linear->K, ranks = nib_linear_ranks(linear);
    const size_t mark = ops->scratch->used;
    nib_matrix joined, weight, through;
    NIB_TRY(operand(ops, x, ranks, x.dtype, &joined));
    NIB_TRY(nib_cpu_convert(ops, u, nib_matrix_columns(joined, K, ranks)));
    NIB_TRY(joined_weight(ops, linear, x.dtype, &weight));
    NIB_TRY(dora_through(ops, linear, joined, weight, dropout, &through));
    nib_cpu_dora_magnitude(ops, linear, dy, through);
    nib_arena_reset(ops->scratch, mark);
    return nib_cpu_dora_gradient(ops, linear, dy, 0.0f, scaled);
}

static nib_status backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                           nib_matrix dy, bool accumulate, nib_matrix dx)
{
    const nib_dtype dtype = nib_cpu_operand_type(ops, x.dtype);
    const int64_t N = nib_linear_outputs(linear), ranks = nib_linear_ranks(linear);
    nib_matrix joined, weight;
    NIB_TRY(operand(ops, x, 0, dtype, &x));
    NIB_TRY(operand(ops, dy, ranks, dtype, &joined));
    const nib_matrix du = nib_matrix_columns(joined, N, ranks), unscaled = dy;
    dy = nib_matrix_columns(joined, 0, N);
    if (nib_linear_is_dora(linear)) NIB_TRY(dora_backward(ops, linear, x, dropout, u, unscaled, dy));
    const nib_matrix of_output = nib_linear_is_dora(linear) ? unscaled : dy; /* a bias is not scaled */
    for (int64_t p = 0, first = 0; p < linear->parts; first += linear->part[p++].rows)
        NIB_TRY(weight_backward(ops, &linear->part[p], x, nib_matrix_columns(of_output, first, linear->part[p].rows)));
    if (ranks > 0) NIB_TRY(lora_backward(ops, linear, x, dropout, u, dy, du));
    if (dx.data == NULL) return NIB_OK;
    if (ranks > 0 && dropout.p > 0.0f) {
        if (nib_linear_is_dora(linear)) NIB_TRY(operand(ops, unscaled, 0, dtype, &dy));
        return masked_dx(ops, linear, dy, du, dropout, accumulate, dx);
    }
    NIB_TRY(stacked_weight(ops, linear, dtype, &weight));
    return nib_cpu_matmul(ops, joined, false, weight, false, accumulate, dx);
}

nib_status nib_cpu_linear_backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx)
{
    NIB_TRY(check(linear, x, u, dy));
    size_t mark = ops->scratch->used;
    x = nib_matrix_columns(x, 0, linear->K);
    dy = nib_matrix_columns(dy, 0, nib_linear_outputs(linear));
    nib_status status = backward(ops, linear, x, dropout, u, dy, accumulate, dx);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
