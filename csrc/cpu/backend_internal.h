/* What the CPU ops share; private to csrc/cpu. */
#ifndef NIB_CPU_BACKEND_INTERNAL_H
#define NIB_CPU_BACKEND_INTERNAL_H

#include "cpu/kernels.h"
#include "cpu/matmul.h"
#include "model/ops.h"

typedef struct {
    nib_cpu_matmul_cache *matmul;
    nib_arena scratch;
    const nib_cpu_kernels *kernels; /* of the best level that this CPU has */
    bool bf16_matmul;               /* oneDNN multiplies bf16 with this CPU's own instructions */
} nib_cpu_context;

static inline nib_cpu_context *nib_cpu_context_of(nib_ops *ops) { return ops->context; }

#ifdef _OPENMP
#include <omp.h>
static inline int nib_cpu_threads(void) { return omp_get_max_threads(); }
static inline int nib_cpu_thread(void) { return omp_get_thread_num(); }
#else
static inline int nib_cpu_threads(void) { return 1; }
static inline int nib_cpu_thread(void) { return 0; }
#endif

/* Functions marked so are compiled for each level and chosen when the program is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&               \
    !defined(__SANITIZE_THREAD__)
#define NIB_CPU_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define NIB_CPU_CLONES
#endif

#endif
