/* With z = (x - mean(x)) r and r = 1 / sqrt(mean((x - mean(x))^2) + epsilon):
 * y = w z + b,  dx = r (w dy - mean(w dy) - z mean(w dy z)),  dw = sum over rows of dy z,  db = sum over rows of dy. */
#include "cpu/layernorm.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

#include <math.h>

#define MAX_COLUMNS 16384 /* a row is worked on in fp32 on the stack */

static nib_status check(nib_matrix x, nib_matrix y)
{
    if (x.columns > MAX_COLUMNS || x.rows != y.rows || x.columns != y.columns || x.dtype != y.dtype)
        return NIB_FAIL(NIB_ERROR_SHAPE, "layernorm: x [%lld, %lld], y [%lld, %lld], at most %d columns",
                        (long long)x.rows, (long long)x.columns, (long long)y.rows, (long long)y.columns, MAX_COLUMNS);
    return NIB_OK;
}

static float mean(const float *x, int64_t C)
{
    float lane[16] = {0}, sum = 0.0f;
    for (int64_t c = 0; c < C; c++) lane[c % 16] += x[c];
    for (int i = 0; i < 16; i++) sum += lane[i];
    return sum / (float)C;
}

static float mean_of_products(const float *x, const float *y, int64_t C)
{
    float lane[16] = {0}, sum = 0.0f;
    for (int64_t c = 0; c < C; c++) lane[c % 16] += x[c] * y[c];
    for (int i = 0; i < 16; i++) sum += lane[i];
    return sum / (float)C;
}

/* x becomes z; returns r. */
static float standardize(float *x, int64_t C, float epsilon)
{
    const float centre = mean(x, C);
    for (int64_t c = 0; c < C; c++) x[c] -= centre;
    const float r = 1.0f / sqrtf(mean_of_products(x, x, C) + epsilon);
    for (int64_t c = 0; c < C; c++) x[c] *= r;
    return r;
}

static void forward_row(void *x, const void *delta, nib_dtype dtype, int64_t C, const float *weight, const float *bias,
                        float epsilon, void *y)
{
    float row[MAX_COLUMNS], other[MAX_COLUMNS];
    nib_load_residual_row(x, delta, dtype, C, row, other);
    if (y == NULL) return;
    standardize(row, C, epsilon);
    for (int64_t c = 0; c < C; c++) row[c] = row[c] * weight[c] + (bias == NULL ? 0.0f : bias[c]);
    nib_store_row(row, dtype, C, y);
}

nib_status nib_cpu_layernorm_forward(nib_ops *ops, nib_matrix x, const nib_matrix *delta, const float *weight,
                                     const float *bias, float epsilon, nib_matrix y)
{
    (void)ops;
    if (y.data != NULL) NIB_TRY(check(x, y));
    if (delta != NULL) NIB_TRY(check(x, *delta));
#pragma omp parallel for schedule(static) if (x.rows > 1)
    for (int64_t t = 0; t < x.rows; t++)
        forward_row(nib_matrix_at(x, t, 0), delta == NULL ? NULL : nib_matrix_at(*delta, t, 0), x.dtype, x.columns,
                    weight, bias, epsilon, y.data == NULL ? NULL : nib_matrix_at(y, t, 0));
    return NIB_OK;
}

static void backward_row(const void *x, nib_dtype dtype, int64_t C, const float *weight, float epsilon, const void *dy,
                         void *dx)
{
    float z[MAX_COLUMNS], gradient[MAX_COLUMNS], sum[MAX_COLUMNS];
    nib_load_row(x, dtype, C, z);
    nib_load_row(dy, dtype, C, gradient);
    nib_load_row(dx, dtype, C, sum);
    const float r = standardize(z, C, epsilon);
    for (int64_t c = 0; c < C; c++) gradient[c] *= weight[c];
    const float level = mean(gradient, C), along = mean_of_products(gradient, z, C);
    for (int64_t c = 0; c < C; c++) sum[c] += r * (gradient[c] - level - z[c] * along);
    nib_store_row(sum, dtype, C, dx);
}

/* In order of rows. */
static void parameter_gradients(nib_matrix x, nib_matrix dy, float epsilon, float *dweight, float *dbias)
{
    float z[MAX_COLUMNS], gradient[MAX_COLUMNS];
    for (int64_t t = 0; t < x.rows; t++) {
        nib_load_row(nib_matrix_at(x, t, 0), x.dtype, x.columns, z);
        nib_load_row(nib_matrix_at(dy, t, 0), dy.dtype, x.columns, gradient);
        standardize(z, x.columns, epsilon);
        for (int64_t c = 0; c < x.columns && dweight != NULL; c++) dweight[c] += gradient[c] * z[c];
        for (int64_t c = 0; c < x.columns && dbias != NULL; c++) dbias[c] += gradient[c];
    }
}

nib_status nib_cpu_layernorm_backward(nib_ops *ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy,
                                      nib_matrix dx, float *dweight, float *dbias)
{
    (void)ops;
    NIB_TRY(check(x, dy));
    NIB_TRY(check(x, dx));
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < x.rows; t++)
        backward_row(nib_matrix_at(x, t, 0), x.dtype, x.columns, weight, epsilon, nib_matrix_at(dy, t, 0),
                     nib_matrix_at(dx, t, 0));
    if (dweight != NULL || dbias != NULL) parameter_gradients(x, dy, epsilon, dweight, dbias);
    return NIB_OK;
}
