/* The gradients of adapters, G[r][c] = sum over tokens t of v[t][r] m[t][c]: of A with m = dropout(x), v = du, all
 * parts' at once unless each has a mask of its own; of B with m = dy, v = u, part by part. m is read once for 64 ranks,
 * which is what bounds it.
 *
 * m^T v on tensor cores: a block of 4 warps has COLUMNS columns of m, 32 a warp, and RANKS ranks, over one split of the
 * tokens; both operands lie in shared memory by tokens, as in global memory, and are read transposed (ldmatrix.trans).
 * Tiles of TOKENS tokens come by asynchronous copies, STAGES - 1 ahead; masks are applied to a tile in place, four
 * columns (one Philox counter) at a time. Each split writes its sums, fp32 [splits][R][C]; a second kernel adds them to
 * the gradient in order. The number of splits depends on the shape alone, so the bits do not depend on the card.
 *
 * 128 threads, RANKS sums a thread; shared memory: STAGES (TOKENS (COLUMNS + 8) + TOKENS (RANKS + 8)) bf16, 40 KB at
 * 64 ranks. Rows of 16-byte chunks, an odd number of them: ldmatrix meets no bank twice. */
#include "cuda/backend.h"
#include "cuda/convert.h"
#include "cuda/dropout.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear_joined.h"
#include "cuda/lora.h"
#include "cuda/vector.cuh"

namespace
{

constexpr int WARPS = 4, THREADS = 32 * WARPS, STAGES = 3, TOKENS = 32, COLUMNS = 128, SUM_THREADS = 256;
constexpr int M_STRIDE = COLUMNS + 8;
constexpr int64_t ENOUGH_BLOCKS = 512, FEWEST_TOKENS = 256; /* of a grid, of a split */

template <int RANKS> constexpr int V_STRIDE = RANKS + 8;
template <int RANKS> constexpr int SHARED_BYTES = STAGES *TOKENS *(M_STRIDE + V_STRIDE<RANKS>)*2;

/* bf16 [T, columns], 16-byte aligned rows of whole vectors. */
struct rows_in {
    const __nv_bfloat16 *data;
    int64_t stride, columns;
};

struct column_mask {
    const uint64_t *key;
    float p, keep;
};

/* Starts the copy of WIDTH columns from `first` on of tokens t .. t + TOKENS - 1; zeros from `end` on and behind the
 * columns. */
template <int WIDTH, int STRIDE>
__device__ void fetch_tile(rows_in from, int64_t first, int64_t t, int64_t end, __nv_bfloat16 *tile)
{
#pragma unroll
    for (int i = (int)threadIdx.x; i < TOKENS * (WIDTH / 8); i += THREADS) {
        const int row = i / (WIDTH / 8), column = i % (WIDTH / 8) * 8;
        const bool valid = t + row < end && first + column < from.columns;
        cp_async_16(tile + row * STRIDE + column,
                    valid ? from.data + (t + row) * from.stride + first + column : from.data, valid);
    }
}

__device__ void drop_tile(column_mask mask, int64_t first, int64_t t, __nv_bfloat16 *tile)
{
    const uint64_t key = *mask.key;
    for (int i = (int)threadIdx.x; i < TOKENS * (COLUMNS / 4); i += THREADS) {
        const int row = i / (COLUMNS / 4), column = i % (COLUMNS / 4) * 4;
        uint32_t *pair = reinterpret_cast<uint32_t *>(tile + row * M_STRIDE + column);
        float factor[4];
        dropout_factors(key, mask.p, mask.keep, t + row, first + column, factor);
        for (int half = 0; half < 2; half++) {
            const float2 x = unpack_bf16(pair[half]);
            pair[half] = pack_bf16(x.x * factor[2 * half], x.y * factor[2 * half + 1]);
        }
    }
}

/* sum += the warp's 32 columns of m, transposed, times v, over the tile's tokens. */
template <int RANKS>
__device__ void multiply_tile(const __nv_bfloat16 *m, const __nv_bfloat16 *v, float (&sum)[2][RANKS / 8][4])
{
    const int lane = (int)threadIdx.x % 32;
    m += (lane % 8 + lane / 16 * 8) * M_STRIDE + (int)threadIdx.x / 32 * 32 + lane / 8 % 2 * 8;
    v += lane % 16 * V_STRIDE<RANKS> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < TOKENS; k += 16) {
        uint32_t left[2][4];
        ldmatrix_x4_trans(left[0], m + k * M_STRIDE);
        ldmatrix_x4_trans(left[1], m + k * M_STRIDE + 16);
#pragma unroll
        for (int n = 0; n < RANKS; n += 16) {
            uint32_t right[4];
            ldmatrix_x4_trans(right, v + k * V_STRIDE<RANKS> + n);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                mma_m16n8k16_bf16(sum[half][n / 8], left[half], right[0], right[1]);
                mma_m16n8k16_bf16(sum[half][n / 8 + 1], left[half], right[2], right[3]);
            }
        }
    }
}

/* grid (C / COLUMNS, splits of `split` tokens, R / RANKS); sums [splits][R][C]. */
template <int RANKS, bool DROPOUT>
__global__ void __launch_bounds__(THREADS)
    lora_gradients_kernel(rows_in m, rows_in v, int64_t T, int64_t split, column_mask mask, float *sums)
{
    __nv_bfloat16 *m_tiles = dynamic_shared<__nv_bfloat16>(), *v_tiles = m_tiles + STAGES * TOKENS * M_STRIDE;
    const int64_t column = (int64_t)blockIdx.x * COLUMNS, rank = (int64_t)blockIdx.z * RANKS;
    const int64_t begin = blockIdx.y * split, end = begin + split < T ? begin + split : T;
    const auto fetch = [&](int64_t t, int stage) {
        if (t < end) {
            fetch_tile<COLUMNS, M_STRIDE>(m, column, t, end, m_tiles + stage * TOKENS * M_STRIDE);
            fetch_tile<RANKS, V_STRIDE<RANKS>>(v, rank, t, end, v_tiles + stage * TOKENS * V_STRIDE<RANKS>);
        }
        cp_async_commit();
    };
    float sum[2][RANKS / 8][4] = {};
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(begin + stage * TOKENS, stage);
    int stage = 0;
    for (int64_t t = begin; t < end; t += TOKENS, stage = (stage + 1) % STAGES) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* this tile has come, and the last one's buffer is free */
        fetch(t + (STAGES - 1) * TOKENS, (stage + STAGES - 1) % STAGES);
        if (DROPOUT) {
            drop_tile(mask, column, t, m_tiles + stage * TOKENS * M_STRIDE);
            __syncthreads();
        }
        multiply_tile<RANKS>(m_tiles + stage * TOKENS * M_STRIDE, v_tiles + stage * TOKENS * V_STRIDE<RANKS>, sum);
    }

    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    sums += blockIdx.y * v.columns * m.columns;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < RANKS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int64_t c = column + 32 * warp + 16 * half + lane / 4 + i / 2 * 8;
                const int64_t r = rank + 8 * n + lane % 4 * 2 + i % 2;
                if (c < m.columns && r < v.columns) sums[r * m.columns + c] = sum[half][n][i];
            }
}

/* Where rows first_rank .. first_rank + rank - 1 of the sums go, times factor: [rank, C], or transposed [C, rank]. */
struct gradient_out {
    float *data;
    int64_t first_rank, rank;
    float factor;
    bool transposed;
};

__global__ void __launch_bounds__(SUM_THREADS)
    lora_add_splits_kernel(const float *sums, int64_t splits, int64_t R, int64_t C, gradient_out out)
{
    const int64_t i = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x, r = i / C, c = i % C;
    if (r >= out.rank) return;
    float total = 0.0f;
    for (int64_t s = 0; s < splits; s++) total += sums[(s * R + out.first_rank + r) * C + c];
    float *at = out.data + (out.transposed ? c * out.rank + r : i);
    *at = fmaf(out.factor, total, *at);
}

/* One product's sums in ops->scratch. */
struct split_sums {
    float *data;
    int64_t splits, R, C;
};

rows_in in(nib_matrix m) { return {bf16_of(m), m.stride, m.columns}; }

template <int RANKS>
nib_status launch(nib_ops *ops, nib_matrix m, nib_matrix v, const column_mask *mask, split_sums *sums)
{
    const int64_t T = m.rows, blocks = divide_up(m.columns, COLUMNS), tiles = divide_up(v.columns, RANKS);
    const int64_t wanted = divide_up(ENOUGH_BLOCKS, blocks * tiles), most = divide_up(T, FEWEST_TOKENS);
    const int64_t split = divide_up(divide_up(T, wanted < most ? wanted : most), TOKENS) * TOKENS;
    const dim3 grid((unsigned)blocks, (unsigned)divide_up(T, split), (unsigned)tiles);
    *sums = {NULL, grid.y, v.columns, m.columns};
    NIB_TRY(nib_arena_take(ops->scratch, sums->splits * sums->R * sums->C, sizeof(float), &sums->data));
    if (mask != NULL)
        return nib_cuda_launch(lora_gradients_kernel<RANKS, true>, grid, dim3(THREADS), SHARED_BYTES<RANKS>,
                               nib_cuda_stream(ops), in(m), in(v), T, split, *mask, sums->data);
    return nib_cuda_launch(lora_gradients_kernel<RANKS, false>, grid, dim3(THREADS), SHARED_BYTES<RANKS>,
                           nib_cuda_stream(ops), in(m), in(v), T, split, column_mask{}, sums->data);
}

nib_status multiply(nib_ops *ops, nib_matrix m, nib_matrix v, const column_mask *mask, split_sums *sums)
{
    return v.columns <= 16 ? launch<16>(ops, m, v, mask, sums) : launch<64>(ops, m, v, mask, sums);
}

nib_status add(nib_ops *ops, const split_sums *sums, gradient_out out)
{
    if (out.data == NULL) return NIB_OK;
    return nib_cuda_launch(lora_add_splits_kernel, dim3((unsigned)divide_up(out.rank * sums->C, SUM_THREADS)),
                           dim3(SUM_THREADS), 0, nib_cuda_stream(ops), sums->data, sums->splits, sums->R, sums->C, out);
}

/* m itself, or a copy whose rows are whole vectors; what stands behind its columns there goes into sums that nobody
 * reads. */
nib_status aligned(nib_ops *ops, nib_matrix *m)
{
    if (whole_vectors(*m)) return NIB_OK;
    const nib_matrix from = *m;
    m->stride = divide_up(m->columns, VECTOR) * VECTOR;
    NIB_TRY(nib_arena_take(ops->scratch, m->rows * m->stride, sizeof(nib_bf16), &m->data));
    return nib_cuda_convert(ops, from, *m);
}

/* A walk over the parts that are trained. */
struct walk {
    int p;
    int64_t row, padded; /* the part's first output, and first padded rank */
    const nib_linear_part *part;
    int64_t width() const { return divide_up(part->lora.rank, 8) * 8; }
};

template <class Visit> nib_status each_part(const nib_linear *linear, Visit visit)
{
    walk at = {0, 0, 0, NULL};
    for (; at.p < linear->parts; at.p++) {
        at.part = &linear->part[at.p];
        if (at.part->lora.rank > 0) NIB_TRY(visit(at));
        at.row += at.part->rows;
        at.padded += at.width();
    }
    return NIB_OK;
}

nib_status gradients(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                     nib_matrix dy, nib_matrix du)
{
    split_sums of_all, of_part;
    const float keep = 1.0f / (1.0f - dropout.p);
    NIB_TRY(nib_cuda_joined_spread(ops, linear, u, &u));
    NIB_TRY(aligned(ops, &x));
    NIB_TRY(aligned(ops, &du));
    if (dropout.p <= 0.0f) NIB_TRY(multiply(ops, x, du, NULL, &of_all));
    return each_part(linear, [&](walk at) {
        const nib_lora *lora = &at.part->lora;
        const size_t mark = ops->scratch->used;
        nib_matrix dy_part = nib_matrix_columns(dy, at.row, at.part->rows);
        NIB_TRY(aligned(ops, &dy_part));
        NIB_TRY(multiply(ops, dy_part, nib_matrix_columns(u, at.padded, at.width()), NULL, &of_part));
        NIB_TRY(add(ops, &of_part, {lora->db, 0, lora->rank, lora->scale, true}));
        if (dropout.p > 0.0f) {
            const column_mask mask = {dropout.key + at.p, dropout.p, keep};
            NIB_TRY(multiply(ops, x, nib_matrix_columns(du, at.padded, at.width()), &mask, &of_part));
            NIB_TRY(add(ops, &of_part, {lora->da, 0, lora->rank, 1.0f, false}));
        } else {
            NIB_TRY(add(ops, &of_all, {lora->da, at.padded, lora->rank, 1.0f, false}));
        }
        nib_arena_reset(ops->scratch, mark); /* in one stream, the sums are read before anything is written there */
        return NIB_OK;
    });
}

} // namespace

nib_status nib_cuda_lora_gradients(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                   nib_matrix u, nib_matrix dy, nib_matrix du)
{
    bool trained = false;
    for (int p = 0; p < linear->parts; p++)
        trained = trained || linear->part[p].lora.da != NULL || linear->part[p].lora.db != NULL;
    if (!trained || x.rows == 0) return NIB_OK;
    const size_t mark = ops->scratch->used;
    const nib_status status = gradients(ops, linear, x, dropout, u, dy, du);
    nib_arena_reset(ops->scratch, mark);
    return status;
}
