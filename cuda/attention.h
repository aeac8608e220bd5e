/* Attention over a packed prefix tree, on the GPU (contracts: model/ops.h; rule and layout: key k is visible to query q
 * exactly when k <= q && q < end[k] && (window == 0 || position[q] - position[k] < window)).
 *
 * q, out, dout, dq [T, NH*HD]; k, v, dk, dv [T, NKV*HD]; bf16, rows of any stride. Sums are fp32; results are rounded
 * once. No atomics: the same bits from the same inputs on the same card.
 *
 * On sm_90, head dims 64, 80, 96, 128 and 256 go to kernels of Hopper's own instructions (attention_*_hopper.cu).
 * The tiled kernels (attention_forward.cu, attention_backward.cu, attention_decode.cu) multiply on tensor cores; they
 * hold head dims 16, 64, 80, 96, 128 and 256 and want rows that start at multiples of 16 bytes. Other head dims (a
 * multiple of 8, at most 256) go to the plain siblings (attention_plain.cu), which are also the oracle of the tiled
 * ones on the chip. Anything else is NIB_ERROR_SHAPE. */
#ifndef NIB_CUDA_ATTENTION_H
#define NIB_CUDA_ATTENTION_H

#include "cuda/c_headers.h"

#ifdef __cplusplus
extern "C" {
#endif

nib_status nib_cuda_attention_forward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                      nib_matrix k, nib_matrix v, nib_matrix out, float *lse);
nib_status nib_cuda_attention_backward(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                       nib_matrix k, nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout,
                                       nib_matrix dq, nib_matrix dk, nib_matrix dv);
/* A paged cache is a list of ranges too, one a page. The ranges are uploaded at each call. */
nib_status nib_cuda_attention_cached(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                     const int32_t *range_begin, const nib_cache_range *range, nib_matrix out);

/* Does the device have them, and they the head dim? What the launchers below are called with: the others have checked
 * shapes and alignment, and clipped the window. */
bool nib_cuda_attention_hopper_holds(nib_ops *ops, nib_attention_shape shape);
nib_status nib_cuda_attention_forward_hopper(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                             nib_matrix k, nib_matrix v, nib_matrix out, float *lse);
nib_status nib_cuda_attention_backward_hopper(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                              nib_matrix k, nib_matrix v, nib_matrix out, const float *lse,
                                              nib_matrix dout, nib_matrix dq, nib_matrix dk, nib_matrix dv);

nib_status nib_cuda_attention_forward_plain(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                            nib_matrix k, nib_matrix v, nib_matrix out, float *lse);
nib_status nib_cuda_attention_backward_plain(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q,
                                             nib_matrix k, nib_matrix v, nib_matrix out, const float *lse,
                                             nib_matrix dout, nib_matrix dq, nib_matrix dk, nib_matrix dv);
nib_status nib_cuda_attention_cached_plain(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k,
                                           nib_matrix v, const int32_t *range_begin, const nib_cache_range *range,
                                           nib_matrix out);

#ifdef __cplusplus
}
#endif

#endif
