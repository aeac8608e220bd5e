/* Attention over a packed prefix tree, on the CPU: tiles in the manner of FlashAttention (Dao et al., 2022).
 * Contracts: model/ops.h. fp32 operands: fp32 throughout. bf16: where the CPU multiplies bf16 itself, probabilities and
 * their gradients are rounded to bf16 for the products, sums stay fp32; elsewhere arithmetic is fp32.
 *
 * Scratch: forward 256 * (4 HD + 64) bytes a thread; backward 2 * NH * T * HD floats, and a thread about 20 * HD bytes
 * for each token of the longest segment. HD: a multiple of 8, at most 256. */
#ifndef NIB_CPU_ATTENTION_H
#define NIB_CPU_ATTENTION_H

#include "cpu/attention_job.h"

nib_status nib_cpu_attention_forward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                     nib_matrix v, nib_matrix out, float *lse);
nib_status nib_cpu_attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                      nib_matrix k, nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout,
                                      nib_matrix dq, nib_matrix dk, nib_matrix dv);
nib_status nib_cpu_attention_cached(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                    const int32_t *range_begin, const nib_cache_range *range, nib_matrix out);

/* Shared by the passes. NIB_ERROR_SHAPE for what the kernels do not hold. */
nib_status nib_attention_check(const char *op, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v);
/* Cuts the tree into segments and tiles, in scratch. */
nib_status nib_attention_cut(nib_arena *scratch, nib_tree tree, nib_attention_job *job);

#endif
