/* The attention kernels of this instruction set as one value. */
#include "cpu/simd/level.h"

#define NIB_TEXT(x)        #x
#define NIB_EXPAND_TEXT(x) NIB_TEXT(x)

extern const nib_attention_kernels NIB_SIMD(nib_attention_kernels);
const nib_attention_kernels NIB_SIMD(nib_attention_kernels) = {.name = NIB_EXPAND_TEXT(NIB_SIMD_LEVEL),
                                                               .forward = NIB_SIMD(nib_attention_forward_tile),
                                                               .backward = NIB_SIMD(nib_attention_backward_segment)};
