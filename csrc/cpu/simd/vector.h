/* One vector of fp32 lanes, in the instruction set this file is compiled for. csrc/cpu/simd/ is compiled once for each
 * instruction set (CMakeLists.txt), so a kernel is written once: `vec` holds LANES floats, + - * / work on it.
 * Without x86's sets it is a compiler vector of four floats, and fused multiply-adds round twice. (cpu/vector.h serves
 * ops that work by rows, whose compiler vectors have neither the bf16 dot product nor the masks that tiles need.) */
#ifndef NIB_SIMD_VECTOR_H
#define NIB_SIMD_VECTOR_H

#include "model/ops.h"

#include <math.h>
#if defined __AVX512F__ || defined __AVX2__
#include <immintrin.h>
#endif

#if defined __AVX512F__
typedef __m512 vec;
#define LANES 16
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
#define LANES 8
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
#define LANES 4
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

/* Rounds to nearest even in integers rather than by vcvtneps2bf16, which flushes subnormals. */
static inline void vec_store_bf16(nib_bf16 *p, vec v)
{
#if defined __AVX512F__
    __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#else
    float x[LANES];
    vec_store(x, v);
    for (int i = 0; i < LANES; i++) p[i] = nib_bf16_from_float(x[i]);
#endif
}

/* Row `row` of a matrix, from its column `column` on. */
static inline void *tile_at(nib_matrix matrix, int64_t row, int64_t column)
{
    return (char *)matrix.data + (row * matrix.stride + column) * (matrix.dtype == NIB_DTYPE_F32 ? 4 : 2);
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
    float x[LANES];
    vec_store(x, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

static inline float vec_maximum(vec v)
{
    float x[LANES];
    vec_store(x, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}

/* e^x within 2 ulp (3 without fused multiply-add), 0 below -104, infinity above 128 ln 2, NaN for NaN.
 * Range reduction by ln 2 in two parts and the polynomial of Cephes' expf (Moshier, 1992). */
static inline vec vec_exp(vec x)
{
    x = vec_max(vec_set(-104.0f), x);
    x = vec_if_less(vec_set(89.0f), x, vec_set(89.0f), x);
    vec n = vec_round(x * vec_set(1.44269504088896341f));
    vec r = vec_fma(n, vec_set(-0.693359375f), x);
    r = vec_fma(n, vec_set(2.12194440e-4f), r);
    vec p = vec_set(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
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
