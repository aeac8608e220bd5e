/* NF4 on the CPU: quantise and dequantise. Contracts: model/ops.h. */
#ifndef NIB_CPU_NF4_H
#define NIB_CPU_NF4_H

#include "model/ops.h"

nib_status nib_cpu_nf4_quantize(nib_ops *ops, const float *weight, int64_t n, uint8_t *codes, float *absmax);
nib_status nib_cpu_nf4_quantize_absmax(nib_ops *ops, const float *absmax, int64_t blocks, const float *nested_map,
                                       uint8_t *absmax_codes, float *nested_absmax, float *nested_offset);
nib_status nib_cpu_nf4_dequantize(nib_ops *ops, const nib_nf4 *weight, nib_matrix out);
/* One row of `columns` weights, by the calling thread; the same values. */
void nib_cpu_nf4_row(nib_ops *ops, const nib_nf4 *weight, int64_t row, int64_t columns, nib_dtype dtype, void *out);

/* absmax of one block, exactly as bitsandbytes restores it: map[code] * nested + offset, each step rounded. */
static inline float nib_cpu_nf4_absmax(const nib_nf4 *weight, int64_t block)
{
    if (weight->absmax != NULL) return weight->absmax[block];
    float scaled = weight->nested_map[weight->absmax_codes[block]] * weight->nested_absmax[block >> 8];
    return scaled + weight->nested_offset;
}

#endif
