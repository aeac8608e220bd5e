#include "cpu/matvec.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"

#define ALONE 16384 /* multiplications that one thread does faster than several */

/* The outputs of all parts are one loop: threads meet once for q, k and v. */
nib_status nib_cpu_nf4_matvec(nib_ops *ops, const nib_linear *linear, int64_t M, const float *x, float *y)
{
    const nib_cpu_kernels *kernels = nib_cpu_context_of(ops)->kernels;
    const int64_t K = linear->K, N = nib_linear_outputs(linear);
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
#pragma omp parallel for schedule(static) if (N * K > ALONE)
    for (int64_t n = 0; n < N; n++) {
        const nib_linear_part *part = linear->part;
        float sums[NIB_CPU_MATVEC_ROWS];
        int64_t row = n;
        while (row >= part->rows) row -= part++->rows;
        kernels->nf4_dot(&part->nf4, row * (K / 64), K / 64, M, split, sums);
        for (int64_t m = 0; m < M; m++) y[m * N + n] = sums[m];
    }
done:
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}

nib_status nib_cpu_dense_matvec(nib_ops *ops, nib_matrix a, nib_matrix b, const float *bias, nib_matrix c)
{
    const nib_cpu_kernels *kernels = nib_cpu_context_of(ops)->kernels;
    const int64_t M = a.rows, N = b.rows, K = b.columns;
    size_t mark = ops->scratch->used;
    nib_matrix x = {.rows = M, .columns = K, .stride = K, .dtype = NIB_DTYPE_F32};
    NIB_TRY(nib_arena_take(ops->scratch, M * K, sizeof(float), &x.data));
    NIB_TRY(nib_cpu_convert(ops, a, x));
    if (ops->rehearsal) goto done;
#pragma omp parallel for schedule(static) if (N * K > ALONE)
    for (int64_t n = 0; n < N; n++) {
        float sums[NIB_CPU_MATVEC_ROWS];
        kernels->dense_dot(nib_matrix_at(b, n, 0), b.dtype, K, M, x.data, sums);
        for (int64_t m = 0; m < M; m++) {
            const float sum = bias == NULL ? sums[m] : sums[m] + bias[n];
            if (c.dtype == NIB_DTYPE_F32)
                ((float *)c.data)[m * c.stride + n] = sum;
            else
                ((nib_bf16 *)c.data)[m * c.stride + n] = nib_bf16_from_float(sum);
        }
    }
done:
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
