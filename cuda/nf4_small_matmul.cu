#include "cuda/nf4_small_matmul.h"

bool nib_cuda_nf4_small_matmul_takes(const nib_linear *linear, int64_t rows)
{
    bool takes = rows <= NIB_CUDA_SMALL_MATMUL_ROWS && linear->K % 64 == 0;
    for (int p = 0; p < linear->parts; p++) takes = takes && linear->part[p].nf4.codes != NULL;
    return takes;
}

nib_status nib_cuda_nf4_small_matmul_check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    const int64_t N = nib_linear_outputs(linear);
    if (!nib_cuda_nf4_small_matmul_takes(linear, x.rows))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "nf4_small_matmul %s: x is [%lld, %lld], expected at most %d rows, columns a "
                        "multiple of 64, and weights in NF4",
                        linear->name, (long long)x.rows, (long long)x.columns, NIB_CUDA_SMALL_MATMUL_ROWS);
    if (x.dtype != NIB_DTYPE_BF16 || y.dtype != NIB_DTYPE_BF16 || x.columns != linear->K || y.columns != N ||
        y.rows != x.rows || x.stride % 8 != 0 || (uintptr_t)x.data % 16 != 0)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "nf4_small_matmul %s: x [%lld, %lld] in rows of %lld to y [%lld, %lld], "
                        "expected [T, %lld] in 16-byte aligned rows to [T, %lld], both BF16",
                        linear->name, (long long)x.rows, (long long)x.columns, (long long)x.stride, (long long)y.rows,
                        (long long)y.columns, (long long)linear->K, (long long)N);
    if (u.data != NULL && (u.rows != x.rows || u.columns != nib_linear_ranks(linear) || u.dtype != NIB_DTYPE_BF16))
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_small_matmul %s: u is [%lld, %lld], expected [%lld, %lld] BF16",
                        linear->name, (long long)u.rows, (long long)u.columns, (long long)x.rows,
                        (long long)nib_linear_ranks(linear));
    for (int p = 0; p < linear->parts; p++)
        if ((uintptr_t)linear->part[p].nf4.codes % 16 != 0)
            return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_small_matmul %s: the codes of part %d are not 16-byte aligned",
                            linear->name, p);
    return NIB_OK;
}

nib_status nib_cuda_nf4_small_matmul(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    return nib_cuda_nf4_small_matmul_plain(ops, linear, x, u, y);
}
