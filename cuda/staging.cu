#include "cuda/staging.h"
#include "cuda/status.cuh"

#include <string.h>

nib_status nib_cuda_staging_create(cudaStream_t stream, nib_cuda_staging *staging)
{
    *staging = {};
    staging->stream = stream;
    for (int i = 0; i < NIB_CUDA_STAGING_BUFFERS; i++) {
        NIB_CHECK_CUDA(cudaHostAlloc((void **)&staging->buffer[i], NIB_CUDA_STAGING_BYTES, cudaHostAllocDefault));
        NIB_CHECK_CUDA(cudaEventCreateWithFlags(&staging->copied[i], cudaEventDisableTiming));
    }
    return NIB_OK;
}

void nib_cuda_staging_free(nib_cuda_staging *staging)
{
    for (int i = 0; i < NIB_CUDA_STAGING_BUFFERS; i++) {
        if (staging->copied[i] != NULL) cudaEventDestroy(staging->copied[i]);
        if (staging->buffer[i] != NULL) cudaFreeHost(staging->buffer[i]);
    }
    *staging = {};
}

/* The next buffer of the ring, once nothing reads or writes it any more. */
static nib_status take_buffer(nib_cuda_staging *staging, int *index)
{
    *index = staging->next;
    staging->next = (staging->next + 1) % NIB_CUDA_STAGING_BUFFERS;
    NIB_CHECK_CUDA(cudaEventSynchronize(staging->copied[*index]));
    return NIB_OK;
}

nib_status nib_cuda_staging_upload(nib_cuda_staging *staging, void *to, const void *host, size_t bytes)
{
    for (size_t at = 0, piece; at < bytes; at += piece) {
        int i;
        piece = bytes - at < NIB_CUDA_STAGING_BYTES ? bytes - at : NIB_CUDA_STAGING_BYTES;
        NIB_TRY(take_buffer(staging, &i));
        memcpy(staging->buffer[i], (const char *)host + at, piece);
        NIB_CHECK_CUDA(
            cudaMemcpyAsync((char *)to + at, staging->buffer[i], piece, cudaMemcpyHostToDevice, staging->stream));
        NIB_CHECK_CUDA(cudaEventRecord(staging->copied[i], staging->stream));
    }
    return NIB_OK;
}

nib_status nib_cuda_staging_download(nib_cuda_staging *staging, void *host, const void *from, size_t bytes)
{
    for (size_t at = 0, piece; at < bytes; at += piece) {
        int i;
        piece = bytes - at < NIB_CUDA_STAGING_BYTES ? bytes - at : NIB_CUDA_STAGING_BYTES;
        NIB_TRY(take_buffer(staging, &i));
        NIB_CHECK_CUDA(cudaMemcpyAsync(staging->buffer[i], (const char *)from + at, piece, cudaMemcpyDeviceToHost,
                                       staging->stream));
        NIB_CHECK_CUDA(cudaEventRecord(staging->copied[i], staging->stream));
        NIB_CHECK_CUDA(cudaEventSynchronize(staging->copied[i]));
        memcpy((char *)host + at, staging->buffer[i], piece);
    }
    return NIB_OK;
}
