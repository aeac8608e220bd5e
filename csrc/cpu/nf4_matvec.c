/* Products of NF4 weights with few rows: each block of 64 weights is decoded into registers and used at once, so that a
 * generated token reads half a byte a weight. */
#include "cpu/backend_internal.h"
#include "cpu/nf4.h"

nib_status nib_cpu_nf4_matvec(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K, int64_t M, const float *x,
                              float *y, int64_t y_stride)
{
    const nib_cpu_kernels *kernels = nib_cpu_context_of(ops)->kernels;
    if (M > NIB_CPU_MATVEC_ROWS || K % 64 != 0)
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_matvec: M = %lld, K = %lld, expected M <= %d and K a multiple of 64",
                        (long long)M, (long long)K, NIB_CPU_MATVEC_ROWS);
    size_t mark = ops->scratch->used;
    float *split; /* x as the kernel wants it */
    NIB_TRY(nib_arena_take(ops->scratch, M * K, sizeof *split, &split));
    if (ops->rehearsal) goto done;
    for (int64_t i = 0; i < M * K; i += 32)
        for (int j = 0; j < 16; j++) {
            split[i + j] = x[i + 2 * j];
            split[i + 16 + j] = x[i + 2 * j + 1];
        }
#pragma omp parallel for schedule(static) if (n * K > 16384)
    for (int64_t row = 0; row < n; row++) {
        float sums[NIB_CPU_MATVEC_ROWS];
        kernels->nf4_dot(weight, row * (K / 64), K / 64, M, split, sums);
        for (int64_t m = 0; m < M; m++) y[m * y_stride + row] = sums[m];
    }
done:
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
