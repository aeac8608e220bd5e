/* With r = 1 / sqrt(mean(x^2) + epsilon):  y = x r w,  dx = r (w dy - x r^2 mean(w dy x)). */
#include "cpu/rmsnorm.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

#include <math.h>

#define MAX_COLUMNS 16384 /* a row is worked on in fp32 on the stack */

static nib_status check(nib_matrix x, int64_t groups, nib_matrix y)
{
    if (x.columns > MAX_COLUMNS * groups || x.columns % groups != 0 || x.rows != y.rows || x.columns != y.columns ||
        x.dtype != y.dtype)
        return NIB_FAIL(NIB_ERROR_SHAPE, "rmsnorm: x [%lld, %lld], y [%lld, %lld], %lld groups of at most %d columns",
                        (long long)x.rows, (long long)x.columns, (long long)y.rows, (long long)y.columns,
                        (long long)groups, MAX_COLUMNS);
    return NIB_OK;
}

/* Piece i of a matrix whose rows are `groups` pieces. */
static void *piece(nib_matrix x, int64_t groups, int64_t i)
{
    return nib_matrix_at(x, i / groups, i % groups * (x.columns / groups));
}

/* Sum of a[i] * b[i] in sixteen lanes. */
NIB_INLINE float dot(const float *a, const float *b, int64_t n)
{
    nib_v16 sum = {0};
    float tail = 0.0f;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) sum += *(const nib_v16 *)(a + i) * *(const nib_v16 *)(b + i);
    for (; i < n; i++) tail += a[i] * b[i];
    return nib_v16_sum(sum) + tail;
}

NIB_CPU_CLONES static void forward_row(void *x, const void *delta, nib_dtype dtype, int64_t C, const float *weight,
                                       float epsilon, void *y)
{
    float row[MAX_COLUMNS], other[MAX_COLUMNS];
    nib_load_residual_row(x, delta, dtype, C, row, other);
    if (y == NULL) return;
    float r = 1.0f / sqrtf(dot(row, row, C) / (float)C + epsilon);
    for (int64_t c = 0; c < C; c++) row[c] = row[c] * r * weight[c];
    nib_store_row(row, dtype, C, y);
}

nib_status nib_cpu_rmsnorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, int64_t groups,
                                   const float *weight, float epsilon, nib_matrix y)
{
    (void)ops;
    if (y.data != NULL) NIB_TRY(check(x, groups, y));
    if (delta != NULL) NIB_TRY(check(x, groups, *delta));
#pragma omp parallel for schedule(static) if (x.rows > 1)
    for (int64_t i = 0; i < x.rows * groups; i++)
        forward_row(piece(x, groups, i), delta == NULL ? NULL : piece(*delta, groups, i), x.dtype, x.columns / groups,
                    weight, epsilon, y.data == NULL ? NULL : piece(y, groups, i));
    return NIB_OK;
}

NIB_CPU_CLONES static void backward_row(const void *x, nib_dtype dtype, int64_t C, const float *weight, float epsilon,
                                        const void *dy, void *dx)
{
    float row[MAX_COLUMNS], gradient[MAX_COLUMNS], sum[MAX_COLUMNS];
    nib_load_row(x, dtype, C, row);
    nib_load_row(dy, dtype, C, gradient);
    nib_load_row(dx, dtype, C, sum);
    float r = 1.0f / sqrtf(dot(row, row, C) / (float)C + epsilon);
    for (int64_t c = 0; c < C; c++) gradient[c] *= weight[c];
    float along = dot(gradient, row, C) / (float)C * r * r;
    for (int64_t c = 0; c < C; c++) sum[c] += r * (gradient[c] - row[c] * along);
    nib_store_row(sum, dtype, C, dx);
}

/* dweight += sum over rows of dy x r, in order of rows. */
static void weight_gradient(nib_matrix x, int64_t groups, nib_matrix dy, float epsilon, float *dweight)
{
    float row[MAX_COLUMNS], gradient[MAX_COLUMNS];
    const int64_t C = x.columns / groups;
    for (int64_t i = 0; i < x.rows * groups; i++) {
        nib_load_row(piece(x, groups, i), x.dtype, C, row);
        nib_load_row(piece(dy, groups, i), dy.dtype, C, gradient);
        float r = 1.0f / sqrtf(dot(row, row, C) / (float)C + epsilon);
        for (int64_t c = 0; c < C; c++) dweight[c] += gradient[c] * row[c] * r;
    }
}

nib_status nib_cpu_rmsnorm_backward(nib_ops *ops, nib_matrix x, int64_t groups, const float *weight, float epsilon,
                                    nib_matrix dy, nib_matrix dx, float *dweight)
{
    (void)ops;
    NIB_TRY(check(x, groups, dy));
    NIB_TRY(check(x, groups, dx));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < x.rows * groups; i++)
        backward_row(piece(x, groups, i), x.dtype, x.columns / groups, weight, epsilon, piece(dy, groups, i),
                     piece(dx, groups, i));
    if (dweight != NULL) weight_gradient(x, groups, dy, epsilon, dweight);
    return NIB_OK;
}
