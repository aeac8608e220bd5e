/* y[m][n] = sum over k of x[m][k] w[n][k], + scale * sum over r of u[m][r] b[n][r], with DoRA times gain[n], + bias[n],
 * for 9 to 64 rows m
 * (fewer: cuda/nf4_matvec.cu).
 *
 * y^T = W x^T on tensor cores: weights are operand A, decoded in registers (nf4_fragments.cuh), rows of x operand B.
 * A block of 8 warps makes 128 outputs, 16 a warp, for all rows, over a range of columns; blockIdx.y is the range. Each
 * writes its sums in fp32, and a second kernel adds the ranges in order, then the rest, and rounds. The number of
 * ranges depends on the shape alone, so the bits do not depend on the card.
 *
 * Codes and x come by asynchronous copies, STAGES - 1 steps of NF4_STEP columns ahead. A tile of x is [TOKENS][128]
 * bf16 in chunks of 16 bytes; chunk c of row r stands at c ^ (c / 8) ^ 2 (r % 2), with which the eight lanes of a
 * quarter warp (two tokens, chunks 4t + i) meet all banks once.
 *
 * 256 threads, 64 rows: 32 sums a thread; shared memory 3 x (16 + 8) KB and the table of nf4_decode.cuh.
 */
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/launch.cuh"
#include "cuda/linear_parts.cuh"
#include "cuda/nf4_fragments.cuh"
#include "cuda/nf4_matvec.h"
#include "cuda/nf4_small_matmul.h"

namespace
{

constexpr int WARPS = 8, THREADS = 32 * WARPS, STAGES = 3;
constexpr int BLOCK_ROWS = WARPS * NF4_TILE_ROWS; /* outputs */
constexpr int CHUNKS = NF4_STEP / 8;              /* of 16 bytes in a row of x's tile */

template <int TOKENS> constexpr int X_TILE_BYTES = TOKENS *NF4_STEP * 2;
template <int TOKENS> constexpr int STAGE_BYTES = X_TILE_BYTES<TOKENS> + WARPS *NF4_TILE_BYTES;

__device__ int x_chunk(int row, int chunk) { return (row * CHUNKS + (chunk ^ chunk / 8 ^ row % 2 * 2)) * 16; }

template <int TOKENS>
__device__ void fetch_x(const __nv_bfloat16 *x, int64_t x_stride, int M, int64_t k, int64_t K, uint8_t *tile)
{
#pragma unroll
    for (int i = (int)threadIdx.x; i < TOKENS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool valid = row < M && k + chunk * 8 < K;
        cp_async_16(tile + x_chunk(row, chunk), valid ? x + row * x_stride + k + chunk * 8 : x, valid);
    }
}

/* c += the step's products: 16 outputs of the warp with all tokens. */
template <int TOKENS>
__device__ void multiply_step(const nf4_lane_codes &codes, float2 absmax, const float *lane_table, const uint8_t *x,
                              float (&c)[TOKENS / 8][4])
{
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; j += 2) { /* a chunk of x serves two products */
        uint32_t first[4], second[4];
        nf4_fragment(codes, j, absmax, lane_table, first);
        nf4_fragment(codes, j + 1, absmax, lane_table, second);
#pragma unroll
        for (int i = 0; i < TOKENS / 8; i++) {
            const uint4 b = load16(x + x_chunk(8 * i + g, 4 * t + j / 2));
            mma_m16n8k16_bf16(c[i], first, b.x, b.y);
            mma_m16n8k16_bf16(c[i], second, b.z, b.w);
        }
    }
}

/* sums [ranges][M][N] fp32; a range is `columns` columns, a multiple of NF4_STEP. */
template <int TOKENS>
__global__ void __launch_bounds__(THREADS)
    nf4_small_matmul_kernel(linear_parts parts, nf4_values values, const __nv_bfloat16 *x, int64_t x_stride, int M,
                            int64_t N, int64_t columns, float *sums)
{
    uint8_t *stages = dynamic_shared<uint8_t>();
    float *table = reinterpret_cast<float *>(stages + STAGES * STAGE_BYTES<TOKENS>);
    nf4_fill_table(table, values); /* the loop's first barrier is before the first read */

    const int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    const int64_t output0 = (int64_t)blockIdx.x * BLOCK_ROWS + warp * NF4_TILE_ROWS;
    const bool has_rows = output0 < N;
    const linear_part &part = part_of_row(parts, has_rows ? output0 : 0);
    const nf4_lane_rows rows = nf4_lane_rows_of(part.nf4, has_rows ? output0 - part.first_row : 0, parts.K);
    const int64_t begin = (int64_t)blockIdx.y * columns;
    const int64_t end = begin + columns < parts.K ? begin + columns : parts.K;

    const auto fetch = [&](int64_t k, int stage) {
        uint8_t *at = stages + stage * STAGE_BYTES<TOKENS>;
        if (k < end) {
            fetch_x<TOKENS>(x, x_stride, M, k, end, at);
            nf4_fetch_codes(rows, k, at + X_TILE_BYTES<TOKENS> + warp * NF4_TILE_BYTES);
        }
        cp_async_commit();
    };
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(begin + stage * NF4_STEP, stage);

    float c[TOKENS / 8][4] = {};
    float2 next_absmax = nf4_lane_absmax(rows, begin);
    int stage = 0;
    for (int64_t k = begin; k < end; k += NF4_STEP, stage = (stage + 1) % STAGES) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* this stage is there for all, and all have done with the last one */
        fetch(k + (STAGES - 1) * NF4_STEP, (stage + STAGES - 1) % STAGES);
        const float2 absmax = next_absmax;
        next_absmax = nf4_lane_absmax(rows, k + NF4_STEP);
        const uint8_t *at = stages + stage * STAGE_BYTES<TOKENS>;
        const nf4_lane_codes codes = nf4_read_codes(at + X_TILE_BYTES<TOKENS> + warp * NF4_TILE_BYTES);
        multiply_step<TOKENS>(codes, absmax, nf4_lane_table(table), at, c);
    }
    cp_async_wait<0>();
    if (!has_rows) return;
#pragma unroll
    for (int i = 0; i < TOKENS / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int m = 8 * i + 2 * t + j % 2;
            if (m < M) sums[((int64_t)blockIdx.y * M + m) * N + output0 + g + 8 * (j / 2)] = c[i][j];
        }
}

__global__ void __launch_bounds__(THREADS)
    nf4_small_matmul_finish_kernel(linear_parts parts, const float *sums, int ranges, int M, int64_t N,
                                   const __nv_bfloat16 *u, int64_t u_stride, __nv_bfloat16 *y, int64_t y_stride)
{
    const int64_t output = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int m = (int)blockIdx.y;
    if (output >= N) return;
    float sum = 0.0f;
    for (int range = 0; range < ranges; range++) sum += sums[((int64_t)range * M + m) * N + output];
    const linear_part &part = part_of_row(parts, output);
    const __nv_bfloat16 *u_row = u == nullptr ? nullptr : u + m * u_stride;
    y[m * y_stride + output] = to_bf16(output_of(part, output - part.first_row, sum, u_row));
}

/* Enough blocks for two on each processor of the largest cards, but at least four steps in a range. */
int64_t columns_of_range(int64_t N, int64_t K)
{
    const int64_t blocks = (N + BLOCK_ROWS - 1) / BLOCK_ROWS, steps = (K + NF4_STEP - 1) / NF4_STEP;
    const int64_t wanted = (256 + blocks - 1) / blocks, most = steps / 4 > 0 ? steps / 4 : 1;
    const int64_t ranges = wanted < most ? wanted : most;
    return (steps + ranges - 1) / ranges * NF4_STEP;
}

template <int TOKENS>
nib_status launch(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    const cudaStream_t stream = nib_cuda_stream(ops);
    const linear_parts parts = linear_parts_of(linear, nib_dropout{});
    const int64_t N = y.columns, columns = columns_of_range(N, linear->K);
    const int ranges = (int)((linear->K + columns - 1) / columns), M = (int)x.rows;
    float *sums;
    NIB_TRY(nib_arena_take(ops->scratch, ranges * M * N, sizeof *sums, &sums));
    NIB_TRY(nib_cuda_launch(nf4_small_matmul_kernel<TOKENS>,
                            dim3((unsigned)((N + BLOCK_ROWS - 1) / BLOCK_ROWS), (unsigned)ranges), dim3(THREADS),
                            STAGES * STAGE_BYTES<TOKENS> + NF4_TABLE_BYTES, stream, parts, nf4_values_of_table(),
                            (const __nv_bfloat16 *)x.data, x.stride, M, N, columns, sums));
    return nib_cuda_launch(nf4_small_matmul_finish_kernel, dim3((unsigned)((N + THREADS - 1) / THREADS), (unsigned)M),
                           dim3(THREADS), 0, stream, parts, sums, ranges, M, N, (const __nv_bfloat16 *)u.data, u.stride,
                           (__nv_bfloat16 *)y.data, y.stride);
}

} // namespace

bool nib_cuda_nf4_small_matmul_takes(const nib_linear *linear, int64_t rows)
{
    bool takes = rows <= NIB_CUDA_SMALL_MATMUL_ROWS && linear->K % 64 == 0;
    for (int p = 0; p < linear->parts; p++) takes = takes && linear->part[p].nf4.codes != NULL;
    return takes;
}

nib_status nib_cuda_nf4_small_matmul_check(const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    const int64_t N = nib_linear_outputs(linear);
    if (!nib_cuda_nf4_small_matmul_takes(linear, x.rows))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "nf4_small_matmul %s: x is [%lld, %lld], expected at most %d rows, columns a "
                        "multiple of 64, and weights in NF4",
                        linear->name, (long long)x.rows, (long long)x.columns, NIB_CUDA_SMALL_MATMUL_ROWS);
    if (x.dtype != NIB_DTYPE_BF16 || y.dtype != NIB_DTYPE_BF16 || x.columns != linear->K || y.columns != N ||
        y.rows != x.rows || x.stride % 8 != 0 || (uintptr_t)x.data % 16 != 0)
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "nf4_small_matmul %s: x [%lld, %lld] in rows of %lld to y [%lld, %lld], "
                        "expected [T, %lld] in 16-byte aligned rows to [T, %lld], both BF16",
                        linear->name, (long long)x.rows, (long long)x.columns, (long long)x.stride, (long long)y.rows,
                        (long long)y.columns, (long long)linear->K, (long long)N);
    if (u.data != NULL && (u.rows != x.rows || u.columns != nib_linear_ranks(linear) || u.dtype != NIB_DTYPE_BF16))
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_small_matmul %s: u is [%lld, %lld], expected [%lld, %lld] BF16",
                        linear->name, (long long)u.rows, (long long)u.columns, (long long)x.rows,
                        (long long)nib_linear_ranks(linear));
    for (int p = 0; p < linear->parts; p++)
        if ((uintptr_t)linear->part[p].nf4.codes % 16 != 0)
            return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_small_matmul %s: the codes of part %d are not 16-byte aligned",
                            linear->name, p);
    return NIB_OK;
}

nib_status nib_cuda_nf4_small_matmul(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_matrix u, nib_matrix y)
{
    NIB_TRY(nib_cuda_nf4_small_matmul_check(linear, x, u, y));
    if (x.rows == 0) return NIB_OK;
    const bool few = x.rows <= NIB_CUDA_MATVEC_ROWS;
    if (nib_cuda_is_plain(ops, few ? NIB_CUDA_NF4_MATVEC : NIB_CUDA_NF4_SMALL_MATMUL))
        return nib_cuda_nf4_small_matmul_plain(ops, linear, x, u, y);
    for (int p = 0; p < linear->parts; p++) /* a tile of outputs is of one part */
        if (linear->part[p].rows % NF4_TILE_ROWS != 0) return nib_cuda_nf4_small_matmul_plain(ops, linear, x, u, y);
    if (few) return nib_cuda_nf4_matvec(ops, linear, x, u, y);
    const size_t mark = ops->scratch->used;
    const nib_status status = x.rows <= 16   ? launch<16>(ops, linear, x, u, y)
                              : x.rows <= 32 ? launch<32>(ops, linear, x, u, y)
                                             : launch<64>(ops, linear, x, u, y);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
