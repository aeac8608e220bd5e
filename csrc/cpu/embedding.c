#include "cpu/embedding.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"

#include <math.h>

nib_status nib_cpu_embedding_forward(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x)
{
    if (table.columns != x.columns)
        return NIB_FAIL(NIB_ERROR_SHAPE, "embedding: table [%lld, %lld] into x [%lld, %lld]", (long long)table.rows,
                        (long long)table.columns, (long long)x.rows, (long long)x.columns);
    for (int64_t t = 0; t < x.rows; t++)
        if (token[t] < 0 || token[t] >= table.rows)
            return NIB_FAIL(NIB_ERROR_SHAPE, "embedding: token %d at %lld, the table has %lld rows", token[t],
                            (long long)t, (long long)table.rows);
    for (int64_t t = 0; t < x.rows; t++) {
        nib_matrix row = nib_matrix_rows(x, t, 1);
        NIB_TRY(nib_cpu_convert(ops, nib_matrix_rows(table, token[t], 1), row));
        if (scale == 1.0f) continue;
        for (int64_t c = 0; c < x.columns; c++) {
            if (x.dtype == NIB_DTYPE_F32)
                ((float *)row.data)[c] *= scale;
            else
                ((nib_bf16 *)row.data)[c] = nib_bf16_from_float(scale * nib_bf16_to_float(((nib_bf16 *)row.data)[c]));
        }
    }
    return NIB_OK;
}

nib_status nib_cpu_embedding_backward(nib_ops *ops, const int32_t *token, nib_matrix dx, float scale, float *dtable)
{
    (void)ops;
    for (int64_t t = 0; t < dx.rows; t++) {
        if (token[t] < 0) continue;
        float *row = dtable + token[t] * dx.columns;
        nib_matrix from = nib_matrix_rows(dx, t, 1);
        for (int64_t c = 0; c < dx.columns; c++)
            row[c] += scale * (dx.dtype == NIB_DTYPE_F32 ? ((float *)from.data)[c]
                                                         : nib_bf16_to_float(((nib_bf16 *)from.data)[c]));
    }
    return NIB_OK;
}

/* Rows of the head that are widened at a time when it is stored in another type than x. */
#define HEAD_ROWS 4096

nib_status nib_cpu_logits(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, float *logits)
{
    if (x.columns != head.columns)
        return NIB_FAIL(NIB_ERROR_SHAPE, "logits: x [%lld, %lld], head [%lld, %lld]", (long long)x.rows,
                        (long long)x.columns, (long long)head.rows, (long long)head.columns);
    nib_matrix out = {
        .data = logits, .rows = x.rows, .columns = head.rows, .stride = head.rows, .dtype = NIB_DTYPE_F32};
    size_t mark = ops->scratch->used;
    int64_t step = head.dtype == x.dtype ? head.rows : HEAD_ROWS;
    for (int64_t first = 0; first < head.rows; first += step) {
        int64_t n = head.rows - first < step ? head.rows - first : step;
        nib_matrix rows = nib_matrix_rows(head, first, n);
        if (head.dtype != x.dtype) {
            nib_matrix same = {.rows = n, .columns = head.columns, .stride = head.columns, .dtype = x.dtype};
            NIB_TRY(nib_arena_take(ops->scratch, n * head.columns, x.dtype == NIB_DTYPE_F32 ? 4 : 2, &same.data));
            NIB_TRY(nib_cpu_convert(ops, rows, same));
            rows = same;
        }
        NIB_TRY(nib_cpu_matmul(ops, x, false, rows, true, false, nib_matrix_columns(out, first, n)));
        nib_arena_reset(ops->scratch, mark);
    }
    if (softcap > 0.0f)
        for (int64_t i = 0; i < x.rows * head.rows; i++) logits[i] = softcap * tanhf(logits[i] / softcap);
    return NIB_OK;
}
