/* Products of NF4 weights with few rows: each block of 64 weights is decoded into registers and used at once, so that a
 * generated token reads half a byte a weight. */
#include "cpu/backend_internal.h"
#include "cpu/nf4.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* One output feature: y[m] = sum over k of w[k] x[m][k]. x has every 32 values as 16 even-indexed, 16 odd-indexed ones,
 * since a byte's high nibble comes first. */
typedef void (*dot_rows)(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int64_t M, int64_t K,
                         const float *x, float *y);

static void dot_portable(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int64_t M, int64_t K,
                         const float *x, float *y)
{
    float sum[NIB_CPU_MATVEC_ROWS] = {0};
    for (int64_t b = 0; b < blocks; b++) {
        float values[16], w[64];
        const uint8_t *codes = weight->codes + (first_block + b) * 32;
        nib_cpu_nf4_block_values(nib_cpu_nf4_absmax(weight, first_block + b), values);
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < 16; i++) {
                w[32 * half + i] = values[codes[16 * half + i] >> 4];
                w[32 * half + 16 + i] = values[codes[16 * half + i] & 15];
            }
        for (int64_t m = 0; m < M; m++) {
            float part = 0.0f;
            for (int i = 0; i < 64; i++) part += w[i] * x[m * K + b * 64 + i];
            sum[m] += part;
        }
    }
    for (int64_t m = 0; m < M; m++) y[m] = sum[m];
}

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

/* nib_cpu_nf4_block_values in one register: round to nearest even at bit 16 (no NaN can occur: absmax is finite). */
AVX512 static inline __m512 block_table(__m512 nf4, float absmax)
{
    __m512i bits = _mm512_castps_si512(_mm512_mul_ps(nf4, _mm512_set1_ps(absmax)));
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000u)));
}

/* M is a constant at each call, so that the sums stay in registers. */
AVX512 static inline __attribute__((always_inline)) void
dot_m(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int M, int64_t K, const float *x, float *y)
{
    const __m512 nf4 = _mm512_loadu_ps(nib_nf4_values);
    __m512 sum[NIB_CPU_MATVEC_ROWS][2];
    for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
    const uint8_t *codes = weight->codes + first_block * 32;
    for (int64_t b = 0; b < blocks; b++, codes += 32) {
        __m512 table = block_table(nf4, nib_cpu_nf4_absmax(weight, first_block + b));
        for (int half = 0; half < 2; half++) {
            __m512i pair = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16 * half)));
            __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(pair, 4), table);
            __m512 low = _mm512_permutexvar_ps(pair, table); /* only the low four bits of an index count */
            for (int m = 0; m < M; m++) {
                const float *at = x + m * K + b * 64 + 32 * half;
                sum[m][0] = _mm512_fmadd_ps(high, _mm512_loadu_ps(at), sum[m][0]);
                sum[m][1] = _mm512_fmadd_ps(low, _mm512_loadu_ps(at + 16), sum[m][1]);
            }
        }
    }
    for (int m = 0; m < M; m++) y[m] = _mm512_reduce_add_ps(_mm512_add_ps(sum[m][0], sum[m][1]));
}

AVX512 static void dot_avx512(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int64_t M, int64_t K,
                              const float *x, float *y)
{
    switch (M) {
    case 1:
        dot_m(weight, first_block, blocks, 1, K, x, y);
        return;
    case 2:
        dot_m(weight, first_block, blocks, 2, K, x, y);
        return;
    case 3:
        dot_m(weight, first_block, blocks, 3, K, x, y);
        return;
    case 4:
        dot_m(weight, first_block, blocks, 4, K, x, y);
        return;
    case 5:
        dot_m(weight, first_block, blocks, 5, K, x, y);
        return;
    case 6:
        dot_m(weight, first_block, blocks, 6, K, x, y);
        return;
    case 7:
        dot_m(weight, first_block, blocks, 7, K, x, y);
        return;
    default:
        dot_m(weight, first_block, blocks, 8, K, x, y);
        return;
    }
}

#define AVX2 __attribute__((target("avx2,fma")))

/* Eight table values by four-bit index: two permutes of half a table, chosen by bit 3. */
AVX2 static inline __m256 lookup(__m256 low, __m256 high, __m256i index)
{
    __m256 a = _mm256_permutevar8x32_ps(low, index), b = _mm256_permutevar8x32_ps(high, index);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

AVX2 static void dot_avx2(const nib_nf4 *weight, int64_t first_block, int64_t blocks, int64_t M, int64_t K,
                          const float *x, float *y)
{
    __m256 sum[NIB_CPU_MATVEC_ROWS];
    for (int64_t m = 0; m < M; m++) sum[m] = _mm256_setzero_ps();
    const uint8_t *codes = weight->codes + first_block * 32;
    for (int64_t b = 0; b < blocks; b++, codes += 32) {
        float values[16];
        nib_cpu_nf4_block_values(nib_cpu_nf4_absmax(weight, first_block + b), values);
        __m256 first = _mm256_loadu_ps(values), second = _mm256_loadu_ps(values + 8);
        for (int eighth = 0; eighth < 4; eighth++) {
            __m256i pair = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + 8 * eighth)));
            __m256 high = lookup(first, second, _mm256_srli_epi32(pair, 4)), low = lookup(first, second, pair);
            for (int64_t m = 0; m < M; m++) {
                const float *at = x + m * K + b * 64 + eighth / 2 * 32 + eighth % 2 * 8;
                sum[m] = _mm256_fmadd_ps(high, _mm256_loadu_ps(at), sum[m]);
                sum[m] = _mm256_fmadd_ps(low, _mm256_loadu_ps(at + 16), sum[m]);
            }
        }
    }
    for (int64_t m = 0; m < M; m++) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum[m]), _mm256_extractf128_ps(sum[m], 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        y[m] = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
}
#endif

static dot_rows best_dot(const nib_cpu_context *context)
{
#if defined(__x86_64__)
    if (context->avx512) return dot_avx512;
    if (context->avx2) return dot_avx2;
#else
    (void)context;
#endif
    return dot_portable;
}

nib_status nib_cpu_nf4_matvec(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K, int64_t M, const float *x,
                              float *y, int64_t y_stride)
{
    if (M > NIB_CPU_MATVEC_ROWS || K % 64 != 0)
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_matvec: M = %lld, K = %lld, expected M <= %d and K a multiple of 64",
                        (long long)M, (long long)K, NIB_CPU_MATVEC_ROWS);
    size_t mark = ops->scratch->used;
    float *split;
    NIB_TRY(nib_arena_take(ops->scratch, M * K, sizeof *split, &split));
    if (ops->rehearsal) goto done;
    for (int64_t i = 0; i < M * K; i += 32)
        for (int j = 0; j < 16; j++) {
            split[i + j] = x[i + 2 * j];
            split[i + 16 + j] = x[i + 2 * j + 1];
        }
    dot_rows dot = best_dot(nib_cpu_context_of(ops));
#pragma omp parallel for schedule(static) if (n * K > 16384)
    for (int64_t row = 0; row < n; row++) {
        float sums[NIB_CPU_MATVEC_ROWS];
        dot(weight, row * (K / 64), K / 64, M, K, split, sums);
        for (int64_t m = 0; m < M; m++) y[m * y_stride + row] = sums[m];
    }
done:
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
