/* NIB_SIMD(name): the name of a kernel in the instruction set of this compilation (NIB_SIMD_LEVEL, CMakeLists.txt). */
#ifndef NIB_SIMD_LEVEL_H
#define NIB_SIMD_LEVEL_H

#include "cpu/kernels.h"

#define NIB_SIMD_JOIN(name, level)   name##_##level
#define NIB_SIMD_EXPAND(name, level) NIB_SIMD_JOIN(name, level)
#define NIB_SIMD(name)               NIB_SIMD_EXPAND(name, NIB_SIMD_LEVEL)

/* Contracts: cpu/kernels.h. */
void NIB_SIMD(nib_attention_forward_tile)(const nib_attention_job *job, int64_t tile, int64_t head, float *workspace);
void NIB_SIMD(nib_attention_backward_segment)(const nib_attention_job *job, int64_t segment, int64_t head,
                                              float *workspace);
void NIB_SIMD(nib_nf4_decode)(const uint8_t *codes, float absmax, nib_dtype dtype, void *out);
void NIB_SIMD(nib_nf4_dot)(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int64_t M, const float *x,
                           float *y);
void NIB_SIMD(nib_dense_dot)(const void *weight, nib_dtype dtype, int64_t K, int64_t M, const float *x, float *y);

#endif
