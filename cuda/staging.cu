#include "cuda/staging.h"
#include "cuda/status.cuh"

#include <string.h>

nib_status nib_cuda_staging_create(cudaStream_t stream, nib_cuda_staging *staging)
{
    *staging = {};
    staging->stream = stream;
    NIB_CHECK_CUDA(cudaMallocHost((void **)&staging->memory, NIB_CUDA_STAGING_BYTES));
    for (nib_cuda_staging_piece &p : staging->piece)
        NIB_CHECK_CUDA(cudaEventCreateWithFlags(&p.copied, cudaEventDisableTiming));
    return NIB_OK;
}

void nib_cuda_staging_free(nib_cuda_staging *staging)
{
    for (nib_cuda_staging_piece &p : staging->piece)
        if (p.copied != NULL) cudaEventDestroy(p.copied);
    if (staging->memory != NULL) cudaFreeHost(staging->memory);
    *staging = {};
}

static nib_cuda_staging_piece *piece_of(nib_cuda_staging *s, int i)
{
    return &s->piece[(s->first + i) % NIB_CUDA_STAGING_PIECES];
}

/* Waits for the oldest piece, and hands on what was fetched into it. */
static nib_status retire(nib_cuda_staging *s)
{
    nib_cuda_staging_piece *p = piece_of(s, 0);
    NIB_CHECK_CUDA(cudaEventSynchronize(p->copied));
    if (p->host != NULL) memcpy(p->host, s->memory + p->begin, p->bytes);
    s->first = (s->first + 1) % NIB_CUDA_STAGING_PIECES;
    s->count--;
    return NIB_OK;
}

static bool is_free(nib_cuda_staging *s, size_t begin, size_t bytes)
{
    for (int i = 0; i < s->count; i++) {
        const nib_cuda_staging_piece *p = piece_of(s, i);
        if (begin < p->begin + p->bytes && p->begin < begin + bytes) return false;
    }
    return s->count < NIB_CUDA_STAGING_PIECES;
}

/* Room for at most NIB_CUDA_STAGING_PIECE bytes. */
static nib_status take(nib_cuda_staging *s, size_t bytes, nib_cuda_staging_piece **piece)
{
    const size_t begin = s->next + bytes <= NIB_CUDA_STAGING_BYTES ? s->next : 0;
    while (!is_free(s, begin, bytes)) NIB_TRY(retire(s));
    *piece = piece_of(s, s->count++);
    s->taken++;
    (*piece)->begin = begin;
    (*piece)->bytes = bytes;
    (*piece)->host = NULL;
    s->next = begin + (bytes + 63) / 64 * 64;
    return NIB_OK;
}

static size_t piece_bytes(size_t left) { return left < NIB_CUDA_STAGING_PIECE ? left : NIB_CUDA_STAGING_PIECE; }

nib_status nib_cuda_staging_upload(nib_cuda_staging *s, void *to, const void *host, size_t bytes)
{
    for (size_t at = 0, size; at < bytes; at += size) {
        nib_cuda_staging_piece *p;
        size = piece_bytes(bytes - at);
        NIB_TRY(take(s, size, &p));
        memcpy(s->memory + p->begin, (const char *)host + at, size);
        NIB_CHECK_CUDA(cudaMemcpyAsync((char *)to + at, s->memory + p->begin, size, cudaMemcpyHostToDevice, s->stream));
        NIB_CHECK_CUDA(cudaEventRecord(p->copied, s->stream));
    }
    return NIB_OK;
}

nib_status nib_cuda_staging_fetch(nib_cuda_staging *s, void *host, const void *from, size_t bytes)
{
    for (size_t at = 0, size; at < bytes; at += size) {
        nib_cuda_staging_piece *p;
        size = piece_bytes(bytes - at);
        NIB_TRY(take(s, size, &p));
        NIB_CHECK_CUDA(
            cudaMemcpyAsync(s->memory + p->begin, (const char *)from + at, size, cudaMemcpyDeviceToHost, s->stream));
        NIB_CHECK_CUDA(cudaEventRecord(p->copied, s->stream));
        p->host = (char *)host + at;
    }
    return NIB_OK;
}

nib_status nib_cuda_staging_finish(nib_cuda_staging *s, uint64_t mark)
{
    const int behind = (int)(s->taken - mark);
    if (s->count > behind) NIB_CHECK_CUDA(cudaEventSynchronize(piece_of(s, s->count - behind - 1)->copied));
    while (s->count > behind) NIB_TRY(retire(s));
    return NIB_OK;
}
