/* DoRA's norm, and what it scales.
 *
 *     norm[n] = || W[n] + scale B[n] A ||,  gain[n] = magnitude[n] / norm[n]
 *
 * A block of 256 threads has NORM_ROWS rows, a thread one column of 256 of each: it reads A's column once for all rows
 * (coalesced, from the L2: A is at most a few hundred KB), decodes W's element, adds, squares. scale B of the rows
 * stands in shared memory, NORM_RANKS ranks at a time. The sum is W + scale B A itself, not an expanded square, which
 * would need W A^T, as many products, and cancel where an adapter undoes a row. 2 N K R flops once an optimizer step:
 * 0.2 % of a step of 16 x 2048 tokens at rank 16. 16 sums and 16 terms a thread; shared memory: B's 2 KB, the table of
 * nf4_decode.cuh.
 *
 * The rest is bound by memory. A thread of output and gradient has a vector of columns and SLICE_ROWS rows of it, so
 * that it looks its gains up once. A block of dmagnitude has 32 columns, 8 threads each, whose sums over every eighth
 * row are added in order. */
#include "cuda/backend.h"
#include "cuda/dora.h"
#include "cuda/launch.cuh"
#include "cuda/nf4_decode.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

namespace
{

constexpr int THREADS = 256, NORM_ROWS = 16, NORM_RANKS = 32, SLICE_ROWS = 32, LANES = 8;
constexpr int NORM_BYTES = NF4_TABLE_BYTES + (NORM_RANKS * NORM_ROWS + 32) * 4;

/* Rows of W: codes, or dense in either type. */
struct weight_rows {
    nib_nf4 nf4;
    const void *dense;
    int64_t stride, rows, K;
    bool wide;
};

/* A, B and their magnitudes. */
struct adapter_rows {
    const __nv_bfloat16 *a, *b;
    int64_t a_stride, b_stride;
    int rank;
    float scale;
    nib_dora dora;
};

__device__ float weight_at(const weight_rows &w, int64_t n, int64_t k, const float *lane_table)
{
    if (w.nf4.codes == nullptr) {
        const int64_t i = n * w.stride + k;
        return w.wide ? static_cast<const float *>(w.dense)[i]
                      : to_float(static_cast<const __nv_bfloat16 *>(w.dense)[i]);
    }
    const int64_t i = n * w.K + k;
    const uint32_t pair = w.nf4.codes[i / 2], code = i % 2 == 0 ? pair >> 4 : pair & 15;
    return round_to_bf16(__fmul_rn(lane_table[code * 32], nf4_absmax(w.nf4, i / 64)));
}

__global__ void __launch_bounds__(THREADS) dora_norm_kernel(weight_rows w, adapter_rows adapter, nf4_values values)
{
    float *table = dynamic_shared<float>(), *factor = table + NF4_TABLE_FLOATS; /* factor [NORM_RANKS][NORM_ROWS] */
    float *partial = factor + NORM_RANKS * NORM_ROWS;
    const int64_t row0 = (int64_t)blockIdx.x * NORM_ROWS;
    const int rows = (int)(w.rows - row0 < NORM_ROWS ? w.rows - row0 : NORM_ROWS);
    nf4_fill_table(table, values); /* the loop's first barriers are before the first read */

    float square[NORM_ROWS] = {};
    for (int64_t k0 = 0; k0 < w.K; k0 += THREADS) {
        const int64_t k = k0 + threadIdx.x;
        float sum[NORM_ROWS] = {};
        for (int r0 = 0; r0 < adapter.rank; r0 += NORM_RANKS) {
            const int ranks = adapter.rank - r0 < NORM_RANKS ? adapter.rank - r0 : NORM_RANKS;
            if (k0 == 0 || adapter.rank > NORM_RANKS) {
                __syncthreads(); /* all have done with the last ranks */
                for (int i = (int)threadIdx.x; i < ranks * NORM_ROWS; i += THREADS) {
                    const int r = r0 + i / NORM_ROWS, row = i % NORM_ROWS;
                    factor[i] =
                        row < rows ? adapter.scale * to_float(adapter.b[(row0 + row) * adapter.b_stride + r]) : 0.0f;
                }
                __syncthreads();
            }
            for (int r = 0; r < ranks && k < w.K; r++) {
                const float a = to_float(adapter.a[(r0 + r) * adapter.a_stride + k]);
#pragma unroll
                for (int row = 0; row < NORM_ROWS; row++) sum[row] = fmaf(factor[r * NORM_ROWS + row], a, sum[row]);
            }
        }
#pragma unroll
        for (int row = 0; row < NORM_ROWS; row++) {
            if (row >= rows || k >= w.K) break;
            const float element = weight_at(w, row0 + row, k, nf4_lane_table(table)) + sum[row];
            square[row] = fmaf(element, element, square[row]);
        }
    }
#pragma unroll
    for (int row = 0; row < NORM_ROWS; row++) {
        const float norm = sqrtf(block_sum(square[row], partial));
        if (threadIdx.x != 0 || row >= rows) continue;
        adapter.dora.norm[row0 + row] = norm;
        adapter.dora.gain[row0 + row] = norm > 0.0f ? adapter.dora.magnitude[row0 + row] / norm : 0.0f;
    }
}

/* What the kernels below look up by output. */
struct output_part {
    int64_t first_row;
    const float *bias;
    nib_dora dora;
};

struct output_parts {
    output_part part[NIB_LINEAR_MAX_PARTS];
    int count;
    int64_t N;
};

__device__ const output_part &part_of(const output_parts &parts, int64_t n)
{
    int p = 0;
    while (p + 1 < parts.count && n >= parts.part[p + 1].first_row) p++;
    return parts.part[p];
}

__device__ float gain_of(const output_parts &parts, int64_t n)
{
    const output_part &part = part_of(parts, n);
    return part.dora.gain == nullptr ? 1.0f : part.dora.gain[n - part.first_row];
}

/* grid (N / (WIDTH THREADS), T / SLICE_ROWS), as of the next. */
template <int WIDTH>
__global__ void __launch_bounds__(THREADS) dora_output_kernel(output_parts parts, int64_t T, const float *base,
                                                              const float *through, __nv_bfloat16 *y, int64_t stride)
{
    const int64_t n = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * WIDTH, t0 = (int64_t)blockIdx.y * SLICE_ROWS;
    if (n >= parts.N) return;
    float more[WIDTH], bias[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        const output_part &part = part_of(parts, n + i);
        more[i] = gain_of(parts, n + i) - 1.0f;
        bias[i] = part.bias == nullptr ? 0.0f : part.bias[n + i - part.first_row];
    }
    for (int64_t t = t0; t < t0 + SLICE_ROWS && t < T; t++) {
        float sum[WIDTH], changed[WIDTH];
        load(base + t * parts.N + n, sum);
        load(through + t * parts.N + n, changed);
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            sum[i] = (more[i] == 0.0f ? sum[i] : fmaf(more[i], changed[i], sum[i])) + bias[i];
        store(y + t * stride + n, sum);
    }
}

template <int WIDTH>
__global__ void __launch_bounds__(THREADS)
    dora_gradient_kernel(output_parts parts, int64_t T, const __nv_bfloat16 *dy, int64_t dy_stride, float less,
                         __nv_bfloat16 *out, int64_t out_stride)
{
    const int64_t n = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * WIDTH, t0 = (int64_t)blockIdx.y * SLICE_ROWS;
    if (n >= parts.N) return;
    float factor[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) factor[i] = gain_of(parts, n + i) - less;
    for (int64_t t = t0; t < t0 + SLICE_ROWS && t < T; t++) {
        float value[WIDTH];
        load(dy + t * dy_stride + n, value);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) value[i] *= factor[i];
        store(out + t * out_stride + n, value);
    }
}

/* grid (N / 32). */
__global__ void __launch_bounds__(32 * LANES)
    dora_magnitude_kernel(output_parts parts, int64_t T, const __nv_bfloat16 *dy, int64_t stride, const float *through)
{
    float *partial = dynamic_shared<float>(); /* [LANES][32] */
    const int lane = (int)threadIdx.x / 32, column = (int)threadIdx.x % 32;
    const int64_t n = (int64_t)blockIdx.x * 32 + column;
    float sum = 0.0f;
    for (int64_t t = lane; t < T && n < parts.N; t += LANES)
        sum = fmaf(to_float(dy[t * stride + n]), through[t * parts.N + n], sum);
    partial[lane * 32 + column] = sum;
    __syncthreads();
    if (lane > 0 || n >= parts.N) return;
    const output_part &part = part_of(parts, n);
    const int64_t row = n - part.first_row;
    if (part.dora.dmagnitude == nullptr || part.dora.norm[row] == 0.0f) return;
    for (int i = 1; i < LANES; i++) sum += partial[i * 32 + column];
    part.dora.dmagnitude[row] += sum / part.dora.norm[row];
}

output_parts output_parts_of(const nib_linear *linear)
{
    output_parts parts = {};
    parts.count = linear->parts;
    for (int p = 0; p < linear->parts; p++) {
        parts.part[p] = {parts.N, linear->part[p].bias, linear->part[p].lora.dora};
        parts.N += linear->part[p].rows;
    }
    return parts;
}

dim3 slices(int64_t N, int width, int64_t T)
{
    return dim3((unsigned)divide_up(N, (int64_t)width * THREADS), (unsigned)divide_up(T, SLICE_ROWS));
}

/* Whether m is fp32 [T, N] without gaps, as the kernels take sums. */
bool is_sums(nib_matrix m, int64_t T, int64_t N)
{
    return m.rows == T && m.columns == N && m.stride == N && m.dtype == NIB_DTYPE_F32;
}

nib_status refuse(const nib_linear *linear, const char *op, nib_matrix a, nib_matrix b)
{
    return NIB_FAIL(NIB_ERROR_SHAPE,
                    "%s %s: [%lld, %lld] %s and [%lld, %lld] %s, expected [T, %lld], sums fp32 without gaps", op,
                    linear->name, (long long)a.rows, (long long)a.columns, nib_dtype_name(a.dtype), (long long)b.rows,
                    (long long)b.columns, nib_dtype_name(b.dtype), (long long)nib_linear_outputs(linear));
}

} // namespace

nib_status nib_cuda_dora_norm(nib_ops *ops, const nib_linear_part *part, int64_t K)
{
    const nib_lora *lora = &part->lora;
    if (lora->rank == 0 || lora->a.columns != K || lora->b.rows != part->rows || lora->a.dtype != NIB_DTYPE_BF16 ||
        lora->b.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(
            NIB_ERROR_SHAPE, "dora_norm: A [%lld, %lld] %s, B [%lld, %lld] %s, expected [R, %lld], [%lld, R] in BF16",
            (long long)lora->a.rows, (long long)lora->a.columns, nib_dtype_name(lora->a.dtype), (long long)lora->b.rows,
            (long long)lora->b.columns, nib_dtype_name(lora->b.dtype), (long long)K, (long long)part->rows);
    const weight_rows weight = {
        part->nf4, part->dense.data, part->dense.stride, part->rows, K, part->dense.dtype == NIB_DTYPE_F32};
    const adapter_rows adapter = {bf16_of(lora->a), bf16_of(lora->b), lora->a.stride, lora->b.stride,
                                  (int)lora->rank,  lora->scale,      lora->dora};
    return nib_cuda_launch(dora_norm_kernel, dim3((unsigned)divide_up(part->rows, NORM_ROWS)), dim3(THREADS),
                           NORM_BYTES, nib_cuda_stream(ops), weight, adapter, nf4_values_of_table());
}

nib_status nib_cuda_dora_output(nib_ops *ops, const nib_linear *linear, nib_matrix base, nib_matrix through,
                                nib_matrix y)
{
    const output_parts parts = output_parts_of(linear);
    if (!is_sums(base, y.rows, parts.N) || !is_sums(through, y.rows, parts.N) || y.columns != parts.N ||
        y.dtype != NIB_DTYPE_BF16)
        return refuse(linear, "dora_output", base, y);
    const bool vectors = whole_vectors({base, through, y});
    return nib_cuda_launch(vectors ? dora_output_kernel<VECTOR> : dora_output_kernel<1>,
                           slices(parts.N, vectors ? VECTOR : 1, y.rows), dim3(THREADS), 0, nib_cuda_stream(ops), parts,
                           y.rows, (const float *)base.data, (const float *)through.data, bf16_of(y), y.stride);
}

nib_status nib_cuda_dora_gradient(nib_ops *ops, const nib_linear *linear, nib_matrix dy, float less, nib_matrix out)
{
    const output_parts parts = output_parts_of(linear);
    if (dy.columns != parts.N || out.columns != parts.N || dy.rows != out.rows || dy.dtype != NIB_DTYPE_BF16 ||
        out.dtype != NIB_DTYPE_BF16)
        return refuse(linear, "dora_gradient", dy, out);
    const bool vectors = whole_vectors({dy, out});
    return nib_cuda_launch(vectors ? dora_gradient_kernel<VECTOR> : dora_gradient_kernel<1>,
                           slices(parts.N, vectors ? VECTOR : 1, dy.rows), dim3(THREADS), 0, nib_cuda_stream(ops),
                           parts, dy.rows, (const __nv_bfloat16 *)dy.data, dy.stride, less, bf16_of(out), out.stride);
}

nib_status nib_cuda_dora_magnitude(nib_ops *ops, const nib_linear *linear, nib_matrix dy, nib_matrix through)
{
    const output_parts parts = output_parts_of(linear);
    if (dy.columns != parts.N || dy.dtype != NIB_DTYPE_BF16 || !is_sums(through, dy.rows, parts.N))
        return refuse(linear, "dora_magnitude", dy, through);
    return nib_cuda_launch(dora_magnitude_kernel, dim3((unsigned)divide_up(parts.N, 32)), dim3(32 * LANES),
                           32 * LANES * 4, nib_cuda_stream(ops), parts, dy.rows, (const __nv_bfloat16 *)dy.data,
                           dy.stride, (const float *)through.data);
}
