/* Rows of the embedding table, and their gradient. Contracts: model/ops.h. Activations bf16, table bf16 or fp32; the
 * same bits as the CPU backend, forward and backward.
 *
 * The device cannot report a token that the table does not have: its row of x becomes NaN, and with it the loss; the
 * gradient leaves it out. */
#ifndef NIB_CUDA_EMBEDDING_H
#define NIB_CUDA_EMBEDDING_H

#include "cuda/c_headers.h"

nib_status nib_cuda_embedding_forward(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x);
/* Takes 2 int32 [T] of scratch. */
nib_status nib_cuda_embedding_backward(nib_ops *ops, const int32_t *token, nib_matrix dx, float scale, float *dtable);

#endif
