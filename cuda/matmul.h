/* Dense matrix products by cublasLt. */
#ifndef NIB_CUDA_MATMUL_H
#define NIB_CUDA_MATMUL_H

#include "cuda/c_headers.h"

#include <cuda_runtime.h>

typedef struct nib_cuda_matmul_cache nib_cuda_matmul_cache; /* handle, workspace, the algorithm of each shape met */

nib_status nib_cuda_matmul_cache_create(cudaStream_t stream, nib_cuda_matmul_cache **cache);
void nib_cuda_matmul_cache_free(nib_cuda_matmul_cache *cache);

/* c [M, N] = op(a) op(b) (+ c, if accumulate); op(a) [M, K], op(b) [K, N], where op transposes if asked to. a and b are
 * bf16, c bf16 or fp32; sums are fp32. The algorithm of a shape is chosen when it is first met and then kept; only
 * algorithms that do not split sums over blocks are taken, so that a result is the same from run to run.
 * NIB_ERROR_SHAPE for other types or sizes that do not match. */
nib_status nib_cuda_matmul(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                           bool accumulate, nib_matrix c);
/* The same of operands that nib_cuda_matmul has checked, by a kernel of our own without tensor cores. */
nib_status nib_cuda_matmul_plain(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                                 bool accumulate, nib_matrix c);

#endif
