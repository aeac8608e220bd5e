/* What RMSNorm and LayerNorm share: a row belongs to a warp if it is narrow, else to a block, which keeps it in shared
 * memory from the one time that it crosses the memory bus. */
#ifndef NIB_CUDA_ROW_NORM_CUH
#define NIB_CUDA_ROW_NORM_CUH

#include "cuda/c_headers.h"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

constexpr int WARP_COLUMNS = 1024; /* at most, of a row that one warp takes */
constexpr int WARP_ROWS = 4, BLOCK_THREADS = 256;
constexpr int SLICE_ROWS = 128;         /* of a weight's gradient */
constexpr int ROW_NORM_COLUMNS = 16384; /* at most: a row is kept in shared memory */

/* Sum over the threads of a row. */
template <bool WARP> __device__ __forceinline__ float row_sum(float x, float *shared)
{
    if constexpr (WARP)
        return warp_sum(x);
    else
        return block_sum(x, shared);
}

/* Host side. */

/* How rows are given to warps or blocks. */
typedef struct {
    dim3 grid, block;
    size_t shared; /* bytes, for `operands` rows of bf16 each and the sums of `sums` reductions */
} row_launch;

/* A block's sums, behind so many values that it keeps: on a float's boundary, where their number is odd too. */
__device__ __forceinline__ float *sums_behind(int values) { return dynamic_shared<float>() + (values + 1) / 2; }

inline row_launch launch_of(int64_t rows, int64_t groups, int64_t columns, int operands, int sums)
{
    const bool warp = columns <= WARP_COLUMNS;
    const unsigned threads = warp ? 32 : BLOCK_THREADS, block_rows = warp ? WARP_ROWS : 1;
    return {dim3((unsigned)divide_up(rows, block_rows), (unsigned)groups), dim3(threads, block_rows),
            (size_t)(block_rows * operands * columns + 1) / 2 * sizeof(float) + sums * threads / 32 * sizeof(float)};
}

#endif
