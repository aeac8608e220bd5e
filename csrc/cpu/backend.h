/* The CPU backend: ops.h filled in. One op a file, csrc/cpu/NAME.{h,c}; a file's header declares its ops with the
 * signatures of the table. Threads by OpenMP; instruction sets are chosen at run time. */
#ifndef NIB_CPU_BACKEND_H
#define NIB_CPU_BACKEND_H

#include "model/ops.h"

/* scratch_bytes: capacity of ops->scratch. *ops is freed with nib_cpu_backend_free. NIB_ERROR_MEMORY. */
nib_status nib_cpu_backend_create(size_t scratch_bytes, nib_ops **ops);
void nib_cpu_backend_free(nib_ops *ops);

/* Space-separated instruction sets that this CPU has and Nibble uses: "avx2 avx512 avx512-bf16 amx". */
const char *nib_cpu_features(void);

#endif
