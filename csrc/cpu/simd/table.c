/* The kernels of this instruction set as one value. */
#include "cpu/simd/level.h"

#define NIB_TEXT(x)        #x
#define NIB_EXPAND_TEXT(x) NIB_TEXT(x)

extern const nib_cpu_kernels NIB_SIMD(nib_cpu_kernels);
const nib_cpu_kernels NIB_SIMD(nib_cpu_kernels) = {.name = NIB_EXPAND_TEXT(NIB_SIMD_LEVEL),
                                                   .attention_forward = NIB_SIMD(nib_attention_forward_tile),
                                                   .attention_backward = NIB_SIMD(nib_attention_backward_segment),
                                                   .nf4_decode = NIB_SIMD(nib_nf4_decode),
                                                   .nf4_dot = NIB_SIMD(nib_nf4_dot),
                                                   .dense_dot = NIB_SIMD(nib_dense_dot)};
