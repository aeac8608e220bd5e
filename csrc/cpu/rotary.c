#include "cpu/rotary.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

#include <math.h>

#define MAX_HEAD_DIM 256

nib_status nib_cpu_rotary_table(nib_ops *ops, const int32_t *position, int64_t T, const float *frequency, int64_t pairs,
                                float scale, float *table)
{
    (void)ops;
#pragma omp parallel for schedule(static) if (T > 1)
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < pairs; i++) {
            float angle = (float)position[t] * frequency[i]; /* fp32, as the reference computes it */
            table[t * 2 * pairs + i] = cosf(angle) * scale;
            table[t * 2 * pairs + pairs + i] = sinf(angle) * scale;
        }
    return NIB_OK;
}

/* One head: (a, b) becomes (a cos - b sin, b cos + a sin). */
NIB_CPU_CLONES static void rotate(void *head, nib_dtype dtype, const float *table, int64_t pairs,
                                  nib_rotary_layout layout, float sign)
{
    float x[MAX_HEAD_DIM], y[MAX_HEAD_DIM];
    const float *cosine = table, *sine = table + pairs;
    nib_load_row(head, dtype, 2 * pairs, x);
    if (layout == NIB_ROTARY_INTERLEAVED)
        for (int64_t i = 0; i < pairs; i++) {
            y[2 * i] = x[2 * i] * cosine[i] - sign * x[2 * i + 1] * sine[i];
            y[2 * i + 1] = x[2 * i + 1] * cosine[i] + sign * x[2 * i] * sine[i];
        }
    for (int64_t i = 0; i < pairs && layout == NIB_ROTARY_HALF_SPLIT; i++) {
        y[i] = x[i] * cosine[i] - sign * x[pairs + i] * sine[i];
        y[pairs + i] = x[pairs + i] * cosine[i] + sign * x[i] * sine[i];
    }
    nib_store_row(y, dtype, 2 * pairs, head);
}

nib_status nib_cpu_rotary(nib_ops *ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table,
                          int64_t pairs, nib_rotary_layout layout, bool inverse)
{
    (void)ops;
    if (x.columns != heads * head_dim || 2 * pairs > head_dim || head_dim > MAX_HEAD_DIM)
        return NIB_FAIL(NIB_ERROR_SHAPE, "rotary: %lld columns for %lld heads of %lld, %lld pairs",
                        (long long)x.columns, (long long)heads, (long long)head_dim, (long long)pairs);
#pragma omp parallel for schedule(static) if (x.rows > 1)
    for (int64_t t = 0; t < x.rows; t++)
        for (int64_t h = 0; h < heads; h++)
            rotate(nib_matrix_at(nib_matrix_columns(x, h * head_dim, head_dim), t, 0), x.dtype, table + t * 2 * pairs,
                   pairs, layout, inverse ? -1.0f : 1.0f);
    return NIB_OK;
}
