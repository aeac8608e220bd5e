/* One vector of fp32 lanes, in the instruction set this file is compiled for. csrc/cpu/simd/ is compiled once for each
 * instruction set (CMakeLists.txt), so a kernel is written once: `vec` holds LANES floats, + - * / work on it.
 * Without x86's sets it is a compiler vector of four floats, and fused multiply-adds round twice. (cpu/vector.h serves
 * ops that work by rows, whose compiler vectors have neither the bf16 dot product nor the masks that tiles need.) */
#ifndef NIB_SIMD_VECTOR_H
#define NIB_SIMD_VECTOR_H

#include "cpu/exponential.h"
#include "model/ops.h"

#include <math.h>
#if defined __AVX512F__ || defined __AVX2__
#include <immintrin.h>
#endif

#if defined __AVX512F__
typedef __m512 vec;
typedef __m512i vec_index; /* LANES 32-bit integers */
#define LANES         16
#define VEC_REGISTERS 32
static inline vec vec_set(float x) { return _mm512_set1_ps(x); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* b if either is NaN */
static inline vec vec_round(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vec vec_abs(vec a) { return _mm512_abs_ps(a); }
/* where a < b: yes, else no */
static inline vec vec_if_less(vec a, vec b, vec yes, vec no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
/* a * 2^n for integral n, |n| <= 150 */
static inline vec vec_scale(vec a, vec n) { return _mm512_scalef_ps(a, n); }
#elif defined __AVX2__
typedef __m256 vec;
typedef __m256i vec_index;
#define LANES         8
#define VEC_REGISTERS 16
static inline vec vec_set(float x) { return _mm256_set1_ps(x); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec vec_round(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vec vec_abs(vec a) { return _mm256_andnot_ps(vec_set(-0.0f), a); }
static inline vec vec_if_less(vec a, vec b, vec yes, vec no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline vec vec_power_of_two(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
static inline vec vec_scale(vec a, vec n) /* in two halves, so that subnormal results round once, at the end */
{
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return a * vec_power_of_two(half) * vec_power_of_two(_mm256_sub_epi32(whole, half));
}
#else
typedef float vec __attribute__((vector_size(16)));
typedef uint32_t vec_index __attribute__((vector_size(16)));
#define LANES         4
#define VEC_REGISTERS 16
#define VEC_EACH(expression)                                                                                           \
    vec y_ = {0};                                                                                                      \
    for (int i = 0; i < LANES; i++) y_[i] = (expression);                                                              \
    return y_
static inline vec vec_set(float x) { return (vec){x, x, x, x}; }
static inline vec vec_fma(vec a, vec b, vec c) { return a * b + c; }
static inline vec vec_max(vec a, vec b) { VEC_EACH(a[i] > b[i] ? a[i] : b[i]); }
static inline vec vec_round(vec a) { VEC_EACH(rintf(a[i])); }
static inline vec vec_abs(vec a) { VEC_EACH(fabsf(a[i])); }
static inline vec vec_if_less(vec a, vec b, vec yes, vec no) { VEC_EACH(a[i] < b[i] ? yes[i] : no[i]); }
static inline vec vec_scale(vec a, vec n) { VEC_EACH(ldexpf(a[i], n[i] == n[i] ? (int)n[i] : 0)); }
#endif

static inline vec vec_zero(void) { return vec_set(0.0f); }

static inline vec vec_load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vec_store(float *p, vec v) { memcpy(p, &v, sizeof v); }

static inline vec vec_load_bf16(const nib_bf16 *p)
{
#if defined __AVX512F__
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
#elif defined __AVX2__
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
#else
    VEC_EACH(nib_bf16_to_float(p[i]));
#endif
}

/* Rounded to bf16, still in fp32: to nearest even in integers, since vcvtneps2bf16 flushes subnormals. NaN stays one.
 */
static inline vec vec_round_bf16(vec v)
{
#if defined __AVX512F__
    __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32((int)0xffff0000u)));
#elif defined __AVX2__
    __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    vec nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    v = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000u)));
#else
    VEC_EACH(nib_bf16_to_float(nib_bf16_from_float(v[i])));
#endif
}

#if defined __AVX512F__
/* The upper halves of the lanes, in order: bf16 of what vec_round_bf16 gave. */
static inline __m256i vec_narrow(vec v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16)); }
#endif

static inline void vec_store_bf16(nib_bf16 *p, vec v)
{
#if defined __AVX512F__
    _mm256_storeu_si256((void *)p, vec_narrow(vec_round_bf16(v)));
#elif defined __AVX2__
    __m256i high = _mm256_srli_epi32(_mm256_castps_si256(vec_round_bf16(v)), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128((void *)p, _mm256_castsi256_si128(packed));
#else
    for (int i = 0; i < LANES; i++) p[i] = nib_bf16_from_float(v[i]);
#endif
}

/* Sixteen values that vec_pick looks up by the low four bits of each index. */
#define VEC_TABLE_PARTS (16 / LANES)
typedef struct {
    vec part[VEC_TABLE_PARTS];
} vec_table;

static inline vec_table vec_table_load(const float values[16])
{
    vec_table table;
    for (int i = 0; i < VEC_TABLE_PARTS; i++) table.part[i] = vec_load(values + i * LANES);
    return table;
}

static inline vec vec_pick(vec_table table, vec_index index)
{
#if defined __AVX512F__
    return _mm512_permutexvar_ps(index, table.part[0]);
#elif defined __AVX2__ /* a permutation of each half of the table, chosen by bit 3 */
    vec low = _mm256_permutevar8x32_ps(table.part[0], index), high = _mm256_permutevar8x32_ps(table.part[1], index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
#else
    VEC_EACH(table.part[index[i] % 16 / LANES][index[i] % LANES]);
#endif
}

/* LANES bytes, one to a lane; vec_high: their upper nibbles. */
static inline vec_index vec_bytes(const uint8_t *p)
{
#if defined __AVX512F__
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
#elif defined __AVX2__
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
#else
    return (vec_index){p[0], p[1], p[2], p[3]};
#endif
}

static inline vec_index vec_high(vec_index bytes)
{
#if defined __AVX512F__
    return _mm512_srli_epi32(bytes, 4);
#elif defined __AVX2__
    return _mm256_srli_epi32(bytes, 4);
#else
    return bytes >> 4;
#endif
}

/* LANES nibbles, the high one of each byte first, one to a lane (above the lowest four bits of which is anything). */
static inline vec_index vec_nibbles(const uint8_t *p)
{
#if defined __AVX512F__
    __m512i byte = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const void *)p));
    return _mm512_or_si512(_mm512_srli_epi64(byte, 4), _mm512_slli_epi64(byte, 32));
#elif defined __AVX2__
    int32_t four;
    memcpy(&four, p, sizeof four);
    __m256i byte = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    return _mm256_or_si256(_mm256_srli_epi64(byte, 4), _mm256_slli_epi64(byte, 32));
#else
    return (vec_index){p[0] >> 4, p[0], p[1] >> 4, p[1]};
#endif
}

/* Elements i .. i + LANES of an array of n, zero beyond its end; store likewise writes nothing beyond it. */
static inline vec vec_get(const void *array, nib_dtype dtype, int64_t i, int64_t n)
{
    if (n - i >= LANES)
        return dtype == NIB_DTYPE_F32 ? vec_load((const float *)array + i) : vec_load_bf16((const nib_bf16 *)array + i);
    float x[LANES] = {0};
    for (int64_t l = 0; l < n - i; l++)
        x[l] = dtype == NIB_DTYPE_F32 ? ((const float *)array)[i + l]
                                      : nib_bf16_to_float(((const nib_bf16 *)array)[i + l]);
    return vec_load(x);
}

static inline void vec_put(void *array, nib_dtype dtype, int64_t i, int64_t n, vec v)
{
    if (n - i >= LANES) {
        if (dtype == NIB_DTYPE_F32)
            vec_store((float *)array + i, v);
        else
            vec_store_bf16((nib_bf16 *)array + i, v);
        return;
    }
    float x[LANES];
    vec_store(x, v);
    for (int64_t l = 0; l < n - i; l++) {
        if (dtype == NIB_DTYPE_F32)
            ((float *)array)[i + l] = x[l];
        else
            ((nib_bf16 *)array)[i + l] = nib_bf16_from_float(x[l]);
    }
}

/* Horizontal sum and maximum, in a fixed order (halves against halves). */
static inline float vec_sum(vec v)
{
#if defined __AVX512F__
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#elif defined __AVX2__
    __m256 eight = v;
#endif
#if defined __AVX512F__ || defined __AVX2__
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
    vec four = v;
#endif
    return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline float vec_maximum(vec v)
{
    float x[LANES];
    vec_store(x, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}

/* e^x within 2 ulp (3 without fused multiply-add), 0 below -104, infinity above 128 ln 2, NaN for NaN. */
static inline vec vec_exp(vec x)
{
    x = vec_max(vec_set(-104.0f), x);
    x = vec_if_less(vec_set(89.0f), x, vec_set(89.0f), x);
    vec n = vec_round(x * vec_set(NIB_LOG2_E));
    vec r = vec_fma(n, vec_set(-NIB_LN2_HIGH), x);
    r = vec_fma(n, vec_set(-NIB_LN2_LOW), r);
    vec p = vec_set(nib_exp_term[0]);
    for (int i = 1; i < NIB_EXP_TERMS; i++) p = vec_fma(p, r, vec_set(nib_exp_term[i]));
    return vec_scale(vec_fma(p, r * r, r) + vec_set(1.0f), n);
}

/* tanh x within 3 ulp: Cephes' polynomial below 0.625, else by e^2x. */
static inline vec vec_tanh(vec x)
{
    vec size = vec_abs(x), z = x * x, p = vec_set(-5.70498872745e-3f);
    p = vec_fma(p, z, vec_set(2.06390887954e-2f));
    p = vec_fma(p, z, vec_set(-5.37397155531e-2f));
    p = vec_fma(p, z, vec_set(1.33314422036e-1f));
    p = vec_fma(p, z, vec_set(-3.33332819422e-1f));
    vec small = vec_fma(p * z, x, x);
    vec large = vec_set(1.0f) - vec_set(2.0f) / (vec_exp(size + size) + vec_set(1.0f));
    large = vec_if_less(x, vec_zero(), -large, large);
    return vec_if_less(size, vec_set(0.625f), small, large);
}

#endif
