/* Between fp32 and bf16. Contract: model/ops.h. Any shape and stride. */
#ifndef NIB_CUDA_CONVERT_H
#define NIB_CUDA_CONVERT_H

#include "cuda/c_headers.h"

nib_status nib_cuda_convert(nib_ops *ops, nib_matrix from, nib_matrix to);

#endif
