/* Sixteen floats as one value, by GCC's vector extensions: the compiler maps it to one AVX-512, two AVX2 or four SSE
 * registers, so one source serves every level that NIB_CPU_CLONES compiles. */
#ifndef NIB_CPU_VECTOR_H
#define NIB_CPU_VECTOR_H

#include "base/bf16.h"
#include "cpu/exponential.h"
#include "model/ops.h"

#include <string.h>

typedef float nib_v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t nib_v16i __attribute__((vector_size(64)));

#define NIB_INLINE static inline __attribute__((always_inline))
/* A vector is never passed by value across a call that is not inlined, so its ABI does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

NIB_INLINE nib_v16 nib_v16_set(float x)
{
    nib_v16 zero = {0};
    return zero + x;
}

/* Lane by lane: a where the comparison holds, else b. */
NIB_INLINE nib_v16 nib_v16_select(nib_v16i holds, nib_v16 a, nib_v16 b)
{
    nib_v16i x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x = (x & holds) | (y & ~holds);
    memcpy(&a, &x, sizeof a);
    return a;
}

NIB_INLINE nib_v16 nib_v16_max(nib_v16 a, nib_v16 b) { return nib_v16_select(a > b, a, b); }

/* Halves against halves, in registers. */
NIB_INLINE float nib_v16_sum(nib_v16 x)
{
    typedef float half __attribute__((vector_size(32)));
    typedef float quarter __attribute__((vector_size(16)));
    half h[2];
    quarter q[2];
    memcpy(h, &x, sizeof h);
    h[0] += h[1];
    memcpy(q, &h[0], sizeof q);
    q[0] += q[1];
    return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

/* e^x for x <= 88, 0 below -87. Relative error below 2 ulp, test_elementwise.c. */
NIB_INLINE nib_v16 nib_v16_exp(nib_v16 x)
{
    nib_v16 clamped = nib_v16_max(x, nib_v16_set(-87.0f));
    nib_v16 shifted = clamped * NIB_LOG2_E + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    nib_v16 n = shifted - 12582912.0f;
    nib_v16 r = clamped - n * NIB_LN2_HIGH - n * NIB_LN2_LOW;
    nib_v16 p = nib_v16_set(nib_exp_term[0]);
    for (int i = 1; i < NIB_EXP_TERMS; i++) p = p * r + nib_exp_term[i];
    p = p * r * r + r + 1.0f;
    nib_v16i bits = (__builtin_convertvector(n, nib_v16i) + 127) << 23;
    nib_v16 scale;
    memcpy(&scale, &bits, sizeof scale);
    return nib_v16_select(x < -87.0f, nib_v16_set(0.0f), p * scale);
}

/* Rows of activations in fp32 or bf16, by sixteen. */
NIB_INLINE nib_v16 nib_v16_load_bf16(const nib_bf16 *from)
{
    typedef uint16_t half __attribute__((vector_size(32), aligned(2), may_alias));
    typedef uint32_t full __attribute__((vector_size(64)));
    full bits = __builtin_convertvector(*(const half *)from, full) << 16;
    nib_v16 x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Round to nearest even; a NaN stays a NaN. */
NIB_INLINE void nib_v16_store_bf16(nib_bf16 *to, nib_v16 x)
{
    typedef uint16_t half __attribute__((vector_size(32), aligned(2), may_alias));
    typedef uint32_t full __attribute__((vector_size(64)));
    full bits;
    memcpy(&bits, &x, sizeof bits);
    full rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    full is_nan = (full)((bits & 0x7fffffff) > 0x7f800000);
    full nan = (((bits >> 16) | 0x40) & is_nan) | (rounded & ~is_nan);
    *(half *)to = __builtin_convertvector(nan, half);
}

/* n values of a row to fp32, and back. */
NIB_INLINE void nib_load_row(const void *row, nib_dtype dtype, int64_t n, float *out)
{
    if (dtype == NIB_DTYPE_F32) {
        memcpy(out, row, (size_t)n * sizeof *out);
        return;
    }
    const nib_bf16 *from = row;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) *(nib_v16 *)(out + i) = nib_v16_load_bf16(from + i);
    for (; i < n; i++) out[i] = nib_bf16_to_float(from[i]);
}

NIB_INLINE void nib_store_row(const float *from, nib_dtype dtype, int64_t n, void *row)
{
    if (dtype == NIB_DTYPE_F32) {
        memcpy(row, from, (size_t)n * sizeof *from);
        return;
    }
    nib_bf16 *out = row;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) nib_v16_store_bf16(out + i, *(const nib_v16 *)(from + i));
    for (; i < n; i++) out[i] = nib_bf16_from_float(from[i]);
}

/* A row of the residual stream, before its norm: x += delta, rounded to dtype; row: the rounded sum, which the norm and
 * the backward pass see. delta NULL: x as it is. other: n floats of scratch. */
NIB_INLINE void nib_load_residual_row(void *x, const void *delta, nib_dtype dtype, int64_t n, float *row, float *other)
{
    nib_load_row(x, dtype, n, row);
    if (delta == NULL) return;
    nib_load_row(delta, dtype, n, other);
    for (int64_t i = 0; i < n; i++) row[i] += other[i];
    nib_store_row(row, dtype, n, x);
    nib_load_row(x, dtype, n, row);
}

#endif
