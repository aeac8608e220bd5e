/* For the distinct rows that have a target, CHUNK at a time:
 *     z = head x,  nll = logsumexp(z) - z[label],  dz = scale * (sum of weights * softmax(z) - weights at the labels),
 *     dx = dz head,  dhead += dz^T x;
 * with a soft-cap z = cap tanh(z' / cap), and dz takes the factor 1 - (z / cap)^2.
 *
 * The distinct rows are numbered by one block: a row's number is the count of targets before it that begin a row. The
 * host launches for min(N, T) numbers; those beyond the last row are rows of zeros that no target points at. Targets
 * whose rows descend, or are more than x can have, are all of one row that is not there: their losses are NaN. A block
 * scores one row of logits. First pass: each thread keeps a running maximum and the sum of exponentials below it
 * (Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018), merged over the block in a fixed order.
 * Second pass: dz overwrites the row as bf16, at the front of the row: a tile is written once all of it is read. At the
 * labels softmax and weight are subtracted in fp32 and rounded once; near certainty their difference is all there is.
 *   memory     z is read twice and written as dz once, 10 bytes a logit, on top of the product's 4
 *   threads    1024 a row (256 for gathering and scattering); shared: two floats a warp */
#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/launch.cuh"
#include "cuda/linear_cross_entropy.h"
#include "cuda/matmul.h"
#include "cuda/status.cuh"
#include "cuda/vector.cuh"

constexpr int CHUNK = 2048;
constexpr int THREADS = 256, SCORE_THREADS = 1024;
constexpr int WIDE = 4; /* logits a thread and step */

/* The distinct rows of x that have targets: number s is row[s], with targets first[s] .. first[s + 1]. */
typedef struct {
    int32_t *row;   /* [slots], -1 from the last on */
    int32_t *first; /* [slots + 1], N from there on */
} target_rows;

__global__ void __launch_bounds__(SCORE_THREADS)
    distinct_rows_kernel(int N, const int32_t *target_row, int slots, target_rows rows)
{
    int *counts = dynamic_shared<int>(); /* [warps] */
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int before = 0; /* rows that begin before this piece */
    bool descends = false;
    for (int piece = 0; piece < N; piece += blockDim.x) {
        const int n = piece + threadIdx.x;
        const bool begins = n < N && (n == 0 || target_row[n] != target_row[n - 1]);
        descends = descends || (begins && n > 0 && target_row[n] < target_row[n - 1]);
        const unsigned beginning = __ballot_sync(0xffffffffu, begins);
        if (lane == 0) counts[warp] = __popc(beginning);
        __syncthreads();
        int slot = before + __popc(beginning & ((1u << lane) - 1));
        for (int w = 0; w < warps; w++) {
            if (w < warp) slot += counts[w];
            before += counts[w];
        }
        if (begins && slot < slots) {
            rows.row[slot] = target_row[n];
            rows.first[slot] = n;
        }
        __syncthreads(); /* counts are read */
    }
    const bool malformed = __syncthreads_or(descends) || before > slots;
    if (malformed) before = 0; /* all of it is one row, which is not there */
    for (int s = before + threadIdx.x; s <= slots; s += blockDim.x) {
        if (s < slots) rows.row[s] = -1;
        rows.first[s] = s == 0 ? 0 : N;
    }
}

/* to[i] = x[row[i]], or zeros. */
template <int N>
__global__ void gather_rows_kernel(const int32_t *row, const __nv_bfloat16 *x, int64_t x_stride, int64_t x_rows,
                                   int columns, __nv_bfloat16 *to)
{
    const int64_t from = row[blockIdx.x];
    const bool present = from >= 0 && from < x_rows;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float v[N] = {};
        if (present) load(x + from * x_stride + c, v);
        store(to + blockIdx.x * (int64_t)columns + c, v);
    }
}

/* x[row[i]] = from[i]. */
template <int N>
__global__ void scatter_rows_kernel(const int32_t *row, const __nv_bfloat16 *from, __nv_bfloat16 *x, int64_t x_stride,
                                    int64_t x_rows, int columns)
{
    const int64_t to = row[blockIdx.x];
    if (to < 0 || to >= x_rows) return;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float v[N];
        load(from + blockIdx.x * (int64_t)columns + c, v);
        store(x + to * x_stride + c, v);
    }
}

template <int N> __global__ void zero_rows_kernel(__nv_bfloat16 *x, int64_t stride, int columns)
{
    const float zeros[N] = {};
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) store(x + blockIdx.x * stride + c, zeros);
}

__device__ __forceinline__ float capped(float z, float softcap)
{
    return softcap > 0.0f ? softcap * tanhf(z / softcap) : z;
}

/* Derivative of the soft-cap where it gives z. */
__device__ __forceinline__ float cap_slope(float z, float softcap)
{
    return softcap > 0.0f ? 1.0f - z * z / (softcap * softcap) : 1.0f;
}

/* A maximum and the sum of exponentials relative to it. */
typedef struct {
    float largest, sum;
} running_sum;

__device__ __forceinline__ running_sum merge(running_sum a, running_sum b)
{
    const float largest = fmaxf(a.largest, b.largest);
    if (largest == -INFINITY) return {largest, 0.0f}; /* neither has seen anything */
    return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

/* The next WIDE logits from v on, capped; -infinity beyond the vocabulary. */
__device__ __forceinline__ void load_logits(const float *z, int64_t v, int64_t V, float softcap, float (&x)[WIDE])
{
    if (v + WIDE <= V) {
        load(z + v, x);
    } else {
#pragma unroll
        for (int i = 0; i < WIDE; i++) x[i] = v + i < V ? z[v + i] : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < WIDE; i++) x[i] = v + i < V ? capped(x[i], softcap) : -INFINITY; /* a cap would lift it */
}

__device__ __forceinline__ float block_log_sum_exp(running_sum own, running_sum *shared)
{
    for (int apart = 16; apart > 0; apart /= 2)
        own = merge(own,
                    {__shfl_xor_sync(0xffffffffu, own.largest, apart), __shfl_xor_sync(0xffffffffu, own.sum, apart)});
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = own;
    __syncthreads();
    running_sum all = shared[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++) all = merge(all, shared[w]);
    return all.largest + logf(all.sum);
}

typedef struct {
    const int32_t *row, *label;
    const float *weight;
    int64_t x_rows;
    float softcap, gradient_scale;
    float *nll;
    bool backward;
} scoring;

/* Row `blockIdx.x` of a chunk: z [V] fp32 in, the losses of its targets out, dz [V] bf16 over it. */
__global__ void __launch_bounds__(SCORE_THREADS)
    score_rows_kernel(scoring in, target_rows rows, float *logits, int64_t stride, int64_t V)
{
    float *z = logits + blockIdx.x * stride;
    __nv_bfloat16 *dz = reinterpret_cast<__nv_bfloat16 *>(z);
    const int first = rows.first[blockIdx.x], last = rows.first[blockIdx.x + 1];
    if (first == last) return; /* no row: z is zero, and so is dz */
    const int64_t step = (int64_t)blockDim.x * WIDE;
    running_sum own = {-INFINITY, 0.0f};
    float x[WIDE];
    for (int64_t v = (int64_t)threadIdx.x * WIDE; v < V; v += step) {
        load_logits(z, v, V, in.softcap, x);
        running_sum four = {fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), 0.0f};
#pragma unroll
        for (int i = 0; i < WIDE; i++) four.sum += expf(x[i] - four.largest);
        own = merge(own, four);
    }
    const float lse = block_log_sum_exp(own, dynamic_shared<running_sum>());
    float weights = 0.0f;
    for (int n = first; n < last; n++) weights += in.weight[n];
    const bool present = rows.row[blockIdx.x] >= 0 && rows.row[blockIdx.x] < in.x_rows;
    for (int n = first + threadIdx.x; n < last; n += blockDim.x) {
        const bool known = present && in.label[n] >= 0 && in.label[n] < V;
        in.nll[n] = known ? lse - capped(z[in.label[n]], in.softcap) : NAN;
    }
    if (!in.backward) return;
    weights *= in.gradient_scale;
    for (int64_t base = 0; base < V; base += step) {
        const int64_t v = base + (int64_t)threadIdx.x * WIDE;
        load_logits(z, v, V, in.softcap, x);
        __syncthreads(); /* this tile, and what its dz overwrites, is read */
#pragma unroll
        for (int i = 0; i < WIDE; i++)
            if (v + i < V) dz[v + i] = to_bf16(weights * expf(x[i] - lse) * cap_slope(x[i], in.softcap));
    }
    __syncthreads();
    for (int n = first + threadIdx.x; n < last; n += blockDim.x) {
        const int32_t label = in.label[n];
        if (label < 0 || label >= V) continue;
        float own_weights = 0.0f; /* of all targets of the row with this label, whose threads write the same value */
        for (int other = first; other < last; other++)
            if (in.label[other] == label) own_weights += in.weight[other];
        const float logit = lse - in.nll[n]; /* z itself is overwritten */
        dz[label] =
            to_bf16((weights * expf(logit - lse) - own_weights * in.gradient_scale) * cap_slope(logit, in.softcap));
    }
}

__global__ void cap_logits_kernel(float *logits, int64_t n, float softcap)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        logits[i] = capped(logits[i], softcap);
}

static nib_status scratch_matrix(nib_ops *ops, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *m)
{
    *m = {nullptr, rows, columns, divide_up(columns, VECTOR) * VECTOR, dtype};
    return nib_arena_take(ops->scratch, rows * m->stride, dtype == NIB_DTYPE_F32 ? 4 : 2, &m->data);
}

/* The head in bf16: itself, or a copy in scratch. */
static nib_status narrow_head(nib_ops *ops, nib_matrix head, nib_matrix *narrow)
{
    *narrow = head;
    if (head.dtype == NIB_DTYPE_BF16) return NIB_OK;
    NIB_TRY(scratch_matrix(ops, head.rows, head.columns, NIB_DTYPE_BF16, narrow));
    return nib_cuda_convert(ops, head, *narrow);
}

static nib_status check(nib_matrix x, nib_matrix head, nib_matrix dx)
{
    if (x.dtype != NIB_DTYPE_BF16 || x.columns != head.columns ||
        (dx.data != nullptr && (dx.dtype != NIB_DTYPE_BF16 || dx.rows != x.rows || dx.columns != x.columns)))
        return NIB_FAIL(
            NIB_ERROR_SHAPE,
            "linear_cross_entropy: x [%lld, %lld] %s, head [%lld, %lld], dx [%lld, %lld]; expected x [T, C] "
            "and dx [T, C] in BF16, head [V, C]",
            (long long)x.rows, (long long)x.columns, nib_dtype_name(x.dtype), (long long)head.rows,
            (long long)head.columns, (long long)dx.rows, (long long)dx.columns);
    return NIB_OK;
}

static nib_status zero_rows(nib_ops *ops, nib_matrix m)
{
    auto kernel = whole_vectors(m) ? zero_rows_kernel<VECTOR> : zero_rows_kernel<1>;
    return nib_cuda_launch(kernel, dim3((unsigned)m.rows), dim3(THREADS), 0, nib_cuda_stream(ops), bf16_of(m), m.stride,
                           (int)m.columns);
}

/* What a chunk works with. */
typedef struct {
    nib_matrix x, dx;  /* [chunk, C] gathered rows, and their gradient */
    nib_matrix logits; /* fp32 [chunk, V] */
    nib_matrix head;   /* bf16 [V, C] */
    scoring in;
    float *dhead;
} chunk_buffers;

/* `count` distinct rows: gathered, scored, and their gradient scattered. */
static nib_status score_chunk(nib_ops *ops, const chunk_buffers *b, target_rows rows, int64_t count, nib_matrix x,
                              nib_matrix dx)
{
    cudaStream_t stream = nib_cuda_stream(ops);
    nib_matrix gathered = nib_matrix_rows(b->x, 0, count), gradient = nib_matrix_rows(b->dx, 0, count);
    nib_matrix logits = nib_matrix_rows(b->logits, 0, count);
    auto gather = whole_vectors({x, gathered}) && gathered.stride == gathered.columns ? gather_rows_kernel<VECTOR>
                                                                                      : gather_rows_kernel<1>;
    NIB_TRY(nib_cuda_launch(gather, dim3((unsigned)count), dim3(THREADS), 0, stream, rows.row, bf16_of(x), x.stride,
                            x.rows, (int)x.columns, bf16_of(gathered)));
    NIB_TRY(nib_cuda_matmul(ops, gathered, false, b->head, true, false, logits));
    NIB_TRY(nib_cuda_launch(score_rows_kernel, dim3((unsigned)count), dim3(SCORE_THREADS),
                            SCORE_THREADS / 32 * sizeof(running_sum), stream, b->in, rows, float_of(logits),
                            logits.stride, b->head.rows));
    if (!b->in.backward) return NIB_OK;
    nib_matrix dz = {logits.data, count, logits.columns, 2 * logits.stride, NIB_DTYPE_BF16};
    NIB_TRY(nib_cuda_matmul(ops, dz, false, b->head, false, false, gradient));
    auto scatter = whole_vectors({dx, gradient}) && gradient.stride == gradient.columns ? scatter_rows_kernel<VECTOR>
                                                                                        : scatter_rows_kernel<1>;
    NIB_TRY(nib_cuda_launch(scatter, dim3((unsigned)count), dim3(THREADS), 0, stream, rows.row, bf16_of(gradient),
                            bf16_of(dx), dx.stride, dx.rows, (int)dx.columns));
    if (b->dhead == nullptr) return NIB_OK;
    nib_matrix dhead = {b->dhead, b->head.rows, b->head.columns, b->head.columns, NIB_DTYPE_F32};
    return nib_cuda_matmul(ops, dz, true, gathered, false, true, dhead);
}

/* Gathered rows lie without a gap between them, as the kernels write them. */
static nib_status dense_matrix(nib_ops *ops, int64_t rows, int64_t columns, nib_matrix *m)
{
    *m = {nullptr, rows, columns, columns, NIB_DTYPE_BF16};
    return nib_arena_take(ops->scratch, rows * columns, sizeof(nib_bf16), &m->data);
}

static nib_status score_all(nib_ops *ops, nib_matrix x, nib_matrix head, nib_targets targets, chunk_buffers *b,
                            nib_matrix dx)
{
    const int64_t slots = targets.N < x.rows ? targets.N : x.rows, most = slots < CHUNK ? slots : CHUNK;
    target_rows rows;
    NIB_TRY(nib_arena_take(ops->scratch, slots, sizeof *rows.row, &rows.row));
    NIB_TRY(nib_arena_take(ops->scratch, slots + 1, sizeof *rows.first, &rows.first));
    NIB_TRY(dense_matrix(ops, most, x.columns, &b->x));
    NIB_TRY(dense_matrix(ops, most, x.columns, &b->dx));
    NIB_TRY(scratch_matrix(ops, most, head.rows, NIB_DTYPE_F32, &b->logits));
    NIB_TRY(narrow_head(ops, head, &b->head));
    NIB_TRY(nib_cuda_launch(distinct_rows_kernel, dim3(1), dim3(SCORE_THREADS), SCORE_THREADS / 32 * sizeof(int),
                            nib_cuda_stream(ops), (int)targets.N, targets.row, (int)slots, rows));
    for (int64_t s = 0; s < slots; s += most)
        NIB_TRY(score_chunk(ops, b, {rows.row + s, rows.first + s}, slots - s < most ? slots - s : most, x, dx));
    return NIB_OK;
}

nib_status nib_cuda_linear_cross_entropy(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap,
                                         nib_targets targets, float gradient_scale, float *nll, nib_matrix dx,
                                         float *dhead)
{
    NIB_TRY(check(x, head, dx));
    if (dx.data != nullptr && dx.rows > 0) NIB_TRY(zero_rows(ops, dx));
    if (targets.N == 0 || x.rows == 0) return NIB_OK;
    chunk_buffers b = {};
    b.in = {targets.row, targets.label, targets.weight, x.rows, softcap, gradient_scale, nll, dx.data != nullptr};
    b.dhead = dhead;
    const size_t mark = ops->scratch->used;
    nib_status status = score_all(ops, x, head, targets, &b, dx);
    nib_arena_reset(ops->scratch, mark);
    return status;
}

nib_status nib_cuda_logits(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, float *logits)
{
    NIB_TRY(check(x, head, {}));
    const size_t mark = ops->scratch->used;
    const int64_t n = x.rows * head.rows;
    nib_matrix narrow, out = {logits, x.rows, head.rows, head.rows, NIB_DTYPE_F32};
    nib_status status = narrow_head(ops, head, &narrow);
    if (status == NIB_OK) status = nib_cuda_matmul(ops, x, false, narrow, true, false, out);
    nib_arena_reset(ops->scratch, mark);
    if (status != NIB_OK || softcap <= 0.0f || n == 0) return status;
    const int64_t blocks = divide_up(n, THREADS);
    return nib_cuda_launch(cap_logits_kernel, dim3((unsigned)(blocks < 4096 ? blocks : 4096)), dim3(THREADS), 0,
                           nib_cuda_stream(ops), logits, n, softcap);
}
