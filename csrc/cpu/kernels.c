#include "cpu/kernels.h"

#include <stddef.h>
#if defined __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const nib_cpu_kernels nib_cpu_kernels_portable;
#if defined __x86_64__
extern const nib_cpu_kernels nib_cpu_kernels_avx2, nib_cpu_kernels_avx512, nib_cpu_kernels_avx512_bf16,
    nib_cpu_kernels_amx_bf16;

/* The kernel must have granted the process the tile registers; __builtin_cpu_supports knows them only in newer GCC.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, CPUID leaf 7 (EDX bits 22 AMX-BF16, 24
 * AMX-TILE) and XCR0 bits 17, 18; Linux Documentation/x86/xstate.rst for arch_prctl. */
static bool has_amx_bf16(void)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILE_DATA = 18 };
    return (low >> 17 & 3) == 3 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILE_DATA) == 0;
}
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
    bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (level == NIB_CPU_AVX512_BF16 && bf16) return &nib_cpu_kernels_avx512_bf16;
    if (level == NIB_CPU_AMX_BF16 && bf16 && has_amx_bf16()) return &nib_cpu_kernels_amx_bf16;
#endif
    return NULL;
}
