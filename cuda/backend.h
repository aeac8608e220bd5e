/* The CUDA backend: ops.h filled in. One op a pair of files, cuda/NAME.{h,cu}; a header declares its ops with the
 * signatures of the table.
 *
 * Everything runs in one stream, in the order of the calls. Tensors lie in arenas of one cudaMalloc each; temporaries
 * in ops->scratch, which grows to what a run needs and then stays. Host memory is copied through pinned buffers, so
 * that an upload never waits for the device, and a download only for what it reads.
 */
#ifndef NIB_CUDA_BACKEND_H
#define NIB_CUDA_BACKEND_H

#include "cuda/matmul.h"

#include <cuda_runtime.h>

/* What launchers ask about the device. */
typedef struct {
    int architecture; /* 10 * major + minor: 80, 90, ... */
    int processors;   /* multiprocessors */
    size_t shared;    /* bytes of shared memory that a block may have */
} nib_cuda_device;

/* The backend on device `index` of this process. NIB_ERROR_DEVICE says why not: none, in use by another process, an
 * architecture older than sm_80, a driver too old. *ops is freed by ops->close. */
nib_status nib_cuda_backend_create(int index, nib_ops **ops);
/* One line about the device: name, architecture, memory, driver. */
nib_status nib_cuda_backend_describe(int index, char *text, size_t bytes);
/* One line about what it was linked with: the CUDA runtime's and cublasLt's versions. */
void nib_cuda_backend_libraries(char *text, size_t bytes);

cudaStream_t nib_cuda_stream(nib_ops *ops);
const nib_cuda_device *nib_cuda_device_of(nib_ops *ops);
nib_cuda_matmul_cache *nib_cuda_matmul_cache_of(nib_ops *ops);

#endif
