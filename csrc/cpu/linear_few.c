#include "cpu/linear_few.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/nf4.h"
#include "cpu/vector.h"

bool nib_cpu_linear_is_few(const nib_linear *linear, nib_matrix x)
{
    bool all = x.rows <= NIB_CPU_MATVEC_ROWS && linear->K % 64 == 0;
    for (int p = 0; p < linear->parts; p++) all = all && linear->part[p].nf4.codes != NULL;
    return all;
}

/* Sum of n products of a row in its own type with fp32, in a fixed order. */
NIB_CPU_CLONES static float row_dot(const void *row, nib_dtype dtype, const float *x, int64_t n)
{
    const bool wide = dtype == NIB_DTYPE_F32;
    nib_v16 sum = nib_v16_set(0.0f);
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const nib_v16 w =
            wide ? *(const nib_v16 *)((const float *)row + i) : nib_v16_load_bf16((const nib_bf16 *)row + i);
        sum += w * *(const nib_v16 *)(x + i);
    }
    for (; i < n; i++) rest += (wide ? ((const float *)row)[i] : nib_bf16_to_float(((const nib_bf16 *)row)[i])) * x[i];
    return nib_v16_sum(sum) + rest;
}

/* u [M, R] = A x in the activation type, as when there are many rows; x fp32 [M, K]. */
static void lora_down(const nib_lora *lora, nib_matrix x, nib_matrix u)
{
    const int64_t M = x.rows, R = lora->rank;
#pragma omp parallel for schedule(static) if (M * R * x.columns > 16384)
    for (int64_t i = 0; i < M * R; i++) {
        const float value =
            row_dot(nib_matrix_at(lora->a, i % R, 0), lora->a.dtype, nib_matrix_at(x, i / R, 0), x.columns);
        nib_store_row(&value, u.dtype, 1, nib_matrix_at(nib_matrix_columns(u, i % R, 1), i / R, 0));
    }
}

/* y [M, n] = gain (y + scale B u) + bias, fp32; u [M, R] fp32; gain 1 without DoRA. */
static void lora_up(const nib_linear_part *part, nib_matrix u, nib_matrix y)
{
    const nib_lora *lora = &part->lora;
#pragma omp parallel for schedule(static) if (y.rows * y.columns * lora->rank > 16384)
    for (int64_t n = 0; n < y.columns; n++)
        for (int64_t m = 0; m < y.rows; m++) {
            float *sum = (float *)nib_matrix_at(y, m, 0) + n;
            if (lora->rank > 0)
                *sum += lora->scale *
                        row_dot(nib_matrix_at(lora->b, n, 0), lora->b.dtype, nib_matrix_at(u, m, 0), lora->rank);
            if (lora->dora.gain != NULL) *sum *= lora->dora.gain[n];
            if (part->bias != NULL) *sum += part->bias[n];
        }
}

static nib_status take_wide(nib_ops *ops, nib_matrix like, nib_matrix *wide)
{
    *wide = (nib_matrix){.rows = like.rows, .columns = like.columns, .stride = like.columns, .dtype = NIB_DTYPE_F32};
    return nib_arena_take(ops->scratch, like.rows * like.columns, sizeof(float), &wide->data);
}

nib_status nib_cpu_linear_few(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    nib_matrix wide_x, wide_y, wide_u;
    NIB_TRY(take_wide(ops, x, &wide_x));
    NIB_TRY(take_wide(ops, y, &wide_y));
    NIB_TRY(take_wide(ops, u, &wide_u));
    NIB_TRY(nib_cpu_convert(ops, x, wide_x));
    for (int64_t p = 0, first = 0, column = 0; p < linear->parts; p++) {
        const nib_linear_part *part = &linear->part[p];
        const int64_t rank = part->lora.rank;
        const nib_matrix out = nib_matrix_columns(wide_y, first, part->rows);
        NIB_TRY(nib_cpu_nf4_matvec(ops, &part->nf4, part->rows, linear->K, x.rows, wide_x.data, out.data, out.stride));
        first += part->rows;
        if (ops->rehearsal || (rank == 0 && part->bias == NULL)) continue;
        nib_matrix part_u = {0};
        if (rank > 0) {
            part_u = nib_matrix_columns(wide_u, column, rank);
            lora_down(&part->lora, wide_x, nib_matrix_columns(u, column, rank));
            NIB_TRY(nib_cpu_convert(ops, nib_matrix_columns(u, column, rank), part_u));
        }
        lora_up(part, part_u, out);
        column += rank;
    }
    return nib_cpu_convert(ops, wide_y, y);
}
