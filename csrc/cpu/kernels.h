/* Inner kernels, compiled once for each instruction set from the sources in csrc/cpu/simd/. Private to csrc/cpu. */
#ifndef NIB_CPU_KERNELS_H
#define NIB_CPU_KERNELS_H

#include "cpu/attention_job.h"

typedef struct {
    const char *name; /* "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16" */
    /* One query tile of one head. workspace: NIB_ATTENTION_FORWARD_FLOATS. */
    void (*attention_forward)(const nib_attention_job *job, int64_t tile, int64_t head, float *workspace);
    /* One segment of one query head. workspace: NIB_ATTENTION_BACKWARD_FLOATS, and NIB_ATTENTION_QUERY_FLOATS a tile.
     */
    void (*attention_backward)(const nib_attention_job *job, int64_t segment, int64_t head, float *workspace);
    /* The 64 weights of one NF4 block, in order, as bf16 or as fp32 that holds the bf16-rounded value. */
    void (*nf4_decode)(const uint8_t *codes, float absmax, nib_dtype dtype, void *out);
    /* One output feature of M <= NIB_CPU_MATVEC_ROWS rows: y[m] = sum over k of w[k] x[m][k], w being `blocks` blocks
     * of `weight` from first_block on, decoded into registers. x [M, 64 * blocks] has every 32 values as 16
     * even-indexed, then 16 odd-indexed ones, since a byte's high nibble comes first. */
    void (*nf4_dot)(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int64_t M, const float *x, float *y);
    /* The same of a row of K weights in fp32 or bf16; x [M, K] in order. */
    void (*dense_dot)(const void *weight, nib_dtype dtype, int64_t K, int64_t M, const float *x, float *y);
} nib_cpu_kernels;

/* The levels, each with all that those before it have. */
typedef enum {
    NIB_CPU_PORTABLE,
    NIB_CPU_AVX2,
    NIB_CPU_AVX512,
    NIB_CPU_AVX512_BF16,
    NIB_CPU_AMX_BF16,
    NIB_CPU_LEVELS
} nib_cpu_level;

/* The kernels of a level; NULL if this CPU does not run them. */
const nib_cpu_kernels *nib_cpu_kernels_at(nib_cpu_level level);

#endif
