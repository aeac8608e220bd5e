/* Dense matrix products, by oneDNN but where there are few rows (cpu/matvec.h).
 * The result is cut into tiles by its shape alone, and each is computed by one thread with a primitive made for one
 * thread: oneDNN's own threads may split sums over k between them, and bits would follow their number.
 */
#ifndef NIB_CPU_MATMUL_H
#define NIB_CPU_MATMUL_H

#include "model/ops.h"

#include <stdbool.h>

/* c [M, N] = op(a) op(b) (+ c, if accumulate); op(a) [M, K], op(b) [K, N], where op transposes if asked to.
 * a and b are of one type, fp32 or bf16; c is fp32 or that type; sums are fp32, rounded once on the way into c. On a
 * CPU without bf16 instructions bf16 operands are widened to fp32 first, and there a, b and c may each be of either
 * type: an operand of several products is widened once, by its owner (nib_cpu_operand_type). Fails with NIB_ERROR_SHAPE
 * for other types or mismatched sizes. */
nib_status nib_cpu_matmul(nib_ops *ops, nib_matrix a, bool transpose_a, nib_matrix b, bool transpose_b, bool accumulate,
                          nib_matrix c);

/* c [M, N] = a b^T + bias, rounded once; bias fp32 [N], or NULL. */
nib_status nib_cpu_matmul_bias(nib_ops *ops, nib_matrix a, nib_matrix b, const float *bias, nib_matrix c);

/* The type in which an operand is best prepared for products with activations of this type. */
nib_dtype nib_cpu_operand_type(const nib_ops *ops, nib_dtype activation);

typedef struct nib_cpu_matmul_cache nib_cpu_matmul_cache; /* primitives by shape */
nib_status nib_cpu_matmul_cache_create(nib_cpu_matmul_cache **cache);
void nib_cpu_matmul_cache_free(nib_cpu_matmul_cache *cache);

#endif
