/* Conformance of the warp's matrices: mma of every type, ldmatrix, stmatrix. Layouts are PTX's tables ("Matrix
 * Fragments for mma.m16n8k16" and after), written out here once more in the order of the manual. */
#include "cuda/conformance.cuh"

#include <cuda_fp16.h>
#include <cuda_fp8.h>

namespace
{

enum { ROWS = 16, COLUMNS = 8 };

/* in: A [16][K], then B transposed [8][K], then C [16][8] in fp32; values of 16 or 8 bits. One warp; every lane takes
 * its fragments straight from memory. */
enum kind { BF16, F16, E4M3 };
template <kind of> constexpr int depth = of == E4M3 ? 32 : 16;
template <kind of> constexpr int row_words = depth<of> *(of == E4M3 ? 1 : 2) / 4;
template <kind of> constexpr int c_word = (ROWS + COLUMNS) * row_words<of>; /* where C begins */

template <kind of> __global__ void mma_kernel(const uint32_t *in, uint32_t *out)
{
    const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    constexpr int row = row_words<of>, half = row / 2;
    const uint32_t *a = in, *b = in + ROWS * row;
    const float *c = reinterpret_cast<const float *>(in + c_word<of>);
    const uint32_t fragment[4] = {a[g * row + t], a[(g + 8) * row + t], a[g * row + half + t],
                                  a[(g + 8) * row + half + t]};
    const uint32_t b0 = b[g * row + t], b1 = b[g * row + half + t];
    const int at[4] = {g * COLUMNS + 2 * t, g * COLUMNS + 2 * t + 1, (g + 8) * COLUMNS + 2 * t,
                       (g + 8) * COLUMNS + 2 * t + 1};
    float sum[4];
    for (int i = 0; i < 4; i++) sum[i] = c[at[i]];
    if (of == BF16) mma_m16n8k16_bf16(sum, fragment, b0, b1);
    if (of == F16) mma_m16n8k16_f16(sum, fragment, b0, b1);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    if (of == E4M3) mma_m16n8k32_e4m3(sum, fragment, b0, b1);
#endif
    for (int i = 0; i < 4; i++) out[at[i]] = __float_as_uint(sum[i]);
}

template <kind of> uint32_t encode(float value)
{
    if (of == BF16) return nib_bf16_from_float(value).bits;
    if (of == F16) return __half_as_ushort(__float2half_rn(value));
    return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

/* Small integers, which every type holds. */
template <kind of> void mma_fill(uint32_t *in)
{
    constexpr int per_word = of == E4M3 ? 4 : 2, bits = 32 / per_word;
    for (int i = 0; i < c_word<of>; i++) {
        in[i] = 0;
        for (int v = 0; v < per_word; v++)
            in[i] |= encode<of>((float)conformance_small((uint32_t)(i * per_word + v))) << (bits * v);
    }
    for (int i = 0; i < ROWS * COLUMNS; i++)
        in[c_word<of> + i] = word_of((float)conformance_small(5000u + (uint32_t)i));
}

template <kind of> void mma_expected(const uint32_t *, uint32_t *out)
{
    constexpr int K = depth<of>;
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < COLUMNS; n++) {
            int sum = conformance_small(5000u + (uint32_t)(m * COLUMNS + n));
            for (int k = 0; k < K; k++)
                sum += conformance_small((uint32_t)(m * K + k)) * conformance_small((uint32_t)((ROWS + n) * K + k));
            out[m * COLUMNS + n] = word_of((float)sum);
        }
}

/* Four 8 x 8 matrices of 16-bit values side by side, rows 80 bytes apart in shared memory, so that they are aligned and
 * meet in no bank. in: rows of 32 values, 16 words. */
enum { VALUES = 32, STRIDE = 40, SHARED = 16 * STRIDE * 2 };

__device__ const uint16_t *matrices_in_shared(const uint32_t *in)
{
    uint32_t *shared = dynamic_shared<uint32_t>();
    for (int i = (int)threadIdx.x; i < 8 * VALUES / 2; i += 32) shared[i / 16 * (STRIDE / 2) + i % 16] = in[i];
    __syncwarp();
    return reinterpret_cast<const uint16_t *>(shared) + threadIdx.x % 8 * STRIDE + threadIdx.x / 8 * 8;
}

__global__ void ldmatrix_kernel(const uint32_t *in, uint32_t *out)
{
    uint32_t m[4];
    ldmatrix_x4(m, matrices_in_shared(in));
    for (int i = 0; i < 4; i++) out[i * 32 + threadIdx.x] = m[i];
}

__global__ void ldmatrix_trans_kernel(const uint32_t *in, uint32_t *out)
{
    uint32_t m[4];
    ldmatrix_x4_trans(m, matrices_in_shared(in));
    for (int i = 0; i < 4; i++) out[i * 32 + threadIdx.x] = m[i];
}

/* What ldmatrix would have loaded of the first eight rows goes to the second eight. */
__global__ void stmatrix_kernel(const uint32_t *in, uint32_t *out)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    uint16_t *shared = dynamic_shared<uint16_t>();
    uint32_t m[4];
    for (int i = 0; i < 4; i++) m[i] = in[i * 32 + threadIdx.x];
    stmatrix_x4(shared + threadIdx.x % 8 * STRIDE + threadIdx.x / 8 * 8, m);
    __syncwarp();
    for (int i = (int)threadIdx.x; i < 8 * VALUES / 2; i += 32)
        out[i] = reinterpret_cast<const uint32_t *>(shared)[i / 16 * (STRIDE / 2) + i % 16];
#else
    (void)in;
    (void)out;
#endif
}

/* Value of matrix i. */
uint32_t value_at(const uint32_t *in, int i, int row, int column)
{
    const int at = row * VALUES + i * 8 + column;
    return in[at / 2] >> (16 * (at % 2)) & 0xffff;
}

void ldmatrix_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            out[i * 32 + lane] = value_at(in, i, g, 2 * t) | value_at(in, i, g, 2 * t + 1) << 16;
        }
}

void ldmatrix_trans_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane / 4, t = lane % 4;
            out[i * 32 + lane] = value_at(in, i, 2 * t, g) | value_at(in, i, 2 * t + 1, g) << 16;
        }
}

void stmatrix_expected(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 32; lane++) out[lane / 4 * (VALUES / 2) + i * 4 + lane % 4] = in[i * 32 + lane];
}

const conformance_row rows[] = {
    {"mma.m16n8k16.bf16", 80, mma_kernel<BF16>, mma_expected<BF16>, mma_fill<BF16>, 32, 0, ROWS *COLUMNS, 0},
    {"mma.m16n8k16.f16", 80, mma_kernel<F16>, mma_expected<F16>, mma_fill<F16>, 32, 0, ROWS *COLUMNS, 0},
    {"mma.m16n8k32.e4m3", 89, mma_kernel<E4M3>, mma_expected<E4M3>, mma_fill<E4M3>, 32, 0, ROWS *COLUMNS, 0},
    {"ldmatrix.x4", 80, ldmatrix_kernel, ldmatrix_expected, nullptr, 32, SHARED, 128, 0},
    {"ldmatrix.x4.trans", 80, ldmatrix_trans_kernel, ldmatrix_trans_expected, nullptr, 32, SHARED, 128, 0},
    {"stmatrix.x4", 90, stmatrix_kernel, stmatrix_expected, nullptr, 32, SHARED, 128, 0},
};

} // namespace

const conformance_list conformance_matrix = {rows, sizeof rows / sizeof *rows};
