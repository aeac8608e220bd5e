/* norm = sqrt(sum of squares), scale = min(1, max_norm / (norm + 1e-6)).
 *
 * First stage: a block adds the squares of 8192 values in double, each thread those that are 256 apart, then the block
 * by halves. Second stage: one block adds the blocks' sums likewise. The order follows from the lengths alone. Arrays
 * that lie one behind the other are taken as one, as a model's gradients are. Shared memory: a double a thread. */
#include "cuda/backend.h"
#include "cuda/global_norm.h"
#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"

static const int THREADS = 256;
static const int64_t BLOCK_VALUES = 8192;

/* The sum over a block's threads for thread 0, 0 for the others. */
__device__ static double block_total(double own, double *shared)
{
    shared[threadIdx.x] = own;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    return threadIdx.x == 0 ? shared[0] : 0;
}

__global__ void sum_of_squares_kernel(const float *x, int64_t n, double *partial)
{
    int64_t first = (int64_t)blockIdx.x * BLOCK_VALUES, end = first + BLOCK_VALUES < n ? first + BLOCK_VALUES : n;
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += THREADS) sum += (double)x[i] * (double)x[i];
    sum = block_total(sum, dynamic_shared<double>());
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void norm_and_clip_kernel(const double *partial, int64_t n, double max_norm, nib_clip *clip)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += partial[i];
    sum = block_total(sum, dynamic_shared<double>());
    if (threadIdx.x > 0) return;
    double norm = sqrt(sum);
    clip->missed = !isfinite(clip->norm);
    clip->norm = norm;
    clip->scale = (float)(max_norm > 0 ? fmin(1.0, max_norm / (norm + 1e-6)) : 1.0);
}

static int64_t blocks_of(int64_t n) { return (n + BLOCK_VALUES - 1) / BLOCK_VALUES; }

static nib_status sum_arrays(nib_ops *ops, int count, float *const *array, const int64_t *length, double *partial,
                             int64_t *blocks)
{
    *blocks = 0;
    for (int a = 0, next; a < count; a = next) {
        int64_t n = length[a];
        for (next = a + 1; next < count && array[next] == array[a] + n;) n += length[next++];
        if (n == 0) continue;
        NIB_TRY(nib_cuda_launch(sum_of_squares_kernel, dim3((unsigned)blocks_of(n)), dim3(THREADS),
                                THREADS * sizeof(double), nib_cuda_stream(ops), (const float *)array[a], n,
                                partial + *blocks));
        *blocks += blocks_of(n);
    }
    return NIB_OK;
}

nib_status nib_cuda_global_norm(nib_ops *ops, int count, float *const *array, const int64_t *length, double max_norm,
                                nib_clip *clip)
{
    size_t mark = ops->scratch->used;
    int64_t most = 0, blocks;
    double *partial;
    for (int a = 0; a < count; a++) most += blocks_of(length[a]);
    NIB_TRY(nib_arena_take(ops->scratch, most, sizeof *partial, &partial));
    nib_status status = sum_arrays(ops, count, array, length, partial, &blocks);
    if (status == NIB_OK)
        status = nib_cuda_launch(norm_and_clip_kernel, dim3(1), dim3(THREADS), THREADS * sizeof(double),
                                 nib_cuda_stream(ops), (const double *)partial, blocks, max_norm, clip);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
