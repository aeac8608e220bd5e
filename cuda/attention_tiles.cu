/* The extremes of `end` and `position` over tiles: once a call of forward or backward, 16 bytes a tile. */
#include "cuda/attention_tiles.cuh"
#include "cuda/backend.h"
#include "cuda/launch.cuh"

#define WARPS 4

/* A warp has a tile. */
__global__ void __launch_bounds__(32 * WARPS)
    attention_describe_tiles_kernel(nib_tree tree, int tokens, int tiles, nib_attention_extremes *extremes)
{
    int tile = blockIdx.x * WARPS + threadIdx.x / 32, first = tile * tokens;
    if (tile >= tiles) return;
    int last = min(first + tokens, (int)tree.T);
    int end_least = INT32_MAX, end_most = INT32_MIN, position_least = INT32_MAX, position_most = INT32_MIN;
    for (int t = first + threadIdx.x % 32; t < last; t += 32) {
        int end = tree.end[t], position = tree.position[t];
        end_least = min(end_least, end);
        end_most = max(end_most, end);
        position_least = min(position_least, position);
        position_most = max(position_most, position);
    }
    end_least = __reduce_min_sync(0xffffffffu, end_least);
    end_most = __reduce_max_sync(0xffffffffu, end_most);
    position_least = __reduce_min_sync(0xffffffffu, position_least);
    position_most = __reduce_max_sync(0xffffffffu, position_most);
    if (threadIdx.x % 32 == 0) extremes[tile] = {end_least, end_most, position_least, position_most};
}

nib_status nib_attention_describe_tiles(nib_ops *ops, nib_tree tree, int tokens, nib_attention_extremes **extremes)
{
    int tiles = (int)((tree.T + tokens - 1) / tokens);
    NIB_TRY(nib_arena_take(ops->scratch, tiles, sizeof **extremes, extremes));
    return nib_cuda_launch(attention_describe_tiles_kernel, dim3((unsigned)(tiles + WARPS - 1) / WARPS),
                           dim3(32 * WARPS), 0, nib_cuda_stream(ops), tree, tokens, tiles, *extremes);
}

nib_status nib_attention_check_alignment(const char *op, const char *name, nib_matrix matrix)
{
    if ((uintptr_t)matrix.data % 16 == 0 && matrix.stride % 8 == 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_SHAPE, "%s: rows of %s [%lld, %lld], %lld apart, must start at multiples of 16 bytes", op,
                    name, (long long)matrix.rows, (long long)matrix.columns, (long long)matrix.stride);
}
