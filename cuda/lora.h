/* The adapter's own products (Hu et al., "LoRA", 2021). All are bound by reading or writing one activation once; what
 * they share is a rank R that is small beside T, K and n.
 *
 * x [T, K], u and du [T, ranks], dy [T, outputs], dx [T, K]: bf16, rows strided. The columns of u and du are those of
 * the parts one after the other, parts of rank 0 having none; "padded" ones are rounded up part by part
 * (nib_linear_padded_ranks). Sums are fp32 in a fixed order. Dropout's masks are those of the CPU backend, computed
 * again wherever they are needed. A linear without any adapter is nothing to do.
 *
 * _plain: without tensor cores and asynchronous copies, any rank, width and stride.
 */
#ifndef NIB_CUDA_LORA_H
#define NIB_CUDA_LORA_H

#include "cuda/c_headers.h"

/* dB += scale * dy^T u and dA += du^T dropout(x), fp32, of every part that has them. du padded. */
nib_status nib_cuda_lora_gradients(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix dy, nib_matrix du);
/* The same, du [T, ranks]. */
nib_status nib_cuda_lora_gradients_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                         nib_matrix u, nib_matrix dy, nib_matrix du);

/* u = dropout(x) A^T, each part with its own mask; written, not added to. masked: A of all parts and u padded. */
nib_status nib_cuda_lora_down_masked(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                     nib_matrix a, nib_matrix u);
nib_status nib_cuda_lora_down_plain(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                    nib_matrix u);

/* to = mask x / (1 - p) with the mask of one part, of tokens first, first + 1, ...; bf16. And sum += mask from / (1 -
 * p), both fp32 [rows, K] without gaps. */
nib_status nib_cuda_lora_drop(nib_ops *ops, int64_t first, nib_matrix x, nib_dropout dropout, int part, nib_matrix to);
nib_status nib_cuda_lora_add_dropped(nib_ops *ops, int64_t first, nib_matrix from, nib_dropout dropout, int part,
                                     nib_matrix sum);

/* dx = dy W + mask (du A) / (1 - p) over all parts (+ dx before, if accumulate), summed in fp32 and rounded once. dy
 * [dy | du], du padded; weight [W; A] (cuda/linear_joined.h). Or dy = du, weight = A: only what the adapters have,
 * which is added to dx. */
nib_status nib_cuda_lora_dx_masked(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_dropout dropout,
                                   nib_matrix weight, bool accumulate, nib_matrix dx);
/* dx += mask (du A) / (1 - p), over all parts, rounded once more. */
nib_status nib_cuda_lora_dx_plain(nib_ops *ops, const nib_linear *linear, nib_matrix du, nib_dropout dropout,
                                  nib_matrix dx);

/* y [T, outputs] += scale * u B^T, rounded once more (the base product may be y's content). */
nib_status nib_cuda_lora_up_plain(nib_ops *ops, const nib_linear *linear, nib_matrix u, nib_matrix y);
/* du = scale * dy B; written, not added to. */
nib_status nib_cuda_lora_du_plain(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix du);

#endif
