/* Numbers for tests of ops: reproducible random matrices, and gradients held against finite differences.
 *
 * A gradient g of a scalar L at x is right if, for a random direction d, (L(x + h d) - L(x - h d)) / 2h = <g, d>: one
 * number checks every element at once. With fp32 ops and h = 2^-7, rounding leaves about 1e-4 of the sum's scale, so a
 * tolerance of 2e-3 still catches one wrong element in a few hundred.
 */
#ifndef NIB_NUMERIC_H
#define NIB_NUMERIC_H

#include "check.h"

#include "base/memory.h"
#include "base/random.h"
#include "cpu/backend.h"

#include <math.h>

#define NIB_STEP 0.0078125 /* 2^-7 */

static inline float nib_test_uniform(uint64_t stream, uint64_t index)
{
    uint32_t word[4];
    nib_philox(stream, 0, index, word);
    return 2.0f * nib_uniform(word[0]) - 1.0f;
}

/* n values in (-1, 1); free with nib_free. */
static inline float *nib_test_values(uint64_t stream, int64_t n)
{
    float *values = nib_calloc((size_t)n, sizeof *values);
    assert_non_null(values);
    for (int64_t i = 0; i < n; i++) values[i] = nib_test_uniform(stream, (uint64_t)i);
    return values;
}

static inline nib_matrix nib_test_matrix(float *data, int64_t rows, int64_t columns)
{
    return (nib_matrix){.data = data, .rows = rows, .columns = columns, .stride = columns, .dtype = NIB_DTYPE_F32};
}

static inline double nib_test_dot(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* The scalar of a test, as a function of whatever it reads through user. */
typedef double (*nib_test_scalar)(void *user);

/* Holds gradient [n] of scalar at x [n] against a difference along direction number `stream`. */
static inline void nib_test_gradient(const char *name, nib_test_scalar scalar, void *user, float *x,
                                     const float *gradient, int64_t n, uint64_t stream)
{
    float *direction = nib_test_values(stream, n), *kept = nib_calloc((size_t)n, sizeof *kept);
    double value[2], expected = nib_test_dot(gradient, direction, n), size = 0;
    for (int64_t i = 0; i < n; i++) {
        kept[i] = x[i];
        size += (double)gradient[i] * (double)gradient[i] * (double)direction[i] * (double)direction[i];
    }
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < n; i++) x[i] = kept[i] + (side == 0 ? 1.0f : -1.0f) * (float)NIB_STEP * direction[i];
        value[side] = scalar(user);
    }
    for (int64_t i = 0; i < n; i++) x[i] = kept[i];
    double found = (value[0] - value[1]) / (2 * NIB_STEP), scale = sqrt(size) + 1e-3;
    if (!(fabs(found - expected) < 2e-3 * scale))
        fail_msg("%s: difference %.7g, gradient %.7g, scale %.3g", name, found, expected, scale);
    nib_free(direction);
    nib_free(kept);
}

#endif
