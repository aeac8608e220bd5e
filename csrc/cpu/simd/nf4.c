/* NF4 weights decoded in registers. The 16 values that a block can hold are one table in registers, already scaled and
 * rounded to bf16, and a permutation looks up a vector of codes at once. Contracts: cpu/kernels.h, cpu/nf4.h. */
#include "cpu/nf4.h"
#include "cpu/simd/few_rows.h"
#include "cpu/simd/level.h"
#include "cpu/simd/vector.h"

ALWAYS_INLINE vec_table scaled_table(vec_table nf4, float absmax)
{
    vec_table table;
    for (int i = 0; i < VEC_TABLE_PARTS; i++) table.part[i] = vec_round_bf16(nf4.part[i] * vec_set(absmax));
    return table;
}

void NIB_SIMD(nib_nf4_decode)(const uint8_t *codes, float absmax, nib_dtype dtype, void *out)
{
    const vec_table table = scaled_table(vec_table_load(nib_nf4_values), absmax);
    if (dtype == NIB_DTYPE_F32) {
        for (int i = 0; i < 64; i += LANES) vec_store((float *)out + i, vec_pick(table, vec_nibbles(codes + i / 2)));
        return;
    }
#if defined __AVX512F__ /* a permutation of words, 32 weights at once */
    const __m512i words = _mm512_castsi256_si512(vec_narrow(table.part[0]));
    for (int i = 0; i < 64; i += 32) {
        __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i / 2)));
        __m512i pair = _mm512_or_si512(_mm512_srli_epi32(byte, 4),
                                       _mm512_slli_epi32(_mm512_and_si512(byte, _mm512_set1_epi32(15)), 16));
        _mm512_storeu_si512((nib_bf16 *)out + i, _mm512_permutexvar_epi16(pair, words));
    }
#else
    for (int i = 0; i < 64; i += LANES)
        vec_store_bf16((nib_bf16 *)out + i, vec_pick(table, vec_nibbles(codes + i / 2)));
#endif
}

ALWAYS_INLINE void dot_rows(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int M, const float *x, float *y)
{
    const vec_table nf4 = vec_table_load(nib_nf4_values);
    const int second = second_sum(M, 6);
    const uint8_t *codes = weight->codes + first_block * 32;
    vec sum[NIB_CPU_MATVEC_ROWS][2];
    for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = vec_zero();
    for (int64_t b = 0; b < blocks; b++, codes += 32) {
        __builtin_prefetch(codes + WEIGHTS_AHEAD);
        const vec_table table = scaled_table(nf4, nib_cpu_nf4_absmax(weight, first_block + b));
        for (int i = 0; i < 32; i += LANES) { /* bytes: of 64 weights */
            const vec_index pair = vec_bytes(codes + i);
            const vec high = vec_pick(table, vec_high(pair)), low = vec_pick(table, pair);
            for (int m = 0; m < M; m++) {
                const float *even = x + (m * blocks + b) * 64 + i / 16 * 32 + i % 16;
                sum[m][0] = vec_fma(high, vec_load(even), sum[m][0]);
                sum[m][second] = vec_fma(low, vec_load(even + 16), sum[m][second]);
            }
        }
    }
    for (int m = 0; m < M; m++) y[m] = vec_sum(sum[m][0] + sum[m][1]);
}

void NIB_SIMD(nib_nf4_dot)(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int64_t M, const float *x,
                           float *y)
{
#define DOT(rows) dot_rows(weight, first_block, blocks, rows, x, y)
    FOR_CONSTANT_ROWS(M, DOT);
#undef DOT
}
