/* NF4 quantisation on the GPU. Contracts: model/ops.h. Same bits as bitsandbytes and as the CPU backend. */
#ifndef NIB_CUDA_NF4_QUANTIZE_H
#define NIB_CUDA_NF4_QUANTIZE_H

#include "cuda/c_headers.h"

nib_status nib_cuda_nf4_quantize(nib_ops *ops, const float *weight, int64_t n, uint8_t *codes, float *absmax);
/* Waits for the device: *nested_offset is the host's. */
nib_status nib_cuda_nf4_quantize_absmax(nib_ops *ops, const float *absmax, int64_t blocks, const float *nested_map,
                                        uint8_t *absmax_codes, float *nested_absmax, float *nested_offset);

#endif
