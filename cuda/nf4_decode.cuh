/* Decoding NF4 on the device: what every kernel that reads NF4 weights shares.
 *
 * A weight is nf4_value[code] * absmax in fp32. The sixteen values stand in shared memory once for each lane, so that
 * any lane reads any value without a bank conflict: one load a weight. A block of 64 weights has one absmax.
 */
#ifndef NIB_CUDA_NF4_DECODE_CUH
#define NIB_CUDA_NF4_DECODE_CUH

#include "cuda/c_headers.h"
#include "cuda/intrinsics.cuh"

/* The values of model/nf4_tables.c, as a kernel argument. */
struct nf4_values {
    float value[16];
};

inline nf4_values nf4_values_of_table()
{
    nf4_values values;
    for (int i = 0; i < 16; i++) values.value[i] = nib_nf4_values[i];
    return values;
}

constexpr int NF4_TABLE_FLOATS = 16 * 32;
constexpr int NF4_TABLE_BYTES = NF4_TABLE_FLOATS * 4;

/* By the block's first warp; a barrier must follow before the table is read. */
__device__ inline void nf4_fill_table(float *table, const nf4_values &values)
{
    if (threadIdx.x >= 32) return;
#pragma unroll
    for (int i = 0; i < 16; i++) table[i * 32 + threadIdx.x] = values.value[i];
}

/* The column of the table that the calling lane reads. */
__device__ inline const float *nf4_lane_table(const float *table) { return table + threadIdx.x % 32; }

/* absmax of block number `block`, restored as bitsandbytes does: each step is rounded. */
__device__ inline float nf4_absmax(const nib_nf4 &weight, int64_t block)
{
    if (weight.absmax != nullptr) return __ldg(weight.absmax + block);
    const float code = __ldg(weight.nested_map + __ldg(weight.absmax_codes + block));
    return __fadd_rn(__fmul_rn(code, __ldg(weight.nested_absmax + (block >> 8))), weight.nested_offset);
}

/* Weight 2 * byte and 2 * byte + 1 of eight packed in a word: the high nibble comes first. */
__device__ inline float2 nf4_pair(uint32_t codes, int byte, const float *lane_table, float absmax)
{
    const uint32_t high = codes >> (8 * byte + 4) & 15, low = codes >> (8 * byte) & 15;
    return make_float2(__fmul_rn(lane_table[high * 32], absmax), __fmul_rn(lane_table[low * 32], absmax));
}

/* The same, rounded to bf16. */
__device__ inline uint32_t nf4_pair_bf16(uint32_t codes, int byte, const float *lane_table, float absmax)
{
    const float2 pair = nf4_pair(codes, byte, lane_table, absmax);
    return pack_bf16(pair.x, pair.y);
}

#endif
