/* out = nf4_value[code] * absmax of a weight [n, K], row-major or transposed, in bf16, fp32 or e4m3.
 *
 * Rows: a thread decodes 8 weights (4 bytes of codes in, 16 bytes of bf16 out) of each of ROWS rows; a warp reads 128
 *   and writes 512 consecutive bytes of a row. All loads of a thread are issued before the first is used.
 * Transposed: 256 threads turn a tile of 64 columns and 128 bytes' worth of rows through shared memory: 64 rows of
 * bf16, 128 of e4m3. A word of the tile holds the neighbouring rows of one column. Column k begins at word 32 k, and
 * its words are rotated by 4 (k / 8), so that neither the writes (8 groups of columns x 4 words a warp) nor the reads
 * (16 bytes a lane) meet a bank twice. Rows are read 32, columns written 128 consecutive bytes at a time. Elements: one
 * thread a weight, for shapes and alignments that the others do not take.
 *
 * 256 threads; shared memory: the table of nf4_decode.cuh (2 KB), transposed another 8 KB. Bound by memory: 2.5 bytes
 * move for a weight in bf16.
 */
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/e4m3.cuh"
#include "cuda/launch.cuh"
#include "cuda/nf4_decode.cuh"
#include "cuda/nf4_dequantize.h"

namespace
{

constexpr int THREADS = 256;
constexpr int ROWS = 4;

/* Decodes eight weights and stores them in out's type. */
__device__ void decode_row(uint32_t codes, const float *table, float factor, __nv_bfloat16 *out)
{
    store16(out, make_uint4(nf4_pair_bf16(codes, 0, table, factor), nf4_pair_bf16(codes, 1, table, factor),
                            nf4_pair_bf16(codes, 2, table, factor), nf4_pair_bf16(codes, 3, table, factor)));
}

__device__ void decode_row(uint32_t codes, const float *table, float factor, float *out)
{
    for (int half = 0; half < 2; half++) {
        const float2 a = unpack_bf16(nf4_pair_bf16(codes, 2 * half, table, factor));
        const float2 b = unpack_bf16(nf4_pair_bf16(codes, 2 * half + 1, table, factor));
        store16(out + 4 * half,
                make_uint4(__float_as_uint(a.x), __float_as_uint(a.y), __float_as_uint(b.x), __float_as_uint(b.y)));
    }
}

__device__ void decode_row(uint32_t codes, const float *table, float factor, uint8_t *out)
{
    uint32_t half[4];
    for (int byte = 0; byte < 4; byte++) {
        const float2 pair = nf4_pair(codes, byte, table, factor);
        half[byte] = pack_e4m3(pair.x, pair.y);
    }
    store8(out, make_uint2(half[0] | half[1] << 16, half[2] | half[3] << 16));
}

/* What a weight is multiplied with: absmax, over the scale where there is one. */
__device__ float factor_of(const nib_nf4 &weight, int64_t element, const float *scale)
{
    const float absmax = nf4_absmax(weight, element / 64);
    return scale == nullptr ? absmax : __fdiv_rn(absmax, __ldg(scale));
}

__device__ uint32_t load_codes(const nib_nf4 &weight, int64_t element)
{
    return __ldg(reinterpret_cast<const uint32_t *>(weight.codes + element / 2));
}

template <typename Out>
__global__ void __launch_bounds__(THREADS)
    nf4_dequantize_rows_kernel(nib_nf4 weight, nf4_values values, int64_t n, int64_t K, const float *scale, Out *out,
                               int64_t stride)
{
    float *table = dynamic_shared<float>();
    nf4_fill_table(table, values);
    __syncthreads();
    const int64_t column = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * 8, first = (int64_t)blockIdx.x * ROWS;
    if (column >= K) return;

    uint32_t codes[ROWS];
    float factor[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (first + r < n) {
            const int64_t element = (first + r) * K + column;
            codes[r] = load_codes(weight, element);
            factor[r] = factor_of(weight, element, scale);
        }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (first + r < n) decode_row(codes[r], nf4_lane_table(table), factor[r], out + (first + r) * stride + column);
}

constexpr int TILE_COLUMNS = 64, TILE_WORDS = 32; /* of K, and of rows of the weight */
constexpr int TILE_BYTES = TILE_COLUMNS * TILE_WORDS * 4;

__device__ uint32_t pack_rows(const float (&row)[2]) { return pack_bf16(row[0], row[1]); }
__device__ uint32_t pack_rows(const float (&row)[4])
{
    return pack_e4m3(row[0], row[1]) | pack_e4m3(row[2], row[3]) << 16;
}

__device__ int tile_word(int column, int word) { return column * TILE_WORDS + ((word + column / 8 * 4) & 31); }

template <typename Out>
__global__ void __launch_bounds__(THREADS)
    nf4_dequantize_transposed_kernel(nib_nf4 weight, nf4_values values, int64_t n, int64_t K, const float *scale,
                                     Out *out, int64_t stride)
{
    constexpr int WORD_ROWS = 4 / sizeof(Out), PIECE = 16 / sizeof(Out);
    uint32_t *tile = dynamic_shared<uint32_t>();
    float *table = reinterpret_cast<float *>(tile + TILE_COLUMNS * TILE_WORDS);
    nf4_fill_table(table, values);
    __syncthreads();
    const int64_t row0 = (int64_t)blockIdx.x * TILE_WORDS * WORD_ROWS, column0 = (int64_t)blockIdx.y * TILE_COLUMNS;

    const int group = (int)threadIdx.x % 8 * 8, word = (int)threadIdx.x / 8; /* 8 columns of WORD_ROWS rows */
    const int64_t row = row0 + word * WORD_ROWS;
    if (column0 + group < K) {
        uint32_t codes[WORD_ROWS] = {};
        float factor[WORD_ROWS] = {};
#pragma unroll
        for (int r = 0; r < WORD_ROWS; r++)
            if (row + r < n) {
                const int64_t element = (row + r) * K + column0 + group;
                codes[r] = load_codes(weight, element);
                factor[r] = factor_of(weight, element, scale);
            }
#pragma unroll
        for (int byte = 0; byte < 4; byte++) {
            float even[WORD_ROWS], odd[WORD_ROWS];
#pragma unroll
            for (int r = 0; r < WORD_ROWS; r++) {
                const float2 pair = nf4_pair(codes[r], byte, nf4_lane_table(table), factor[r]);
                even[r] = pair.x;
                odd[r] = pair.y;
            }
            tile[tile_word(group + 2 * byte, word)] = pack_rows(even);
            tile[tile_word(group + 2 * byte + 1, word)] = pack_rows(odd);
        }
    }
    __syncthreads();

    for (int i = (int)threadIdx.x; i < TILE_COLUMNS * 8; i += THREADS) {
        const int column = i / 8;
        const int64_t first = row0 + i % 8 * PIECE; /* PIECE rows of the weight: 16 bytes of out */
        if (column0 + column < K && first < n)
            store16(out + (column0 + column) * stride + first, load16(tile + tile_word(column, i % 8 * 4)));
    }
}

__device__ void store_element(float value, float *out) { *out = to_float(to_bf16(value)); }
__device__ void store_element(float value, __nv_bfloat16 *out) { *out = to_bf16(value); }
__device__ void store_element(float value, uint8_t *out) { *out = (uint8_t)(pack_e4m3(value, 0.0f) & 255); }

/* Weight (row, column) goes to out[row * row_stride + column * column_stride]. */
template <typename Out>
__global__ void __launch_bounds__(THREADS)
    nf4_dequantize_elements_kernel(nib_nf4 weight, nf4_values values, int64_t n, int64_t K, const float *scale,
                                   Out *out, int64_t row_stride, int64_t column_stride)
{
    float *table = dynamic_shared<float>();
    nf4_fill_table(table, values);
    __syncthreads();
    const int64_t element = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (element >= n * K) return;
    const int code = weight.codes[element / 2] >> (element % 2 == 0 ? 4 : 0) & 15;
    const float value = __fmul_rn(nf4_lane_table(table)[code * 32], factor_of(weight, element, scale));
    store_element(value, out + element / K * row_stride + element % K * column_stride);
}

unsigned ceil_div(int64_t a, int64_t b) { return (unsigned)((a + b - 1) / b); }

bool aligned(const void *pointer, int64_t stride_bytes, int64_t to)
{
    return (uintptr_t)pointer % (uintptr_t)to == 0 && stride_bytes % to == 0;
}

template <typename Out>
nib_status launch_rows(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K, const float *scale, Out *out,
                       int64_t stride)
{
    return nib_cuda_launch(nf4_dequantize_rows_kernel<Out>, dim3(ceil_div(n, ROWS), ceil_div(K, 8 * THREADS)),
                           dim3(THREADS), NF4_TABLE_BYTES, nib_cuda_stream(ops), *weight, nf4_values_of_table(), n, K,
                           scale, out, stride);
}

template <typename Out>
nib_status launch_transposed(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K, const float *scale, Out *out,
                             int64_t stride)
{
    return nib_cuda_launch(nf4_dequantize_transposed_kernel<Out>,
                           dim3(ceil_div(n, TILE_WORDS * 4 / (int64_t)sizeof(Out)), ceil_div(K, TILE_COLUMNS)),
                           dim3(THREADS), TILE_BYTES + NF4_TABLE_BYTES, nib_cuda_stream(ops), *weight,
                           nf4_values_of_table(), n, K, scale, out, stride);
}

template <typename Out>
nib_status launch_elements(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K, const float *scale, Out *out,
                           int64_t row_stride, int64_t column_stride)
{
    return nib_cuda_launch(nf4_dequantize_elements_kernel<Out>, dim3(ceil_div(n * K, THREADS)), dim3(THREADS),
                           NF4_TABLE_BYTES, nib_cuda_stream(ops), *weight, nf4_values_of_table(), n, K, scale, out,
                           row_stride, column_stride);
}

template <typename Out> nib_status dequantize(nib_ops *ops, const nib_nf4 *weight, nib_matrix out)
{
    const bool vector = !nib_cuda_is_plain(ops, NIB_CUDA_NF4_DEQUANTIZE) && out.columns % 8 == 0 &&
                        aligned(weight->codes, 0, 4) && aligned(out.data, out.stride * (int64_t)sizeof(Out), 16);
    if (vector) return launch_rows(ops, weight, out.rows, out.columns, nullptr, (Out *)out.data, out.stride);
    return launch_elements(ops, weight, out.rows, out.columns, nullptr, (Out *)out.data, out.stride, 1);
}

} // namespace

nib_status nib_cuda_nf4_dequantize(nib_ops *ops, const nib_nf4 *weight, nib_matrix out)
{
    if (out.dtype != NIB_DTYPE_F32 && out.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_dequantize: into %s is not supported", nib_dtype_name(out.dtype));
    if (out.rows == 0 || out.columns == 0) return NIB_OK;
    if (out.dtype == NIB_DTYPE_F32) return dequantize<float>(ops, weight, out);
    return dequantize<__nv_bfloat16>(ops, weight, out);
}

nib_status nib_cuda_nf4_dequantize_transposed(nib_ops *ops, const nib_nf4 *weight, nib_matrix out)
{
    if (out.dtype != NIB_DTYPE_BF16)
        return NIB_FAIL(NIB_ERROR_SHAPE, "nf4_dequantize_transposed: into %s is not supported",
                        nib_dtype_name(out.dtype));
    const int64_t n = out.columns, K = out.rows;
    __nv_bfloat16 *data = (__nv_bfloat16 *)out.data;
    if (n == 0 || K == 0) return NIB_OK;
    if (n % 8 == 0 && K % 8 == 0 && aligned(weight->codes, 0, 4) && aligned(data, out.stride * 2, 16))
        return launch_transposed(ops, weight, n, K, nullptr, data, out.stride);
    return launch_elements<__nv_bfloat16>(ops, weight, n, K, nullptr, data, 1, out.stride);
}

nib_status nib_cuda_nf4_dequantize_e4m3(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K, const float *scale,
                                        uint8_t *out, int64_t stride)
{
    if (K % 8 != 0 || stride < K || !aligned(weight->codes, 0, 4) || !aligned(out, stride, 8))
        return NIB_FAIL(NIB_ERROR_SHAPE,
                        "nf4_dequantize_e4m3: [%lld, %lld] at a stride of %lld bytes, expected 8-byte rows",
                        (long long)n, (long long)K, (long long)stride);
    if (n == 0 || K == 0) return NIB_OK;
    if (nib_cuda_is_plain(ops, NIB_CUDA_NF4_DEQUANTIZE))
        return launch_elements(ops, weight, n, K, scale, out, stride, 1);
    return launch_rows(ops, weight, n, K, scale, out, stride);
}

nib_status nib_cuda_nf4_dequantize_e4m3_transposed(nib_ops *ops, const nib_nf4 *weight, int64_t n, int64_t K,
                                                   const float *scale, uint8_t *out, int64_t stride)
{
    if (n % 16 != 0 || K % 8 != 0 || stride < n || !aligned(weight->codes, 0, 4) || !aligned(out, stride, 16))
        return NIB_FAIL(
            NIB_ERROR_SHAPE,
            "nf4_dequantize_e4m3_transposed: [%lld, %lld] at a stride of %lld bytes, expected multiples of 16 and 8",
            (long long)n, (long long)K, (long long)stride);
    if (n == 0 || K == 0) return NIB_OK;
    if (nib_cuda_is_plain(ops, NIB_CUDA_NF4_DEQUANTIZE))
        return launch_elements(ops, weight, n, K, scale, out, 1, stride);
    return launch_transposed(ops, weight, n, K, scale, out, stride);
}
