/* Small fp32 matrix products on tiles that lie in the L1 or L2 cache: attention's building block. */
#ifndef NIB_CPU_TILE_MATMUL_H
#define NIB_CPU_TILE_MATMUL_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const float *a; /* element (m, k) at a[m * a_row + k * a_column], so a may be a transpose */
    int64_t a_row, a_column;
    const float *b; /* [K, N], rows b_stride apart */
    int64_t b_stride;
    float *c; /* [M, N], rows c_stride apart */
    int64_t c_stride;
    int64_t M, N, K; /* N a multiple of 16 */
    bool accumulate;
} nib_tile_product;

/* c = a b (+ c). Sums run over k in ascending order. One thread. */
void nib_tile_matmul(const nib_tile_product *product);

#endif
