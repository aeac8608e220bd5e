#include "cpu/kernels.h"

#include <stddef.h>

extern const nib_cpu_kernels nib_cpu_kernels_portable;
#if defined __x86_64__
extern const nib_cpu_kernels nib_cpu_kernels_avx2, nib_cpu_kernels_avx512, nib_cpu_kernels_avx512_bf16;
#endif

const nib_cpu_kernels *nib_cpu_kernels_at(nib_cpu_level level)
{
    if (level == NIB_CPU_PORTABLE) return &nib_cpu_kernels_portable;
#if defined __x86_64__
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (level == NIB_CPU_AVX2 && avx2) return &nib_cpu_kernels_avx2;
    if (level == NIB_CPU_AVX512 && avx512) return &nib_cpu_kernels_avx512;
    if (level == NIB_CPU_AVX512_BF16 && avx512 && __builtin_cpu_supports("avx512bf16"))
        return &nib_cpu_kernels_avx512_bf16;
#endif
    return NULL;
}
