/* The operands in which a linear and its adapters are one product.
 *
 *     S = [ W, scale B, bias ]  N rows: y  = [x | u | 1] [W | scale B | bias]^T
 *         [ A                ]  R rows: dx = [dy | du] [W; A],   u = x A^T,   du = dy (scale B)
 *
 * W of all parts below each other; each part's B and A in columns and rows of its own, `rank` of them rounded up to a
 * multiple of 8 (so that every row and block of columns is 16-byte aligned), zeros in the others' and in the rounding.
 * A bias is three columns of bf16 whose sum is the fp32 value, against ones beside x. So y and dx are summed in fp32,
 * rounded once and written once.
 *
 * The order: u before y, du before dx. [x] [W; A]^T would give u with W's product, but then u's part of y is a second
 * pass over y, as dy [W | scale B] would make du's part of dx one over dx. For Llama-3-8B, rank 16, bytes a token and
 * layer beyond the base products (bf16, weights aside):
 *     u, du first, as here       x and dy read once more     53248 + 86016
 *     u, du within the product   y and dx read and written   172032 + 106496
 * and 2 T (K + N) R flops each way, 0.9 % of the base's, either way. */
#ifndef NIB_CUDA_LINEAR_JOINED_H
#define NIB_CUDA_LINEAR_JOINED_H

#include "cuda/c_headers.h"

typedef struct {
    int64_t N, K, ranks, room; /* ranks rounded up; room = ranks and the bias's columns */
    nib_matrix rows;           /* [W | scale B | bias]: [N, K + room] */
    nib_matrix columns;        /* [W; A]: [N + ranks, K] */
    nib_matrix beside;         /* [scale B | bias]: [N, room] */
    nib_matrix a, b;           /* A: [ranks, K]; scale B: [N, ranks] */
} nib_cuda_joined;

/* A bf16 matrix with 16-byte aligned rows in ops->scratch. */
nib_status nib_cuda_joined_take(nib_ops *ops, int64_t rows, int64_t columns, nib_matrix *matrix);

/* S in ops->scratch, or views of the weight itself if nothing stands beside it. */
nib_status nib_cuda_joined_weight(nib_ops *ops, const nib_linear *linear, nib_cuda_joined *joined);

/* What stands beside W alone, in ops->scratch: rows and columns are empty. */
nib_status nib_cuda_joined_adapters(nib_ops *ops, const nib_linear *linear, nib_cuda_joined *joined);

/* [from | room for `room` columns]: `from` itself if it is that wide, else a copy in ops->scratch. from.columns >=
 * width. */
nib_status nib_cuda_joined_operand(nib_ops *ops, nib_matrix from, int64_t width, int64_t room, nib_matrix *operand);

/* What a forward pass still needs once u stands beside x: the ones for the bias there, and u [T, sum of ranks] without
 * the rounding, for the backward pass. */
nib_status nib_cuda_joined_finish(nib_ops *ops, const nib_linear *linear, nib_matrix beside, nib_matrix u);
/* The way back: padded [T, ranks rounded up] of u, zeros between; u itself if nothing has to be rounded up. */
nib_status nib_cuda_joined_spread(nib_ops *ops, const nib_linear *linear, nib_matrix u, nib_matrix *padded);

#endif
