/* to = ((x + left[0]) + left[1]) + ... + left[count - 1],  then x = 0 unless to is x.
 *
 * A slot that completes nodes of several levels of the tree completes them all here, in registers: each array is read
 * once and the sum written once, with the zeros for the next slot 4 (count + 3) bytes an element. Bandwidth-bound: a
 * thread takes 4 neighbours, 16-byte accesses, a grid strides over all. No shared memory; the addresses are the
 * kernel's argument. */
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/tree_sum.h"
#include "cuda/vector.cuh"

constexpr int THREADS = 256;

typedef struct {
    const float *left[NIB_TREE_SUM_LEVELS];
} addends;

template <int N>
__global__ void __launch_bounds__(THREADS) tree_sum_kernel(float *x, int count, addends from, int64_t n, float *to)
{
    for_each_vector<N>(n, [&](auto width, int64_t at) {
        float sum[width.N], next[width.N];
        load(x + at, sum);
#pragma unroll 1
        for (int k = 0; k < count; k++) {
            load(from.left[k] + at, next);
#pragma unroll
            for (int i = 0; i < width.N; i++) sum[i] += next[i];
        }
        store(to + at, sum);
        if (to == x) return;
#pragma unroll
        for (int i = 0; i < width.N; i++) next[i] = 0.0f;
        store(x + at, next);
    });
}

nib_status nib_cuda_tree_sum(nib_ops *ops, float *x, int count, const float *const *left, int64_t n, float *to)
{
    if (count < 0 || count > NIB_TREE_SUM_LEVELS)
        return NIB_FAIL(NIB_ERROR_SHAPE, "tree_sum: %d arrays, at most %d", count, NIB_TREE_SUM_LEVELS);
    if (n == 0) return NIB_OK;
    addends from = {};
    bool vectors = whole_vectors(x) && whole_vectors(to);
    for (int k = 0; k < count; k++) {
        from.left[k] = left[k];
        vectors = vectors && whole_vectors(left[k]);
    }
    return nib_cuda_launch(vectors ? tree_sum_kernel<4> : tree_sum_kernel<1>, vector_grid(n, vectors ? 4 : 1, THREADS),
                           dim3(THREADS), 0, nib_cuda_stream(ops), x, count, from, n, to);
}
