#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/launch.cuh"
#include "cuda/linear_joined.h"
#include "cuda/linear_parts.cuh"
#include "cuda/nf4_dequantize.h"
#include "cuda/vector.cuh"

namespace
{

constexpr int THREADS = 256, BIAS_TERMS = 3;

/* Column c of padded u: its part and rank there; in the rounding the rank is -1. */
struct padded_column {
    int part, rank;
};

__device__ padded_column column_of_padded(const linear_parts &parts, int c)
{
    int p = 0;
    for (int padded; c >= (padded = (parts.part[p].rank + 7) / 8 * 8); p++) c -= padded;
    return {p, c < parts.part[p].rank ? c : -1};
}

/* The i-th of the bf16 values whose sum is x. */
__device__ __nv_bfloat16 term_of(float x, int i)
{
    __nv_bfloat16 term = to_bf16(x);
    for (; i > 0; i--) {
        x -= to_float(term);
        term = to_bf16(x);
    }
    return term;
}

/* Columns K .. of S: out [N, room] = scale B, then the bias's terms. grid (N room / THREADS). */
__global__ void __launch_bounds__(THREADS)
    joined_columns_kernel(linear_parts parts, int64_t N, int ranks, int room, __nv_bfloat16 *out, int64_t stride)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, n = i / room;
    if (n >= N) return;
    const int c = (int)(i % room);
    int p = 0;
    while (p + 1 < parts.count && n >= parts.part[p + 1].first_row) p++;
    const int64_t row = n - parts.part[p].first_row;
    __nv_bfloat16 value = to_bf16(0.0f);
    if (c >= ranks) {
        if (c - ranks < BIAS_TERMS && parts.part[p].bias != nullptr)
            value = term_of(parts.part[p].bias[row], c - ranks);
    } else {
        const padded_column at = column_of_padded(parts, c);
        if (at.part == p && at.rank >= 0)
            value = to_bf16(parts.part[p].scale * to_float(parts.part[p].b[row * parts.part[p].b_stride + at.rank]));
    }
    out[n * stride + c] = value;
}

/* Rows N .. of S: out [ranks, K] = A. grid (K / THREADS, ranks). */
__global__ void __launch_bounds__(THREADS) joined_rows_kernel(linear_parts parts, __nv_bfloat16 *out, int64_t stride)
{
    const int64_t k = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (k >= parts.K) return;
    const padded_column at = column_of_padded(parts, (int)blockIdx.y);
    out[blockIdx.y * stride + k] =
        at.rank < 0 ? to_bf16(0.0f) : parts.part[at.part].a[at.rank * parts.part[at.part].a_stride + k];
}

/* beside [T, room]: ones and zeros behind its first `ranks` columns; u [T, ...] = the others without the rounding. */
__global__ void __launch_bounds__(THREADS)
    joined_finish_kernel(linear_parts parts, int64_t T, int ranks, int room, __nv_bfloat16 *beside, int64_t stride,
                         __nv_bfloat16 *u, int64_t u_stride)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, t = i / room;
    if (t >= T) return;
    const int c = (int)(i % room);
    __nv_bfloat16 *value = beside + t * stride + c;
    if (c >= ranks) {
        *value = to_bf16(c - ranks < BIAS_TERMS ? 1.0f : 0.0f);
        return;
    }
    const padded_column at = column_of_padded(parts, c);
    if (at.rank >= 0) u[t * u_stride + parts.part[at.part].first_rank + at.rank] = *value;
}

__global__ void __launch_bounds__(THREADS)
    joined_spread_kernel(linear_parts parts, int64_t T, int ranks, const __nv_bfloat16 *u, int64_t u_stride,
                         __nv_bfloat16 *padded)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, t = i / ranks;
    if (t >= T) return;
    const padded_column at = column_of_padded(parts, (int)(i % ranks));
    padded[i] = at.rank < 0 ? to_bf16(0.0f) : u[t * u_stride + parts.part[at.part].first_rank + at.rank];
}

unsigned blocks_for(int64_t n) { return (unsigned)divide_up(n, THREADS); }

nib_status fill_base(nib_ops *ops, const nib_linear *linear, nib_matrix weight)
{
    for (int64_t p = 0, row = 0; p < linear->parts; row += linear->part[p++].rows) {
        const nib_linear_part *part = &linear->part[p];
        nib_matrix rows = nib_matrix_rows(weight, row, part->rows);
        NIB_TRY(part->nf4.codes != NULL ? nib_cuda_nf4_dequantize(ops, &part->nf4, rows)
                                        : nib_cuda_convert(ops, part->dense, rows));
    }
    return NIB_OK;
}

nib_status fill_beside(nib_ops *ops, const nib_linear *linear, const nib_cuda_joined *j)
{
    const linear_parts parts = linear_parts_of(linear, nib_dropout{});
    if (j->room > 0)
        NIB_TRY(nib_cuda_launch(joined_columns_kernel, dim3(blocks_for(j->N * j->room)), dim3(THREADS), 0,
                                nib_cuda_stream(ops), parts, j->N, (int)j->ranks, (int)j->room, bf16_of(j->beside),
                                j->beside.stride));
    if (j->ranks == 0) return NIB_OK;
    return nib_cuda_launch(joined_rows_kernel, dim3(blocks_for(j->K), (unsigned)j->ranks), dim3(THREADS), 0,
                           nib_cuda_stream(ops), parts, bf16_of(j->a), j->a.stride);
}

nib_cuda_joined sizes_of(const nib_linear *linear)
{
    nib_cuda_joined j = {};
    j.N = nib_linear_outputs(linear);
    j.K = linear->K;
    j.ranks = nib_linear_padded_ranks(linear);
    j.room = nib_linear_room(linear);
    return j;
}

} // namespace

nib_status nib_cuda_joined_take(nib_ops *ops, int64_t rows, int64_t columns, nib_matrix *matrix)
{
    const int64_t stride = divide_up(columns, 8) * 8;
    *matrix = {NULL, rows, columns, stride, NIB_DTYPE_BF16};
    return nib_arena_take(ops->scratch, rows * stride, sizeof(nib_bf16), &matrix->data);
}

nib_status nib_cuda_joined_adapters(nib_ops *ops, const nib_linear *linear, nib_cuda_joined *joined)
{
    nib_cuda_joined j = sizes_of(linear);
    NIB_TRY(nib_cuda_joined_take(ops, j.N, j.room, &j.beside));
    NIB_TRY(nib_cuda_joined_take(ops, j.ranks, j.K, &j.a));
    j.b = nib_matrix_columns(j.beside, 0, j.ranks);
    *joined = j;
    return fill_beside(ops, linear, joined);
}

nib_status nib_cuda_joined_weight(nib_ops *ops, const nib_linear *linear, nib_cuda_joined *joined)
{
    const nib_linear_part *only = &linear->part[0];
    nib_matrix all;
    nib_cuda_joined j = sizes_of(linear);
    const bool ready =
        linear->parts == 1 && j.room == 0 && only->nf4.codes == NULL && only->dense.dtype == NIB_DTYPE_BF16;
    if (ready)
        all = only->dense;
    else
        NIB_TRY(nib_cuda_joined_take(ops, j.N + j.ranks, j.K + j.room, &all));
    j.rows = nib_matrix_rows(all, 0, j.N);
    j.columns = nib_matrix_columns(all, 0, j.K);
    j.a = nib_matrix_rows(j.columns, j.N, j.ranks);
    j.beside = nib_matrix_columns(j.rows, j.K, j.room);
    j.b = nib_matrix_columns(j.beside, 0, j.ranks);
    *joined = j;
    if (ready) return NIB_OK;
    NIB_TRY(fill_base(ops, linear, nib_matrix_rows(j.columns, 0, j.N)));
    return fill_beside(ops, linear, joined);
}

nib_status nib_cuda_joined_operand(nib_ops *ops, nib_matrix from, int64_t width, int64_t room, nib_matrix *operand)
{
    *operand = nib_matrix_columns(from, 0, width + room);
    if (from.columns >= width + room) return NIB_OK;
    NIB_TRY(nib_cuda_joined_take(ops, from.rows, width + room, operand));
    return nib_cuda_convert(ops, nib_matrix_columns(from, 0, width), nib_matrix_columns(*operand, 0, width));
}

nib_status nib_cuda_joined_finish(nib_ops *ops, const nib_linear *linear, nib_matrix beside, nib_matrix u)
{
    if (beside.columns == 0) return NIB_OK;
    return nib_cuda_launch(joined_finish_kernel, dim3(blocks_for(beside.rows * beside.columns)), dim3(THREADS), 0,
                           nib_cuda_stream(ops), linear_parts_of(linear, nib_dropout{}), beside.rows,
                           (int)nib_linear_padded_ranks(linear), (int)beside.columns, bf16_of(beside), beside.stride,
                           bf16_of(u), u.stride);
}

nib_status nib_cuda_joined_spread(nib_ops *ops, const nib_linear *linear, nib_matrix u, nib_matrix *padded)
{
    const int64_t ranks = nib_linear_padded_ranks(linear);
    *padded = u;
    if (ranks == u.columns && whole_vectors(u)) return NIB_OK;
    NIB_TRY(nib_cuda_joined_take(ops, u.rows, ranks, padded));
    return nib_cuda_launch(joined_spread_kernel, dim3(blocks_for(u.rows * ranks)), dim3(THREADS), 0,
                           nib_cuda_stream(ops), linear_parts_of(linear, nib_dropout{}), u.rows, (int)ranks, bf16_of(u),
                           u.stride, bf16_of(*padded));
}
