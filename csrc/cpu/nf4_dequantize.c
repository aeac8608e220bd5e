#include "cpu/backend_internal.h"
#include "cpu/nf4.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

void nib_cpu_nf4_block_values(float absmax, float values[16])
{
    for (int i = 0; i < 16; i++) values[i] = nib_bf16_to_float(nib_bf16_from_float(nib_nf4_values[i] * absmax));
}

/* n <= 64 values of one block, n even unless it ends the tensor. */
static void block_to_float(const uint8_t *codes, const float values[16], int64_t n, float *out)
{
    for (int64_t i = 0; i + 1 < n; i += 2) {
        out[i] = values[codes[i / 2] >> 4];
        out[i + 1] = values[codes[i / 2] & 15];
    }
    if (n % 2 != 0) out[n - 1] = values[codes[n / 2] >> 4];
}

static void block_to_bf16(const uint8_t *codes, const float values[16], int64_t n, nib_bf16 *out)
{
    nib_bf16 bits[16];
    for (int i = 0; i < 16; i++) bits[i] = nib_bf16_from_float(values[i]);
    for (int64_t i = 0; i + 1 < n; i += 2) {
        out[i] = bits[codes[i / 2] >> 4];
        out[i + 1] = bits[codes[i / 2] & 15];
    }
    if (n % 2 != 0) out[n - 1] = bits[codes[n / 2] >> 4];
}

#if defined(__x86_64__)
/* A whole block by byte shuffles: one 16-entry table for the low and one for the high bytes of the bf16 values. */
__attribute__((target("avx2"))) static void block_to_bf16_avx2(const uint8_t *codes, const float values[16],
                                                               nib_bf16 *out)
{
    __m256i first = _mm256_loadu_si256((const __m256i *)values),
            second = _mm256_loadu_si256((const __m256i *)values + 1);
    __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
    packed = _mm256_permute4x64_epi64(packed, 0xd8); /* 16 bf16 in order */
    __m128i a = _mm256_castsi256_si128(packed), b = _mm256_extracti128_si256(packed, 1);
    const __m128i byte = _mm_set1_epi16(0xff);
    __m128i low = _mm_packus_epi16(_mm_and_si128(a, byte), _mm_and_si128(b, byte));
    __m128i high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
    const __m128i nibble = _mm_set1_epi8(15);
    for (int i = 0; i < 2; i++) {
        __m128i pair = _mm_loadu_si128((const __m128i *)codes + i);
        __m128i even = _mm_and_si128(_mm_srli_epi16(pair, 4), nibble), odd = _mm_and_si128(pair, nibble);
        for (int half = 0; half < 2; half++) {
            __m128i index = half == 0 ? _mm_unpacklo_epi8(even, odd) : _mm_unpackhi_epi8(even, odd);
            __m128i l = _mm_shuffle_epi8(low, index), h = _mm_shuffle_epi8(high, index);
            __m128i *to = (__m128i *)(out + 32 * i + 16 * half);
            _mm_storeu_si128(to, _mm_unpacklo_epi8(l, h));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(l, h));
        }
    }
}

/* A whole block: its 16 values are one register, and a permutation of words looks up 32 weights at once. */
__attribute__((target("avx512f,avx512bw"))) static void block_avx512(const uint8_t *codes, float absmax,
                                                                     nib_dtype dtype, void *out)
{
    __m512i bits = _mm512_castps_si512(_mm512_mul_ps(_mm512_loadu_ps(nib_nf4_values), _mm512_set1_ps(absmax)));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd); /* to nearest even */
    bits = _mm512_srli_epi32(bits, 16);
    if (dtype == NIB_DTYPE_BF16) {
        const __m512i words = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(bits));
        for (int i = 0; i < 2; i++) {
            __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes + i));
            __m512i pair = _mm512_or_si512(_mm512_srli_epi32(byte, 4),
                                           _mm512_slli_epi32(_mm512_and_si512(byte, _mm512_set1_epi32(15)), 16));
            _mm512_storeu_si512((nib_bf16 *)out + 32 * i, _mm512_permutexvar_epi16(pair, words));
        }
        return;
    }
    const __m512 values = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    for (int i = 0; i < 4; i++) {
        __m512i byte = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(codes + 8 * i)));
        __m512i pair = _mm512_or_si512(_mm512_srli_epi64(byte, 4),
                                       _mm512_slli_epi64(_mm512_and_si512(byte, _mm512_set1_epi64(15)), 32));
        _mm512_storeu_ps((float *)out + 16 * i, _mm512_permutexvar_ps(pair, values));
    }
}
#endif

/* Values first .. first + n of one block into out, in its type. */
static void dequantize_piece(const nib_nf4 *weight, int64_t block, int64_t skip, int64_t n, nib_dtype dtype,
                             const nib_cpu_context *cpu, void *out)
{
    float values[16];
    const float absmax = nib_cpu_nf4_absmax(weight, block);
    const uint8_t *codes = weight->codes + block * 32;
#if defined(__x86_64__)
    if (n == 64 && cpu->avx512 && absmax == absmax) { /* a NaN goes the way that keeps it one */
        block_avx512(codes, absmax, dtype, out);
        return;
    }
#endif
    nib_cpu_nf4_block_values(absmax, values);
#if defined(__x86_64__)
    if (n == 64 && dtype == NIB_DTYPE_BF16 && cpu->avx2) {
        block_to_bf16_avx2(codes, values, out);
        return;
    }
#else
    (void)cpu;
#endif
    if (skip == 0 && dtype == NIB_DTYPE_F32) {
        block_to_float(codes, values, n, out);
    } else if (skip == 0) {
        block_to_bf16(codes, values, n, out);
    } else { /* a row that begins inside a block */
        float piece[64];
        block_to_float(codes, values, skip + n, piece);
        if (dtype == NIB_DTYPE_F32)
            memcpy(out, piece + skip, (size_t)n * sizeof *piece);
        else
            for (int64_t i = 0; i < n; i++) ((nib_bf16 *)out)[i] = nib_bf16_from_float(piece[skip + i]);
    }
}

nib_status nib_cpu_nf4_dequantize(nib_ops *ops, const nib_nf4 *weight, nib_matrix out)
{
    const nib_cpu_context *cpu = nib_cpu_context_of(ops);
    if (out.dtype != NIB_DTYPE_F32 && out.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_dequantize: into %s is not supported", nib_dtype_name(out.dtype));
    if (ops->rehearsal) return NIB_OK;
    const int64_t size = out.dtype == NIB_DTYPE_F32 ? 4 : 2;
#pragma omp parallel for schedule(static) if (out.rows * out.columns > 65536)
    for (int64_t row = 0; row < out.rows; row++) {
        char *target = nib_matrix_rows(out, row, 1).data;
        for (int64_t at = 0, n; at < out.columns; at += n) {
            int64_t element = row * out.columns + at, skip = element % 64;
            n = 64 - skip < out.columns - at ? 64 - skip : out.columns - at;
            dequantize_piece(weight, element / 64, skip, n, out.dtype, cpu, target + at * size);
        }
    }
    return NIB_OK;
}
