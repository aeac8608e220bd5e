/* NF4 weights as an operand of the warp's matrix product, decoded in registers.
 *
 * A warp's tile is 16 output features by NF4_STEP columns, operand A of eight m16n8k16. Lane 4g + t holds rows g and
 * g + 8 at columns 32t .. 32t + 31: 16 bytes of codes a row, half a block, so one absmax a row. The order of k in a
 * product is free if both operands have the same one; here product j takes columns 32t + 4j .. 32t + 4j + 3 of lane t,
 * so that a lane's codes are consecutive, and so is its operand B: four columns of token g.
 */
#ifndef NIB_CUDA_NF4_FRAGMENTS_CUH
#define NIB_CUDA_NF4_FRAGMENTS_CUH

#include "cuda/nf4_decode.cuh"

constexpr int NF4_STEP = 128;
constexpr int NF4_TILE_ROWS = 16;
constexpr int NF4_TILE_BYTES = NF4_TILE_ROWS * NF4_STEP / 2;

/* The calling lane's rows of a weight [n, K], K a multiple of 64. */
struct nf4_lane_rows {
    nib_nf4 weight;
    int64_t first[2]; /* element at column 32t of rows g and g + 8 */
    int64_t columns;  /* from there to the end of the row; can be negative */
};

__device__ inline nf4_lane_rows nf4_lane_rows_of(const nib_nf4 &weight, int64_t row, int64_t K)
{
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    return {weight, {(row + g) * K + 32 * t, (row + g + 8) * K + 32 * t}, K - 32 * t};
}

/* Starts copying the lane's codes of the step at column k: 32 bytes of a tile of NF4_TILE_BYTES that no other lane
 * reads, so that the lane's own wait is enough. Past the end of the rows: code 0. */
__device__ inline void nf4_fetch_codes(const nf4_lane_rows &rows, int64_t k, uint8_t *tile)
{
    const bool valid = k < rows.columns;
#pragma unroll
    for (int i = 0; i < 2; i++)
        cp_async_16(tile + (32 * i + threadIdx.x % 32) * 16, rows.weight.codes + (valid ? (rows.first[i] + k) / 2 : 0),
                    valid);
}

/* absmax of the lane's half blocks of the step at column k; past the end of the rows 0, which makes the weights zeros.
 */
__device__ inline float2 nf4_lane_absmax(const nf4_lane_rows &rows, int64_t k)
{
    if (k >= rows.columns) return make_float2(0.0f, 0.0f);
    return make_float2(nf4_absmax(rows.weight, (rows.first[0] + k) / 64),
                       nf4_absmax(rows.weight, (rows.first[1] + k) / 64));
}

/* The lane's codes of a tile: one word for two products, of each row. */
struct nf4_lane_codes {
    uint32_t word[2][4];
};

__device__ inline nf4_lane_codes nf4_read_codes(const uint8_t *tile)
{
    const uint4 a = load16(tile + threadIdx.x % 32 * 16), b = load16(tile + (32 + threadIdx.x % 32) * 16);
    return {{{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}}};
}

/* Operand A of product j. */
__device__ inline void nf4_fragment(const nf4_lane_codes &codes, int j, float2 absmax, const float *lane_table,
                                    uint32_t (&a)[4])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int byte = 2 * (j % 2) + half;
        a[2 * half] = nf4_pair_bf16(codes.word[0][j / 2], byte, lane_table, absmax.x);
        a[2 * half + 1] = nf4_pair_bf16(codes.word[1][j / 2], byte, lane_table, absmax.y);
    }
}

#endif
