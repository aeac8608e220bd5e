/* What is written in between is kept small by taking some tokens at a time. */
#ifndef NIB_CUDA_TOKEN_CHUNKS_CUH
#define NIB_CUDA_TOKEN_CHUNKS_CUH

#include "cuda/c_headers.h"

/* chunk(first, rows) for all tokens, `most` at a time; each finds the scratch as the first did. */
template <class Chunk> nib_status for_each_chunk(nib_ops *ops, int64_t T, int64_t most, Chunk chunk)
{
    const size_t mark = ops->scratch->used;
    nib_status status = NIB_OK;
    for (int64_t first = 0; first < T && status == NIB_OK; first += most) {
        status = chunk(first, T - first < most ? T - first : most);
        nib_arena_reset(ops->scratch, mark);
    }
    return status;
}

#endif
