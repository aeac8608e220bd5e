#include "cpu/convert.h"
#include "cpu/backend_internal.h"

#include <string.h>

NIB_CPU_CLONES void nib_cpu_widen(const nib_bf16 *from, float *to, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = nib_bf16_to_float(from[i]);
}

NIB_CPU_CLONES void nib_cpu_narrow(const float *from, nib_bf16 *to, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = nib_bf16_from_float(from[i]);
}

nib_status nib_cpu_convert(nib_ops *ops, nib_matrix from, nib_matrix to)
{
    if (from.rows != to.rows || from.columns != to.columns)
        return NIB_FAIL(NIB_ERROR_SHAPE, "convert: [%lld, %lld] to [%lld, %lld]", (long long)from.rows,
                        (long long)from.columns, (long long)to.rows, (long long)to.columns);
    bool from_wide = from.dtype == NIB_DTYPE_F32, to_wide = to.dtype == NIB_DTYPE_F32;
    if ((!from_wide && from.dtype != NIB_DTYPE_BF16) || (!to_wide && to.dtype != NIB_DTYPE_BF16))
        return NIB_FAIL(NIB_ERROR_SHAPE, "convert: %s to %s is not supported", nib_dtype_name(from.dtype),
                        nib_dtype_name(to.dtype));
    if (ops->rehearsal) return NIB_OK;
#pragma omp parallel for schedule(static) if (from.rows * from.columns > 65536)
    for (int64_t r = 0; r < from.rows; r++) {
        nib_matrix source = nib_matrix_rows(from, r, 1), target = nib_matrix_rows(to, r, 1);
        if (from_wide == to_wide)
            memcpy(target.data, source.data, (size_t)from.columns * (from_wide ? 4 : 2));
        else if (from_wide)
            nib_cpu_narrow(source.data, target.data, from.columns);
        else
            nib_cpu_widen(source.data, target.data, from.columns);
    }
    return NIB_OK;
}
