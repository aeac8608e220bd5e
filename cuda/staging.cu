#include "cuda/staging.h"
#include "cuda/status.cuh"

#include <string.h>

nib_status nib_cuda_staging_create(cudaStream_t stream, nib_cuda_staging *staging)
{
    *staging = {};
    staging->stream = stream;
    for (nib_cuda_staging_buffer &b : staging->buffer) {
        NIB_CHECK_CUDA(cudaMallocHost((void **)&b.memory, NIB_CUDA_STAGING_BYTES));
        NIB_CHECK_CUDA(cudaEventCreateWithFlags(&b.copied, cudaEventDisableTiming));
    }
    return NIB_OK;
}

void nib_cuda_staging_free(nib_cuda_staging *staging)
{
    for (nib_cuda_staging_buffer &b : staging->buffer) {
        if (b.copied != NULL) cudaEventDestroy(b.copied);
        if (b.memory != NULL) cudaFreeHost(b.memory);
    }
    *staging = {};
}

/* Waits until nothing reads or writes the buffer, and hands on what was fetched into it. */
static nib_status empty(nib_cuda_staging_buffer *b)
{
    NIB_CHECK_CUDA(cudaEventSynchronize(b->copied));
    if (b->host != NULL) memcpy(b->host, b->memory, b->bytes);
    b->host = NULL;
    return NIB_OK;
}

static nib_status take_buffer(nib_cuda_staging *staging, nib_cuda_staging_buffer **b)
{
    *b = &staging->buffer[staging->next];
    staging->next = (staging->next + 1) % NIB_CUDA_STAGING_BUFFERS;
    return empty(*b);
}

nib_status nib_cuda_staging_upload(nib_cuda_staging *staging, void *to, const void *host, size_t bytes)
{
    for (size_t at = 0, piece; at < bytes; at += piece) {
        nib_cuda_staging_buffer *b;
        piece = bytes - at < NIB_CUDA_STAGING_BYTES ? bytes - at : NIB_CUDA_STAGING_BYTES;
        NIB_TRY(take_buffer(staging, &b));
        memcpy(b->memory, (const char *)host + at, piece);
        NIB_CHECK_CUDA(cudaMemcpyAsync((char *)to + at, b->memory, piece, cudaMemcpyHostToDevice, staging->stream));
        NIB_CHECK_CUDA(cudaEventRecord(b->copied, staging->stream));
    }
    return NIB_OK;
}

nib_status nib_cuda_staging_fetch(nib_cuda_staging *staging, void *host, const void *from, size_t bytes)
{
    for (size_t at = 0, piece; at < bytes; at += piece) {
        nib_cuda_staging_buffer *b;
        piece = bytes - at < NIB_CUDA_STAGING_BYTES ? bytes - at : NIB_CUDA_STAGING_BYTES;
        NIB_TRY(take_buffer(staging, &b));
        NIB_CHECK_CUDA(
            cudaMemcpyAsync(b->memory, (const char *)from + at, piece, cudaMemcpyDeviceToHost, staging->stream));
        NIB_CHECK_CUDA(cudaEventRecord(b->copied, staging->stream));
        b->host = (char *)host + at;
        b->bytes = piece;
    }
    return NIB_OK;
}

nib_status nib_cuda_staging_finish(nib_cuda_staging *staging)
{
    for (nib_cuda_staging_buffer &b : staging->buffer)
        if (b.host != NULL) NIB_TRY(empty(&b));
    return NIB_OK;
}
