/* Copies between pageable host memory and the device by way of pinned buffers.
 *
 * A copy from pageable memory would make the host wait for everything that the stream holds. Here the host copies a
 * piece into one of a ring of pinned buffers and goes on; it waits only for a buffer that is still being read.
 */
#ifndef NIB_CUDA_STAGING_H
#define NIB_CUDA_STAGING_H

#include "cuda/c_headers.h"

#include <cuda_runtime.h>

#define NIB_CUDA_STAGING_BUFFERS 8
#define NIB_CUDA_STAGING_BYTES   ((size_t)1 << 20) /* of a buffer */

typedef struct {
    char *memory;       /* pinned [NIB_CUDA_STAGING_BYTES] */
    cudaEvent_t copied; /* the last copy out of or into it */
    void *host;         /* where what was fetched has still to go, or NULL */
    size_t bytes;
} nib_cuda_staging_buffer;

typedef struct {
    cudaStream_t stream;
    nib_cuda_staging_buffer buffer[NIB_CUDA_STAGING_BUFFERS];
    int next;
} nib_cuda_staging;

/* *staging is to be freed whatever the outcome. */
nib_status nib_cuda_staging_create(cudaStream_t stream, nib_cuda_staging *staging);
void nib_cuda_staging_free(nib_cuda_staging *staging);

/* host may change on return. */
nib_status nib_cuda_staging_upload(nib_cuda_staging *staging, void *to, const void *host, size_t bytes);
/* host is filled when finish has returned. */
nib_status nib_cuda_staging_fetch(nib_cuda_staging *staging, void *host, const void *from, size_t bytes);
/* Waits for what is being fetched. */
nib_status nib_cuda_staging_finish(nib_cuda_staging *staging);

#endif
