/* Attention over a packed prefix tree, on the CPU: tiles in the manner of FlashAttention (Dao et al., 2022), in fp32.
 * Contracts: model/ops.h. */
#ifndef NIB_CPU_ATTENTION_H
#define NIB_CPU_ATTENTION_H

#include "model/ops.h"

nib_status nib_cpu_attention_forward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                     nib_matrix v, nib_matrix out, float *lse);
nib_status nib_cpu_attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                      nib_matrix k, nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout,
                                      nib_matrix dq, nib_matrix dk, nib_matrix dv);
nib_status nib_cpu_attention_cached(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                    const int32_t *range_begin, const nib_cache_range *range, nib_matrix out);

#endif
