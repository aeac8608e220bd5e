#include "cpu/backend_internal.h"
#include "cpu/nf4.h"

/* n values from `element` on, which end with their block at the latest. */
static void dequantize_piece(const nib_cpu_kernels *kernels, const nib_nf4 *weight, int64_t element, int64_t n,
                             nib_dtype dtype, void *out)
{
    const float absmax = nib_cpu_nf4_absmax(weight, element / 64);
    if (n == 64) {
        kernels->nf4_decode(weight->codes + element / 2, absmax, dtype, out);
        return;
    }
    for (int64_t i = 0; i < n; i++) { /* a row that begins or ends inside a block */
        const uint8_t pair = weight->codes[(element + i) / 2];
        const float value = nib_nf4_values[(element + i) % 2 == 0 ? pair >> 4 : pair & 15] * absmax;
        const nib_bf16 rounded = nib_bf16_from_float(value);
        if (dtype == NIB_DTYPE_F32)
            ((float *)out)[i] = nib_bf16_to_float(rounded);
        else
            ((nib_bf16 *)out)[i] = rounded;
    }
}

void nib_cpu_nf4_row(nib_ops *ops, const nib_nf4 *weight, int64_t row, int64_t columns, nib_dtype dtype, void *out)
{
    const nib_cpu_kernels *kernels = nib_cpu_context_of(ops)->kernels;
    for (int64_t at = 0, n; at < columns; at += n) {
        const int64_t element = row * columns + at, left = 64 - element % 64;
        n = left < columns - at ? left : columns - at;
        dequantize_piece(kernels, weight, element, n, dtype, (char *)out + at * (dtype == NIB_DTYPE_F32 ? 4 : 2));
    }
}

nib_status nib_cpu_nf4_dequantize(nib_ops *ops, const nib_nf4 *weight, nib_matrix out)
{
    if (out.dtype != NIB_DTYPE_F32 && out.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_dequantize: into %s is not supported", nib_dtype_name(out.dtype));
    if (ops->rehearsal) return NIB_OK;
#pragma omp parallel for schedule(static) if (out.rows * out.columns > 65536)
    for (int64_t row = 0; row < out.rows; row++)
        nib_cpu_nf4_row(ops, weight, row, out.columns, out.dtype, nib_matrix_at(out, row, 0));
    return NIB_OK;
}
