/* NIB_SIMD(name): the name of a kernel in the instruction set of this compilation (NIB_SIMD_LEVEL, CMakeLists.txt). */
#ifndef NIB_SIMD_LEVEL_H
#define NIB_SIMD_LEVEL_H

#include "cpu/attention_kernels.h"

#define NIB_SIMD_JOIN(name, level)   name##_##level
#define NIB_SIMD_EXPAND(name, level) NIB_SIMD_JOIN(name, level)
#define NIB_SIMD(name)               NIB_SIMD_EXPAND(name, NIB_SIMD_LEVEL)

/* Contracts: nib_attention_kernels. */
void NIB_SIMD(nib_attention_forward_tile)(const nib_attention_job *job, int64_t tile, int64_t head, float *workspace);
void NIB_SIMD(nib_attention_backward_segment)(const nib_attention_job *job, int64_t segment, int64_t head,
                                              float *workspace);

#endif
