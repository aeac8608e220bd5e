/* Token embeddings and output logits on the CPU. Contracts: model/ops.h. */
#ifndef NIB_CPU_EMBEDDING_H
#define NIB_CPU_EMBEDDING_H

#include "model/ops.h"

nib_status nib_cpu_embedding_forward(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x);
nib_status nib_cpu_embedding_backward(nib_ops *ops, const int32_t *token, nib_matrix dx, float scale, float *dtable);
nib_status nib_cpu_logits(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, float *logits);

#endif
