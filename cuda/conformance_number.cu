/* Conformance of conversions, of the exponential, and of integer arithmetic that kernels count on. */
#include "cuda/conformance.cuh"

extern "C" {
#include "base/random.h"
}

#include <cuda_fp8.h>

namespace
{

enum { N = 512, THREADS = 128 };

/* Any bits but NaNs, whose payload is nobody's business. */
void any_number(uint32_t *in)
{
    for (uint32_t i = 0; i < CONFORMANCE_WORDS; i++)
        if (float_of(in[i]) != float_of(in[i])) in[i] &= 0x807fffffu;
}

/* To bf16 alone, and two in a word; ties are among the inputs. */
void bf16_fill(uint32_t *in)
{
    any_number(in);
    for (uint32_t i = 0; i < 64; i++) in[i] = (in[i] & 0xffff0000u) | (i % 3 == 0 ? 0x7fffu : 0x8000u + i % 2);
    any_number(in);
}

__global__ void bf16_kernel(const uint32_t *in, uint32_t *out)
{
    for (int i = (int)threadIdx.x; i < N; i += THREADS) {
        const float x = __uint_as_float(in[i]), y = __uint_as_float(in[N + i]);
        const uint32_t pair = pack_bf16(x, y);
        out[i] = pair;
        out[N + i] = __float_as_uint(i % 2 == 0 ? unpack_bf16(pair).x : to_float(to_bf16(y)));
    }
}

/* Upwards if more than half is cut off, or half and what stays is odd. */
uint32_t bf16_of(uint32_t word)
{
    const uint32_t cut = word & 0xffff, kept = word >> 16;
    return kept + (cut > 0x8000 || (cut == 0x8000 && kept % 2 == 1) ? 1 : 0);
}

void bf16_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < N; i++) {
        const uint32_t x = bf16_of(in[i]), y = bf16_of(in[N + i]);
        out[i] = x | y << 16;
        out[N + i] = (i % 2 == 0 ? x : y) << 16;
    }
}

/* Magnitudes of 2^-12 to 2^10: below the least e4m3 number, and above the largest. */
void e4m3_fill(uint32_t *in)
{
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t exponent = 127 - 12 + in[i] % 23, fraction = in[i] >> 9;
        in[i] = (i % 2 << 31) | exponent << 23 | (i % 5 == 0 ? fraction & 0x780000u : fraction); /* ties too */
    }
}

__global__ void e4m3_kernel(const uint32_t *in, uint32_t *out)
{
    for (int i = (int)threadIdx.x; i < N; i += THREADS)
        out[i] = __nv_cvt_float2_to_fp8x2(make_float2(__uint_as_float(in[i]), __uint_as_float(in[(i + 1) % N])),
                                          __NV_SATFINITE, __NV_E4M3);
}

/* OCP 8-bit floating point: 4 bits of exponent, bias 7, 3 of mantissa; 0x7e is 448, the largest. */
float e4m3_value(uint32_t code)
{
    const int exponent = (int)(code >> 3 & 15), mantissa = (int)(code & 7);
    return exponent == 0 ? ldexpf((float)mantissa, -9) : ldexpf((float)(8 + mantissa), exponent - 10);
}

/* The nearest of all codes, the even one of two. */
uint32_t e4m3_of(float x)
{
    uint32_t best = 0;
    for (uint32_t code = 1; code < 0x7f; code++) {
        const float closer = fabsf(e4m3_value(code) - fabsf(x)), now = fabsf(e4m3_value(best) - fabsf(x));
        if (closer < now || (closer == now && code % 2 == 0)) best = code;
    }
    return best | (x < 0 ? 0x80 : 0);
}

void e4m3_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < N; i++) out[i] = e4m3_of(float_of(in[i])) | e4m3_of(float_of(in[(i + 1) % N])) << 8;
}

void exponent_fill(uint32_t *in)
{
    for (uint32_t i = 0; i < N; i++) in[i] = word_of(((float)(in[i] >> 8) * 0x1p-24f - 0.5f) * 240.0f);
}

__global__ void exp2_kernel(const uint32_t *in, uint32_t *out)
{
    for (int i = (int)threadIdx.x; i < N; i += THREADS) out[i] = __float_as_uint(exp2_approx(__uint_as_float(in[i])));
}

void exp2_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < N; i++) out[i] = word_of((float)exp2((double)float_of(in[i])));
}

/* Attention's mask: nothing of it may become a NaN or a number. */
void ends_fill(uint32_t *in)
{
    const float x[] = {-INFINITY, -1000.0f, -150.0f, 0.0f, 1.0f, 10.0f};
    for (int i = 0; i < 6; i++) in[i] = word_of(x[i]);
}

__global__ void exp2_ends_kernel(const uint32_t *in, uint32_t *out)
{
    if (threadIdx.x < 6) out[threadIdx.x] = __float_as_uint(exp2_approx(__uint_as_float(in[threadIdx.x])));
}

void exp2_ends_expected(const uint32_t *, uint32_t *out)
{
    const float y[] = {0.0f, 0.0f, 0.0f, 1.0f, 2.0f, 1024.0f};
    for (int i = 0; i < 6; i++) out[i] = word_of(y[i]);
}

__global__ void philox_kernel(const uint32_t *in, uint32_t *out)
{
    const uint64_t key = in[0] | (uint64_t)in[1] << 32;
    const uint4 w = philox4x32(key, threadIdx.x, (uint64_t)in[2] << 32 | threadIdx.x);
    store16(out + 4 * threadIdx.x, w);
}

void philox_expected(const uint32_t *in, uint32_t *out)
{
    const uint64_t key = in[0] | (uint64_t)in[1] << 32;
    for (uint32_t t = 0; t < THREADS; t++) nib_philox(key, t, (uint64_t)in[2] << 32 | t, out + 4 * t);
}

/* Every rounding of AdamW and of NF4 is one of these: no two may become one. */
__global__ void rounding_kernel(const uint32_t *in, uint32_t *out)
{
    for (int i = (int)threadIdx.x; i < N / 4; i += THREADS) {
        const float x = (float)(int)in[i] * 0x1p-31f, y = (float)(int)in[N + i] * 0x1p-31f;
        out[i] = __float_as_uint(__fadd_rn(__fmul_rn(x, y), x));
        out[N / 4 + i] = __float_as_uint(fmaf(x, y, x));
        out[N / 2 + i] = __float_as_uint(__fdiv_rn(x, y));
        out[3 * N / 4 + i] = __float_as_uint(__fsqrt_rn(fabsf(x)));
    }
}

void rounding_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < N / 4; i++) {
        const float x = (float)(int)in[i] * 0x1p-31f, y = (float)(int)in[N + i] * 0x1p-31f;
        const volatile float product = x * y; /* rounded by itself */
        out[i] = word_of(product + x);
        out[N / 4 + i] = word_of(fmaf(x, y, x));
        out[N / 2 + i] = word_of(x / y);
        out[3 * N / 4 + i] = word_of(sqrtf(fabsf(x)));
    }
}

const conformance_row rows[] = {
    {"cvt.rn.bf16", 80, bf16_kernel, bf16_expected, bf16_fill, THREADS, 0, 2 * N, 0},
    {"cvt.rn.satfinite.e4m3", 80, e4m3_kernel, e4m3_expected, e4m3_fill, THREADS, 0, N, 0},
    {"ex2.approx", 80, exp2_kernel, exp2_expected, exponent_fill, THREADS, 0, N, 0x1p-22f}, /* to 2 ulp, PTX says */
    {"ex2.approx at its ends", 80, exp2_ends_kernel, exp2_ends_expected, ends_fill, 32, 0, 6, 0},
    {"philox", 80, philox_kernel, philox_expected, nullptr, THREADS, 0, 4 * THREADS, 0},
    {"add, mul, fma, div, sqrt", 80, rounding_kernel, rounding_expected, nullptr, THREADS, 0, N, 0},
};

} // namespace

const conformance_list conformance_number = {rows, sizeof rows / sizeof *rows};
