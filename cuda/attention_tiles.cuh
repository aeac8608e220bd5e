/* Tiles of attention on tensor cores (mma.sync m16n8k16, bf16 in, fp32 sums): what forward and backward share.
 *
 * A tile in shared memory is some rows of one head, TILE_STRIDE(HD) = HD + 8 elements apart: an odd number of 16-byte
 * units, so that the eight rows of an ldmatrix lie in different banks for every HD that is a multiple of 16. Rows at
 * and behind T are zeros: a hidden key has weight 0, and 0 times what lies behind the array may be NaN.
 *
 * Fragments (cuda/intrinsics.cuh): lane = 4 g + t holds rows g, g + 8 and columns 2t, 2t + 1 of each 16 x 8 of a sum;
 * two neighbouring 16 x 8 of a sum, rounded, are the 16 x 16 left operand of the next product, so probabilities never
 * leave the registers (Dao, "FlashAttention-2", 2023). */
#ifndef NIB_CUDA_ATTENTION_TILES_CUH
#define NIB_CUDA_ATTENTION_TILES_CUH

#include "cuda/attention_rule.cuh"

#define TILE_STRIDE(HD) ((HD) + 8)

/* The extremes over a tile's tokens, by which the rule says what of it can be seen. 16 bytes. */
typedef struct {
    int32_t end_least, end_most, position_least, position_most;
} nib_attention_extremes;

/* Takes extremes of all tiles of `tokens` tokens from scratch, and fills them. */
nib_status nib_attention_describe_tiles(nib_ops *ops, nib_tree tree, int tokens, nib_attention_extremes **extremes);
/* NIB_ERROR_SHAPE, naming op, unless the rows of the matrix start at multiples of 16 bytes. */
nib_status nib_attention_check_alignment(const char *op, const char *name, nib_matrix matrix);

/* What queries first_query .. last_query - 1 see of keys first_key .. first_key + keys - 1. */
enum tile_kind { TILE_EMPTY, TILE_MASKED, TILE_WHOLE };
__device__ __forceinline__ tile_kind tile_kind_of(int first_query, int last_query, nib_attention_extremes query,
                                                  int first_key, int keys, nib_attention_extremes key, int window)
{
    if (first_key >= last_query || key.end_most <= first_query) return TILE_EMPTY;
    if (window > 0 && query.position_least - key.position_most >= window) return TILE_EMPTY;
    if (first_key + keys - 1 > first_query || key.end_least < last_query) return TILE_MASKED;
    if (window > 0 && query.position_most - key.position_least >= window) return TILE_MASKED;
    return TILE_WHOLE;
}

__device__ __forceinline__ nib_attention_extremes load_extremes(const nib_attention_extremes *at)
{
    uint4 v = load16(at);
    return {(int)v.x, (int)v.y, (int)v.z, (int)v.w};
}

/* Extremes over tiles first .. last - 1. */
__device__ __forceinline__ nib_attention_extremes join_extremes(const nib_attention_extremes *of, int first, int last)
{
    nib_attention_extremes all = load_extremes(of + first);
    for (int i = first + 1; i < last; i++) {
        nib_attention_extremes one = load_extremes(of + i);
        all.end_least = min(all.end_least, one.end_least);
        all.end_most = max(all.end_most, one.end_most);
        all.position_least = min(all.position_least, one.position_least);
        all.position_most = max(all.position_most, one.position_most);
    }
    return all;
}

/* A tile of a walk; index is -1 behind the last. */
struct walked_tile {
    int index;
    bool masked;
};

/* Goes through the tiles that are not empty, in order; a warp looks at 32 at a time, all warps alike. */
struct tile_walk {
    int base, last;                /* tiles not looked at yet */
    unsigned seen = 0, masked = 0; /* of tiles base - 32 .. base - 1, those still to come */

    __device__ tile_walk(int first_, int last_) : base(first_), last(last_) {}

    /* kind_of(tile) says what a tile is. */
    template <class Kind> __device__ __forceinline__ walked_tile next(Kind kind_of)
    {
        while (seen == 0) {
            if (base >= last) return {-1, false};
            int mine = base + threadIdx.x % 32;
            tile_kind kind = mine < last ? kind_of(mine) : TILE_EMPTY;
            seen = __ballot_sync(0xffffffffu, kind != TILE_EMPTY);
            masked = __ballot_sync(0xffffffffu, kind == TILE_MASKED);
            base += 32;
        }
        int i = __ffs(seen) - 1;
        seen &= seen - 1;
        return {base - 32 + i, (masked >> i & 1) != 0};
    }
};

/* Starts the copy of rows first .. first + ROWS - 1 of a head; `head` is its row 0. */
template <int HD, int ROWS, int THREADS>
__device__ __forceinline__ void copy_tile(__nv_bfloat16 *tile, const __nv_bfloat16 *head, int64_t stride, int first,
                                          int T)
{
    constexpr int CHUNKS = HD / 8; /* of 16 bytes, in a row */
    static_assert(HD % 16 == 0, "rows in distinct banks");
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        bool valid = first + row < T;
        cp_async_16(tile + row * TILE_STRIDE(HD) + column, head + (valid ? first + row : 0) * stride + column, valid);
    }
}

/* 16 rows from `rows` on, 16 columns from k on, as a left operand. */
template <int HD> __device__ __forceinline__ void left_operand(uint32_t (&a)[4], const __nv_bfloat16 *rows, int k)
{
    int lane = threadIdx.x % 32;
    ldmatrix_x4(a, rows + lane % 16 * TILE_STRIDE(HD) + k + lane / 16 * 8);
}

/* sum[m] += A_m B^T: A_m the 16 rows from a + m * a_step rows on, B the N rows of the tile b; over HD columns. */
template <int HD, int N, int M>
__device__ __forceinline__ void multiply_rows(float (&sum)[M][N / 8][4], const __nv_bfloat16 *a, int a_step,
                                              const __nv_bfloat16 *b)
{
    int lane = threadIdx.x % 32;
    const __nv_bfloat16 *b_row = b + (lane % 8 + lane / 16 * 8) * TILE_STRIDE(HD) + lane / 8 % 2 * 8;
    /* Longer rows leave no registers for operands loaded ahead. */
#pragma unroll(HD <= 128 ? HD / 16 : 4)
    for (int k = 0; k < HD; k += 16) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) left_operand<HD>(left[m], a + m * a_step * TILE_STRIDE(HD), k);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            uint32_t right[4];
            ldmatrix_x4(right, b_row + n * TILE_STRIDE(HD) + k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(sum[m][n / 8], left[m], right[0], right[1]);
                mma_m16n8k16_bf16(sum[m][n / 8 + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/* sum[m] += A_m B: A_m [16, K] in registers, fp32, rounded here; B the K rows of the tile b, COLUMNS columns from b on.
 */
template <int HD, int K, int COLUMNS, int M>
__device__ __forceinline__ void multiply_columns(float (&sum)[M][COLUMNS / 8][4], const float (&a)[M][K / 8][4],
                                                 const __nv_bfloat16 *b)
{
    int lane = threadIdx.x % 32;
    const __nv_bfloat16 *b_row = b + lane % 16 * TILE_STRIDE(HD) + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                left[m][i] = pack_bf16(a[m][k / 8 + i / 2][i % 2 * 2], a[m][k / 8 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 16) {
            uint32_t right[4];
            ldmatrix_x4_trans(right, b_row + k * TILE_STRIDE(HD) + n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(sum[m][n / 8], left[m], right[0], right[1]);
                mma_m16n8k16_bf16(sum[m][n / 8 + 1], left[m], right[2], right[3]);
            }
        }
    }
}

template <int M, int N> __device__ __forceinline__ void clear(float (&sum)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m][n][i] = 0.0f;
}

/* Rounds 16 rows of sums into `tile`, which only this warp uses, and from there to rows first .. first + 15 below T of
 * a head's COLUMNS columns, 16 bytes at a time. factor[0] scales rows 0-7, factor[1] rows 8-15: those of this lane. */
template <int HD, int COLUMNS>
__device__ __forceinline__ void store_rows(const float (&sum)[COLUMNS / 8][4], const float (&factor)[2],
                                           __nv_bfloat16 *tile, __nv_bfloat16 *head, int64_t stride, int first, int T)
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *reinterpret_cast<uint32_t *>(tile + (g + 8 * r) * TILE_STRIDE(HD) + 8 * n + 2 * t) =
                pack_bf16(sum[n][2 * r] * factor[r], sum[n][2 * r + 1] * factor[r]);
    __syncwarp();
    for (int i = lane; i < 16 * (COLUMNS / 8); i += 32) {
        int row = i / (COLUMNS / 8), column = i % (COLUMNS / 8) * 8;
        if (first + row < T)
            store16(head + (first + row) * stride + column, load16(tile + row * TILE_STRIDE(HD) + column));
    }
}

/* tanh from one exponential and one division; the error is some 1e-7, absolute. */
__device__ __forceinline__ float tanh_approx(float x)
{
    return 1.0f - __fdividef(2.0f, 1.0f + exp2_approx(2.0f * NIB_LOG2_E * x));
}

#endif
