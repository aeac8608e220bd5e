/* Dense matrix products by cublasLt. */
#ifndef NIB_CUDA_MATMUL_H
#define NIB_CUDA_MATMUL_H

#include "cuda/matmul_choice.h"

#include <cuda_runtime.h>

typedef struct nib_cuda_matmul_cache nib_cuda_matmul_cache; /* handle, workspace, the algorithm of each shape met */

nib_status nib_cuda_matmul_cache_create(cudaStream_t stream, nib_cuda_matmul_cache **cache);
void nib_cuda_matmul_cache_free(nib_cuda_matmul_cache *cache);
nib_matmul_choices *nib_cuda_matmul_choices(nib_cuda_matmul_cache *cache);
nib_status nib_cuda_keep_algorithms(nib_ops *ops, const char *folder);
/* How long on the device what `run` starts takes, warmed up; it is started a few times, and the host waits. */
nib_status nib_cuda_matmul_time(nib_cuda_matmul_cache *cache, nib_status (*run)(void *user), void *user,
                                float *microseconds);

/* c [M, N] = op(a) op(b) (+ c, if accumulate); op(a) [M, K], op(b) [K, N], where op transposes if asked to. a and b are
 * bf16, c bf16 or fp32; sums are fp32. The algorithm of a shape is chosen when it is first met and then kept; only
 * algorithms that do not split sums over blocks are taken, so that a result is the same from run to run.
 * NIB_ERROR_SHAPE for other types or sizes that do not match. */
nib_status nib_cuda_matmul(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                           bool accumulate, nib_matrix c);
/* The same of operands that nib_cuda_matmul has checked, by a kernel of our own without tensor cores. */
nib_status nib_cuda_matmul_plain(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b,
                                 bool accumulate, nib_matrix c);

/* A matrix in 8-bit floating point (cuda/e4m3.cuh): scale[row] * data[row][column]. */
typedef struct {
    uint8_t *data; /* e4m3 [rows, columns] */
    int64_t rows, columns, stride;
    float *scale; /* [rows], powers of two */
} nib_cuda_e4m3;

/* c [M, N] bf16 = a b^T (+ c); a [M, K], b [N, K], whose rows all have one scale. Rows are 16-byte aligned, K and N
 * multiples of 16. Products are exact, sums fp32 as far as the device keeps them, rounded once. Needs a device of sm_89
 * or later (nib_ops.fp8). NIB_ERROR_SHAPE for sizes that do not match. */
nib_status nib_cuda_matmul_e4m3(nib_ops *ops, const nib_cuda_e4m3 *a, const nib_cuda_e4m3 *b, bool accumulate,
                                nib_matrix c);
nib_status nib_cuda_matmul_e4m3_plain(nib_ops *ops, const nib_cuda_e4m3 *a, const nib_cuda_e4m3 *b, bool accumulate,
                                      nib_matrix c);

#endif
