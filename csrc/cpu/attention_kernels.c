#include "cpu/attention_kernels.h"

#include <stddef.h>

extern const nib_attention_kernels nib_attention_kernels_portable;
#if defined __x86_64__
extern const nib_attention_kernels nib_attention_kernels_avx2, nib_attention_kernels_avx512,
    nib_attention_kernels_avx512_bf16;
#endif

const nib_attention_kernels *nib_attention_kernels_at(int i)
{
    const nib_attention_kernels *found[5] = {&nib_attention_kernels_portable};
    int count = 1;
#if defined __x86_64__
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx2) found[count++] = &nib_attention_kernels_avx2;
    if (avx512) found[count++] = &nib_attention_kernels_avx512;
    if (avx512 && __builtin_cpu_supports("avx512bf16")) found[count++] = &nib_attention_kernels_avx512_bf16;
#endif
    return i >= 0 && i < count ? found[i] : NULL;
}
