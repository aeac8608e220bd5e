/* x[t] = scale * table[token[t]], and dtable[token[t]] += scale * dx[t] in order of t.
 *
 * Forward: a block for each token copies one row; the table's value is rounded to bf16, then multiplied, as Gemma's
 * reference does.
 * Backward: no atomics. First, each token's warp looks for the next occurrence of the same token (next[t], T if there
 * is none), which marks that one as repeated. Then the blocks of every first occurrence own its row of dtable: a thread
 * adds its columns up along the chain, in order, and writes them once.
 *   threads    256 a block, N columns each; a row is ceil(C / (256 N)) blocks in the backward pass
 *   registers  below 40, no shared memory */
#include "cuda/backend.h"
#include "cuda/embedding.h"
#include "cuda/launch.cuh"
#include "cuda/status.cuh"
#include "cuda/vector.cuh"

constexpr int THREADS = 256;

template <int N, typename Element>
__global__ void embedding_forward_kernel(const int32_t *token, const Element *table, int64_t table_stride,
                                         int64_t vocabulary, int columns, float scale, __nv_bfloat16 *x,
                                         int64_t x_stride)
{
    const int64_t t = blockIdx.x, row = token[t];
    const bool known = row >= 0 && row < vocabulary;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float v[N];
        if (known) load(table + row * table_stride + c, v);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = known ? round_to_bf16(v[i]) * scale : NAN;
        store(x + t * x_stride + c, v);
    }
}

__global__ void embedding_chain_kernel(int T, const int32_t *token, int32_t *next, int32_t *repeated)
{
    const int t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (t >= T) return; /* a whole warp */
    const int32_t own = token[t];
    int found = T;
    for (int first = t + 1; first < T && found == T; first += 32) {
        const bool same = first + lane < T && token[first + lane] == own;
        const unsigned where = __ballot_sync(0xffffffffu, same);
        if (where != 0) found = first + __ffs((int)where) - 1;
    }
    if (lane != 0) return;
    next[t] = found;
    if (found < T) repeated[found] = 1;
}

template <int N>
__global__ void embedding_backward_kernel(int T, const int32_t *token, const int32_t *next, const int32_t *repeated,
                                          const __nv_bfloat16 *dx, int64_t dx_stride, int columns, float scale,
                                          float *dtable)
{
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (repeated[blockIdx.x] != 0 || token[blockIdx.x] < 0 || c >= columns) return;
    float *row = dtable + token[blockIdx.x] * (int64_t)columns;
    float sum[N], d[N];
    load(row + c, sum);
    for (int t = blockIdx.x; t < T; t = next[t]) {
        load(dx + t * dx_stride + c, d);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = __fadd_rn(sum[i], __fmul_rn(scale, d[i]));
    }
    store(row + c, sum);
}

template <typename Element>
static nib_status forward(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x)
{
    const bool vectors = whole_vectors({table, x});
    return nib_cuda_launch(vectors ? embedding_forward_kernel<VECTOR, Element> : embedding_forward_kernel<1, Element>,
                           dim3((unsigned)x.rows), dim3(THREADS), 0, nib_cuda_stream(ops), token,
                           static_cast<const Element *>(table.data), table.stride, table.rows, (int)x.columns, scale,
                           bf16_of(x), x.stride);
}

nib_status nib_cuda_embedding_forward(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x)
{
    const bool wide = table.dtype == NIB_DTYPE_F32;
    if (table.columns != x.columns || x.dtype != NIB_DTYPE_BF16 || (!wide && table.dtype != NIB_DTYPE_BF16))
        return NIB_FAIL(NIB_ERROR_SHAPE, "embedding: table %s [%lld, %lld] into x %s [%lld, %lld], which is to be bf16",
                        nib_dtype_name(table.dtype), (long long)table.rows, (long long)table.columns,
                        nib_dtype_name(x.dtype), (long long)x.rows, (long long)x.columns);
    if (x.rows == 0) return NIB_OK;
    return wide ? forward<float>(ops, token, table, scale, x) : forward<__nv_bfloat16>(ops, token, table, scale, x);
}

nib_status nib_cuda_embedding_backward(nib_ops *ops, const int32_t *token, nib_matrix dx, float scale, float *dtable)
{
    const int64_t T = dx.rows;
    if (dx.dtype != NIB_DTYPE_BF16 || T > INT32_MAX)
        return NIB_FAIL(NIB_ERROR_SHAPE, "embedding: dx %s [%lld, %lld]; bf16 and fewer than 2^31 rows",
                        nib_dtype_name(dx.dtype), (long long)T, (long long)dx.columns);
    if (T == 0) return NIB_OK;
    const size_t mark = ops->scratch->used;
    int32_t *next, *repeated;
    NIB_TRY(nib_arena_take(ops->scratch, T, sizeof *next, &next));
    NIB_TRY(nib_arena_take(ops->scratch, T, sizeof *repeated, &repeated));
    nib_arena_reset(ops->scratch, mark);
    if (ops->rehearsal) return NIB_OK;
    const cudaStream_t stream = nib_cuda_stream(ops);
    NIB_TRY(ops->zero(ops, repeated, (size_t)T * sizeof *repeated));
    NIB_TRY(nib_cuda_launch(embedding_chain_kernel, dim3((unsigned)divide_up(T, THREADS / 32)), dim3(THREADS), 0,
                            stream, (int)T, token, next, repeated));
    const bool vectors = whole_vectors({dx}) && whole_vectors(dtable);
    const int64_t tiles = divide_up(dx.columns, THREADS * (vectors ? VECTOR : 1));
    return nib_cuda_launch(vectors ? embedding_backward_kernel<VECTOR> : embedding_backward_kernel<1>,
                           dim3((unsigned)T, (unsigned)tiles), dim3(THREADS), 0, stream, (int)T, token, next, repeated,
                           bf16_of(dx), dx.stride, (int)dx.columns, scale, dtable);
}
