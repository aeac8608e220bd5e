#include "cpu/linear_few.h"
#include "cpu/convert.h"
#include "cpu/matvec.h"

bool nib_cpu_linear_is_few(const nib_linear *linear, nib_matrix x)
{
    bool all = x.rows <= NIB_CPU_MATVEC_ROWS && linear->K % 64 == 0;
    for (int p = 0; p < linear->parts; p++) all = all && linear->part[p].nf4.codes != NULL;
    return all;
}

static nib_status take_wide(nib_ops *ops, nib_matrix like, nib_matrix *wide)
{
    *wide = (nib_matrix){.rows = like.rows, .columns = like.columns, .stride = like.columns, .dtype = NIB_DTYPE_F32};
    return nib_arena_take(ops->scratch, like.rows * like.columns, sizeof(float), &wide->data);
}

/* y [M, n] fp32 = gain (y + scale B A x) + bias; gain 1 without DoRA. u [M, R] = A x in the activation type, as when
 * there are many rows. */
static nib_status add_lora(nib_ops *ops, const nib_linear_part *part, nib_matrix x, nib_matrix u, nib_matrix y)
{
    const nib_lora *lora = &part->lora;
    nib_matrix through = {0};
    if (lora->rank > 0) {
        NIB_TRY(nib_cpu_dense_matvec(ops, x, lora->a, NULL, u));
        NIB_TRY(take_wide(ops, y, &through));
        NIB_TRY(nib_cpu_dense_matvec(ops, u, lora->b, NULL, through));
    }
    for (int64_t m = 0; m < y.rows && !ops->rehearsal; m++) {
        float *row = nib_matrix_at(y, m, 0);
        const float *more = lora->rank > 0 ? nib_matrix_at(through, m, 0) : NULL;
        for (int64_t n = 0; n < y.columns; n++) {
            if (more != NULL) row[n] += lora->scale * more[n];
            if (lora->dora.gain != NULL) row[n] *= lora->dora.gain[n];
            if (part->bias != NULL) row[n] += part->bias[n];
        }
    }
    return NIB_OK;
}

nib_status nib_cpu_linear_few(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    nib_matrix wide_x, wide_y;
    NIB_TRY(take_wide(ops, x, &wide_x));
    NIB_TRY(take_wide(ops, y, &wide_y));
    NIB_TRY(nib_cpu_convert(ops, x, wide_x));
    NIB_TRY(nib_cpu_nf4_matvec(ops, linear, x.rows, wide_x.data, wide_y.data));
    for (int64_t p = 0, first = 0, column = 0; p < linear->parts; p++) {
        const nib_linear_part *part = &linear->part[p];
        if (part->lora.rank > 0 || part->bias != NULL)
            NIB_TRY(add_lora(ops, part, wide_x, nib_matrix_columns(u, column, part->lora.rank),
                             nib_matrix_columns(wide_y, first, part->rows)));
        first += part->rows;
        column += part->lora.rank;
    }
    return nib_cpu_convert(ops, wide_y, y);
}
