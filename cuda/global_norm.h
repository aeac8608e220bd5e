/* Norm of all gradients, in two stages of a fixed order, in double. Contract: model/ops.h. A NaN or an infinity in any
 * array makes the norm so: that is the check for non-finite gradients. */
#ifndef NIB_CUDA_GLOBAL_NORM_H
#define NIB_CUDA_GLOBAL_NORM_H

#include "cuda/c_headers.h"

/* Takes a double for every 8192 values of scratch. */
nib_status nib_cuda_global_norm(nib_ops *ops, int count, float *const *array, const int64_t *length, double max_norm,
                                nib_clip *clip);

#endif
