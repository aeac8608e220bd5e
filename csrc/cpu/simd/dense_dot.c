/* Products of fp32 and bf16 weights with few rows. Contract: cpu/kernels.h. */
#include "cpu/simd/few_rows.h"
#include "cpu/simd/level.h"

ALWAYS_INLINE vec weights_at(const void *weight, nib_dtype dtype, int64_t k)
{
    return dtype == NIB_DTYPE_F32 ? vec_load((const float *)weight + k) : vec_load_bf16((const nib_bf16 *)weight + k);
}

ALWAYS_INLINE void dot_rows(const void *weight, nib_dtype dtype, int64_t K, int M, const float *x, float *y)
{
    const int second = second_sum(M, 2);
    const int64_t size = dtype == NIB_DTYPE_F32 ? 4 : 2;
    vec sum[NIB_CPU_MATVEC_ROWS][2];
    int64_t k = 0;
    for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = vec_zero();
    for (; k + 2 * LANES <= K; k += 2 * LANES) {
        __builtin_prefetch((const char *)weight + k * size + WEIGHTS_AHEAD);
        const vec first = weights_at(weight, dtype, k), next = weights_at(weight, dtype, k + LANES);
        for (int m = 0; m < M; m++) {
            sum[m][0] = vec_fma(first, vec_load(x + m * K + k), sum[m][0]);
            sum[m][second] = vec_fma(next, vec_load(x + m * K + k + LANES), sum[m][second]);
        }
    }
    for (int m = 0; m < M; m++) {
        vec all = sum[m][0] + sum[m][1];
        for (int64_t i = k; i < K; i += LANES)
            all = vec_fma(vec_get(weight, dtype, i, K), vec_get(x + m * K, NIB_DTYPE_F32, i, K), all);
        y[m] = vec_sum(all);
    }
}

void NIB_SIMD(nib_dense_dot)(const void *weight, nib_dtype dtype, int64_t K, int64_t M, const float *x, float *y)
{
#define DOT_F32(rows)  dot_rows(weight, NIB_DTYPE_F32, K, rows, x, y)
#define DOT_BF16(rows) dot_rows(weight, NIB_DTYPE_BF16, K, rows, x, y)
    if (dtype == NIB_DTYPE_F32) {
        FOR_CONSTANT_ROWS(M, DOT_F32);
    } else {
        FOR_CONSTANT_ROWS(M, DOT_BF16);
    }
#undef DOT_F32
#undef DOT_BF16
}
