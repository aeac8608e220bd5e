/* With h the selected rows of the head, for each target t of weight w and label l in row x of the activations:
 *     z = h x,  logsumexp = nll + head[l] x,  dz = scale w (exp(z - logsumexp) - [l is the row]),  drows += dz x^T.
 * The loss has been through all of the vocabulary already: its nll gives the logsumexp back, so that only the selected
 * logits are computed here. At the label itself the difference is expm1(-nll), which keeps what is left of a nearly
 * certain one.
 *
 * Three kernels, all in fp32 on the vector units: the rows are few, and a product of so few columns fills no tile.
 *   dz [n, N]     a block a target: all warps find its logsumexp together, then each warp every 8th selected logit
 *   partial       a block adds one run of targets, in their order, for one selected row and 256 vectors of its columns
 *   drows         adds the runs in their order
 * Runs are as many as fill a card, a number that follows from the shape alone. 256 threads a block, 8 columns each; 32
 * floats of shared memory for the first kernel, none for the others. */
#include "cuda/backend.h"
#include "cuda/head_rows_backward.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int64_t BLOCKS = 2048;      /* fill a card several times */
constexpr int64_t LEAST_TARGETS = 64; /* of a run, but for the last */

struct selected_head {
    nib_matrix x, head;
    nib_targets targets;
    float scale;
    const float *nll;
    int n;
    const int32_t *row;
};

/* This thread's share of a b over `columns` columns, of which `threads` threads take vectors in turn. */
template <int N>
__device__ __forceinline__ float share_of_product(const __nv_bfloat16 *a, const __nv_bfloat16 *b, int columns,
                                                  int thread, int threads)
{
    float sum = 0.0f, u[N], v[N];
    for (int c = thread * N; c < columns; c += threads * N) {
        load(a + c, u);
        load(b + c, v);
#pragma unroll
        for (int i = 0; i < N; i++) sum = fmaf(u[i], v[i], sum);
    }
    return sum;
}

__device__ __forceinline__ const __nv_bfloat16 *row_of(nib_matrix m, int64_t row)
{
    return static_cast<const __nv_bfloat16 *>(m.data) + row * m.stride;
}

template <int N> __global__ void __launch_bounds__(THREADS) head_rows_logits_kernel(selected_head in, float *dz)
{
    const int t = blockIdx.x, columns = (int)in.x.columns;
    const int32_t label = in.targets.label[t], at = in.targets.row[t];
    const bool known = at >= 0 && at < in.x.rows && label >= 0 && label < in.head.rows;
    const float nll = known ? in.nll[t] : NAN, weight = in.scale * in.targets.weight[t];
    const __nv_bfloat16 *x = row_of(in.x, known ? at : 0);
    const float own = share_of_product<N>(row_of(in.head, known ? label : 0), x, columns, threadIdx.x, THREADS);
    const float lse = nll + block_sum(own, dynamic_shared<float>());
    for (int k = threadIdx.x / 32; k < in.n; k += WARPS) {
        const int32_t row = in.row[k];
        const bool there = row >= 0 && row < in.head.rows;
        const float z =
            warp_sum(share_of_product<N>(row_of(in.head, there ? row : 0), x, columns, threadIdx.x % 32, 32));
        if (threadIdx.x % 32 != 0) continue;
        const float value = row == label ? expm1f(-nll) : expf(z - lse);
        dz[k * in.targets.N + t] = there ? weight * value : NAN;
    }
}

template <int N>
__global__ void __launch_bounds__(THREADS)
    head_rows_run_kernel(selected_head in, const float *dz, int64_t run_targets, float *partial)
{
    const int c = (blockIdx.x * THREADS + threadIdx.x) * N, columns = (int)in.x.columns;
    const int64_t first = blockIdx.z * run_targets;
    const int64_t last = first + run_targets < in.targets.N ? first + run_targets : in.targets.N;
    float sum[N] = {}, x[N];
    if (c >= columns) return;
    for (int64_t t = first; t < last; t++) {
        const int32_t at = in.targets.row[t];
        const float d = dz[blockIdx.y * in.targets.N + t];
        load(row_of(in.x, at >= 0 && at < in.x.rows ? at : 0) + c, x);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = fmaf(d, x[i], sum[i]);
    }
    store(partial + (blockIdx.z * (int64_t)in.n + blockIdx.y) * columns + c, sum);
}

template <int N>
__global__ void __launch_bounds__(THREADS)
    head_rows_sum_kernel(const float *partial, int runs, int64_t values, float *drows)
{
    for_each_vector<N>(values, [&](auto width, int64_t at) {
        float sum[width.N], one[width.N];
        load(drows + at, sum);
        for (int r = 0; r < runs; r++) {
            load(partial + r * values + at, one);
#pragma unroll
            for (int i = 0; i < width.N; i++) sum[i] += one[i];
        }
        store(drows + at, sum);
    });
}

template <int N> static nib_status launch(nib_ops *ops, selected_head in, float *drows)
{
    const cudaStream_t stream = nib_cuda_stream(ops);
    const int64_t tiles = divide_up(in.x.columns, THREADS * N), values = in.n * in.x.columns;
    const int64_t most = divide_up(in.targets.N, LEAST_TARGETS), wanted = divide_up(BLOCKS, tiles * in.n);
    const int64_t run_targets = divide_up(in.targets.N, wanted < most ? wanted : most);
    const int64_t runs = divide_up(in.targets.N, run_targets);
    float *dz, *partial;
    NIB_TRY(nib_arena_take(ops->scratch, in.n * in.targets.N, sizeof *dz, &dz));
    NIB_TRY(nib_arena_take(ops->scratch, runs * values, sizeof *partial, &partial));
    NIB_TRY(nib_cuda_launch(head_rows_logits_kernel<N>, dim3((unsigned)in.targets.N), dim3(THREADS), 32 * sizeof(float),
                            stream, in, dz));
    NIB_TRY(nib_cuda_launch(head_rows_run_kernel<N>, dim3((unsigned)tiles, (unsigned)in.n, (unsigned)runs),
                            dim3(THREADS), 0, stream, in, (const float *)dz, run_targets, partial));
    const bool vectors = whole_vectors(drows) && values % 4 == 0; /* a run begins on a vector, too */
    return nib_cuda_launch(vectors ? head_rows_sum_kernel<4> : head_rows_sum_kernel<1>,
                           vector_grid(values, vectors ? 4 : 1, THREADS), dim3(THREADS), 0, stream,
                           (const float *)partial, (int)runs, values, drows);
}

nib_status nib_cuda_head_rows_backward(nib_ops *ops, nib_matrix x, nib_matrix head, nib_targets targets,
                                       float gradient_scale, const float *nll, int64_t n, const int32_t *row,
                                       float *drows)
{
    if (x.columns != head.columns || x.dtype != NIB_DTYPE_BF16 || head.dtype != NIB_DTYPE_BF16 || n > UINT16_MAX)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "head_rows_backward: %lld rows, x %s [%lld, %lld], head %s [%lld, %lld]; expected fewer than "
                        "65536 rows, x [T, C] and head [V, C] in BF16",
                        (long long)n, nib_dtype_name(x.dtype), (long long)x.rows, (long long)x.columns,
                        nib_dtype_name(head.dtype), (long long)head.rows, (long long)head.columns);
    if (n == 0 || targets.N == 0 || x.rows == 0) return NIB_OK;
    const selected_head in = {x, head, targets, gradient_scale, nll, (int)n, row};
    const size_t mark = ops->scratch->used;
    const nib_status status = whole_vectors({x, head}) ? launch<VECTOR>(ops, in, drows) : launch<1>(ops, in, drows);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
