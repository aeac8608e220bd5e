#include "cpu/tile_matmul.h"
#include "base/bf16.h"
#include "cpu/vector.h"

/* ROWS x (16 * VECTORS) of c in registers. Both are constants wherever this is inlined. */
NIB_INLINE void block(const nib_tile_product *p, int64_t m, int64_t n, const int rows, const int vectors)
{
    nib_v16 sum[6][4];
    const float *a = p->a + m * p->a_row, *b = p->b + n;
    float *c = p->c + m * p->c_stride + n;
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sum[i][v] = p->accumulate ? *(nib_v16 *)(c + i * p->c_stride + 16 * v) : nib_v16_set(0.0f);
    for (int64_t k = 0; k < p->K; k++, a += p->a_column, b += p->b_stride) {
        nib_v16 right[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) right[v] = *(const nib_v16 *)(b + 16 * v);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            nib_v16 left = nib_v16_set(a[i * p->a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[i][v] += left * right[v];
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) *(nib_v16 *)(c + i * p->c_stride + 16 * v) = sum[i][v];
}

NIB_INLINE void rows_of(const nib_tile_product *p, int64_t n, const int vectors)
{
    int64_t m = 0;
    for (; m + 6 <= p->M; m += 6) block(p, m, n, 6, vectors);
    for (; m < p->M; m++) block(p, m, n, 1, vectors);
}

/* The widest columns first: four vectors fill AVX-512's 32 registers, one fills AVX2's 16. */
NIB_INLINE void product_of(const nib_tile_product *p, const int widest)
{
    int64_t n = 0;
    if (widest >= 4)
        for (; n + 64 <= p->N; n += 64) rows_of(p, n, 4);
    if (widest >= 2)
        for (; n + 32 <= p->N; n += 32) rows_of(p, n, 2);
    for (; n < p->N; n += 16) rows_of(p, n, 1);
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))) static void product_avx512(const nib_tile_product *p)
{
    product_of(p, 4);
}

__attribute__((target("avx2,fma"))) static void product_avx2(const nib_tile_product *p) { product_of(p, 1); }
#endif

static void product_portable(const nib_tile_product *p) { product_of(p, 1); }

void nib_tile_matmul(const nib_tile_product *product)
{
#if defined(__x86_64__)
    static _Atomic int level = -1;
    if (level < 0)
        level = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") ? 2
                : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")       ? 1
                                                                                        : 0;
    if (level == 2) {
        product_avx512(product);
        return;
    }
    if (level == 1) {
        product_avx2(product);
        return;
    }
#endif
    product_portable(product);
}
