/* Copies between pageable host memory and the device by way of pinned memory.
 *
 * A copy from pageable memory would make the host wait for everything that the stream holds. Here the host copies a
 * piece into a ring of pinned bytes and goes on; it waits only where the ring has come round to a piece that is still
 * being copied. So a step waits for none as long as its micro-batches and losses are less than the ring: at 12 bytes a
 * token and 16 a target some hundred thousand tokens; beyond that the host is so far ahead that the device has enough
 * to do.
 */
#ifndef NIB_CUDA_STAGING_H
#define NIB_CUDA_STAGING_H

#include "cuda/c_headers.h"

#include <cuda_runtime.h>

#define NIB_CUDA_STAGING_BYTES  ((size_t)8 << 20) /* of the ring */
#define NIB_CUDA_STAGING_PIECE  ((size_t)1 << 20) /* of a piece at most */
#define NIB_CUDA_STAGING_PIECES 256               /* on their way at most */

typedef struct {
    size_t begin, bytes; /* in the ring */
    cudaEvent_t copied;  /* recorded behind its copy */
    void *host;          /* where what is fetched has still to go, or NULL */
} nib_cuda_staging_piece;

typedef struct {
    cudaStream_t stream;
    char *memory;                                          /* pinned [NIB_CUDA_STAGING_BYTES] */
    size_t next;                                           /* where the next piece begins, if there is room behind it */
    nib_cuda_staging_piece piece[NIB_CUDA_STAGING_PIECES]; /* a ring, too: `count` from `first` on are on their way */
    int first, count;
    uint64_t taken; /* pieces so far */
} nib_cuda_staging;

/* *staging is to be freed whatever the outcome. */
nib_status nib_cuda_staging_create(cudaStream_t stream, nib_cuda_staging *staging);
void nib_cuda_staging_free(nib_cuda_staging *staging);

/* host may change on return. */
nib_status nib_cuda_staging_upload(nib_cuda_staging *staging, void *to, const void *host, size_t bytes);
/* host is filled when a finish behind it has returned. */
nib_status nib_cuda_staging_fetch(nib_cuda_staging *staging, void *host, const void *from, size_t bytes);
/* Waits for what is on its way, of the pieces that were taken before `mark`, a value of `taken`. */
nib_status nib_cuda_staging_finish(nib_cuda_staging *staging, uint64_t mark);

#endif
