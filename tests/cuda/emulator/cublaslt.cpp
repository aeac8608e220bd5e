#include "include/cublasLt.h"

#include "include/cuda_bf16.h"
#include "include/cuda_fp16.h"
#include "include/cuda_fp8.h"
#include "memory.h"
#include "stream.h"

#include <algorithm>

struct nib_emulator_blas {
    int alive = 1;
};
struct nib_emulator_product {
    cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
    cublasLtPointerMode_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr;
    cudaDataType bias_type = CUDA_R_32F;
    bool bias_type_set = false;
    const float *scale_a = nullptr, *scale_b = nullptr;
    cublasLtMatmulMatrixScale_t scale_a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F,
                                scale_b_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
};
struct nib_emulator_layout {
    cudaDataType type;
    int64_t rows, columns, leading;
    int32_t batches = 1;
    int64_t batch_stride = 0;
};
struct nib_emulator_preference {
    uint64_t max_workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace nib_emulator
{

using Layout = nib_emulator_layout;
constexpr int algorithms = 3;
static uint64_t algorithm_time[algorithms] = {12000, 10000, 11000}; /* ns of a product, whatever its size */
static int algorithms_offered = algorithms;
constexpr size_t algorithm_workspace = 4096; /* of every algorithm but the first, which needs none */

static size_t element_bytes(cudaDataType type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_8F_E4M3 ? 1 : 2; }

static float read_element(cudaDataType type, const void *at, int64_t index)
{
    switch (type) {
    case CUDA_R_32F:
        return static_cast<const float *>(at)[index];
    case CUDA_R_16F:
        return __half2float(static_cast<const __half *>(at)[index]);
    case CUDA_R_16BF:
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(at)[index]);
    case CUDA_R_8F_E4M3:
        return e4m3_to_float(static_cast<const uint8_t *>(at)[index]);
    }
    return NAN;
}

static void write_element(cudaDataType type, void *at, int64_t index, float value)
{
    switch (type) {
    case CUDA_R_32F:
        static_cast<float *>(at)[index] = value;
        break;
    case CUDA_R_16F:
        static_cast<__half *>(at)[index] = __float2half_rn(value);
        break;
    case CUDA_R_16BF:
        static_cast<__nv_bfloat16 *>(at)[index] = __float2bfloat16_rn(value);
        break;
    case CUDA_R_8F_E4M3:
        static_cast<uint8_t *>(at)[index] = e4m3_from_float(value, true);
        break;
    }
}

void set_products(int offered, const std::vector<uint64_t> &nanoseconds)
{
    algorithms_offered = offered;
    std::copy(nanoseconds.begin(), nanoseconds.end(), algorithm_time);
}

/* One product with everything that it needs, as it lies in a stream's queue. */
struct Product {
    nib_emulator_product how;
    Layout a, b, c, d;
    const void *A, *B, *C;
    void *D;
    float alpha, beta;
    const float *device_alpha, *device_beta;
    int order;
    void *workspace;
    int64_t M, N, K;

    cudaError_t run() const;
    void run_batch(int batch, float alpha_now, float beta_now) const;
    std::string check_memory() const;
};

/* Rows of op(X) [outer][K]: the operand with its K elements side by side. */
static std::vector<float> gather(const Layout &layout, const void *data, int64_t first, bool k_is_rows, int64_t outer,
                                 int64_t K)
{
    std::vector<float> values(static_cast<size_t>(outer * K));
    for (int64_t i = 0; i < outer; i++)
        for (int64_t k = 0; k < K; k++) {
            int64_t row = k_is_rows ? k : i, column = k_is_rows ? i : k;
            values[static_cast<size_t>(i * K + k)] =
                read_element(layout.type, data, first + column * layout.leading + row);
        }
    return values;
}

/* Sixteen partial sums, over `parts` stretches of k. */
static float dot(const float *a, const float *b, int64_t K, int parts)
{
    float total = 0;
    for (int part = 0; part < parts; part++) {
        int64_t begin = K * part / parts, end = K * (part + 1) / parts, k = begin;
        float sum[16] = {};
        for (; k + 16 <= end; k += 16)
            for (int i = 0; i < 16; i++) sum[i] += a[k + i] * b[k + i];
        for (; k < end; k++) sum[0] += a[k] * b[k];
        for (int width = 8; width > 0; width /= 2)
            for (int i = 0; i < width; i++) sum[i] += sum[i + width];
        total += sum[0];
    }
    return total;
}

void Product::run_batch(int batch, float alpha_now, float beta_now) const
{
    std::vector<float> left = gather(a, A, batch * a.batch_stride, how.transpose_a == CUBLAS_OP_T, M, K);
    std::vector<float> right = gather(b, B, batch * b.batch_stride, how.transpose_b == CUBLAS_OP_N, N, K);
    for (int64_t n = 0; n < N; n++)
        for (int64_t m = 0; m < M; m++) {
            float scale = alpha_now;
            if (how.scale_a != nullptr)
                scale *= how.scale_a[how.scale_a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F ? m : 0];
            if (how.scale_b != nullptr)
                scale *= how.scale_b[how.scale_b_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F ? n : 0];
            float value =
                scale * dot(&left[static_cast<size_t>(m * K)], &right[static_cast<size_t>(n * K)], K, order + 1);
            if (beta_now != 0) /* else C is not read: it may be NaN */
                value += beta_now * read_element(c.type, C, batch * c.batch_stride + n * c.leading + m);
            if (how.epilogue == CUBLASLT_EPILOGUE_BIAS)
                value += read_element(how.bias_type_set ? how.bias_type : d.type, how.bias, m);
            write_element(d.type, D, batch * d.batch_stride + n * d.leading + m, value);
        }
}

static std::string check_operand(const char *name, const Layout &layout, const void *at)
{
    size_t elements = static_cast<size_t>((layout.batches - 1) * layout.batch_stride +
                                          (layout.columns - 1) * layout.leading + layout.rows);
    Buffer buffer;
    if (!find_buffer(at, &buffer)) return std::string(name) + " is " + describe_address(at);
    if (!buffer.holds(at, elements * element_bytes(layout.type)))
        return std::string(name) + " of " + std::to_string(elements) + " elements does not fit at " +
               describe_address(at);
    return "";
}

/* One scale, or one for each of n rows. */
static std::string check_scale(const char *name, const float *scale, cublasLtMatmulMatrixScale_t mode, int64_t n)
{
    const int64_t count = mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F ? n : 1;
    return scale == nullptr ? "" : check_operand(name, {CUDA_R_32F, count, 1, count}, scale);
}

std::string Product::check_memory() const
{
    std::string problem = check_operand("A", a, A);
    if (problem.empty()) problem = check_scale("the scale of A", how.scale_a, how.scale_a_mode, M);
    if (problem.empty()) problem = check_scale("the scale of B", how.scale_b, how.scale_b_mode, N);
    if (problem.empty()) problem = check_operand("B", b, B);
    if (problem.empty()) problem = check_operand("D", d, D);
    if (problem.empty() && (beta != 0 || device_beta != nullptr)) problem = check_operand("C", c, C);
    return problem.empty() ? problem : "cublasLtMatmul: " + problem;
}

cudaError_t Product::run() const
{
    std::string problem = check_memory();
    if (!problem.empty()) return fail_device(cudaErrorIllegalAddress, problem);
    spend_time(algorithm_time[order]);
    if (order > 0) poison(workspace, algorithm_workspace);
    float alpha_now = device_alpha != nullptr ? *device_alpha : alpha,
          beta_now = device_beta != nullptr ? *device_beta : beta;
    for (int batch = 0; batch < d.batches; batch++) run_batch(batch, alpha_now, beta_now);
    problem = check_sentinels();
    return problem.empty() ? cudaSuccess : fail_device(cudaErrorIllegalAddress, "cublasLtMatmul: " + problem);
}

/* What the device can do in 8-bit floating point: products from sm_89 on, one scale a row on sm_90 alone. */
static bool can_float8(const nib_emulator_product &how)
{
    cudaDeviceProp device;
    const bool by_row = how.scale_a_mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || how.scale_a_mode != how.scale_b_mode) return false;
    const int architecture = 10 * device.major + device.minor;
    return by_row ? architecture == 90 && how.scale_a != nullptr && how.scale_b != nullptr : architecture >= 89;
}

/* The shapes, types and strides that the library would refuse. */
static cublasStatus_t check_shapes(const nib_emulator_product &how, const Layout &a, const Layout &b, const Layout &c,
                                   const Layout &d, int64_t *K)
{
    int64_t M = how.transpose_a == CUBLAS_OP_T ? a.columns : a.rows,
            a_k = how.transpose_a == CUBLAS_OP_T ? a.rows : a.columns;
    int64_t N = how.transpose_b == CUBLAS_OP_T ? b.rows : b.columns,
            b_k = how.transpose_b == CUBLAS_OP_T ? b.columns : b.rows;
    bool agree = M == d.rows && N == d.columns && c.rows == d.rows && c.columns == d.columns && a_k == b_k &&
                 a.batches == d.batches && b.batches == d.batches && c.batches == d.batches;
    if (!agree || a.type != b.type || c.type != d.type) return CUBLAS_STATUS_INVALID_VALUE;
    if (a.type == CUDA_R_32F && d.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a.type == CUDA_R_8F_E4M3 &&
        (how.transpose_a != CUBLAS_OP_T || how.transpose_b != CUBLAS_OP_N || a_k % 16 != 0 || M % 16 != 0 ||
         a.leading % 16 != 0 || b.leading % 16 != 0 ||
         d.leading * static_cast<int64_t>(element_bytes(d.type)) % 16 != 0 || !can_float8(how)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a.type != CUDA_R_8F_E4M3 && (how.scale_a != nullptr || how.scale_b != nullptr))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *K = a_k;
    return CUBLAS_STATUS_SUCCESS;
}

template <class T, class Value> static cublasStatus_t set(T &field, const void *value, size_t bytes)
{
    if (bytes != sizeof(Value)) return CUBLAS_STATUS_INVALID_VALUE;
    Value v;
    std::memcpy(&v, value, sizeof v);
    field = static_cast<T>(v);
    return CUBLAS_STATUS_SUCCESS;
}

} // namespace nib_emulator

using namespace nib_emulator;

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown";
}

const char *cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    if (sticky_error() != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new nib_emulator_blas;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion() { return 130000; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *product, cublasComputeType_t, cudaDataType_t scale)
{
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    *product = new nib_emulator_product;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product)
{
    delete product;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return set<cublasLtPointerMode_t, int32_t>(product->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set<cublasOperation_t, int32_t>(product->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set<cublasOperation_t, int32_t>(product->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set<cublasLtEpilogue_t, int32_t>(product->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set<const void *, const void *>(product->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        product->bias_type_set = true;
        return set<cudaDataType, int32_t>(product->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
        return set<const float *, const float *>(product->scale_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
        return set<const float *, const float *>(product->scale_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
        return set<cublasLtMatmulMatrixScale_t, int32_t>(product->scale_a_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
        return set<cublasLtMatmulMatrixScale_t, int32_t>(product->scale_b_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
        return bytes == 1 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t leading)
{
    if (rows == 0 || columns == 0 || leading < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
    *layout = new nib_emulator_layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), leading};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                size_t bytes)
{
    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) return set<int32_t, int32_t>(layout->batches, value, bytes);
    return set<int64_t, int64_t>(layout->batch_stride, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    *preference = new nib_emulator_preference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes)
{
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set<uint64_t, uint64_t>(preference->max_workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return bytes == 4 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    default:
        return set<uint32_t, uint32_t>(preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                                       value, bytes);
    }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    int64_t K;
    *found = 0;
    if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t status = check_shapes(*product, *a, *b, *c, *d, &K);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    for (int order = 0; order < algorithms_offered && *found < wanted; order++) {
        size_t workspace = order == 0 ? 0 : algorithm_workspace;
        if (workspace > preference->max_workspace) break;
        cublasLtMatmulHeuristicResult_t &result = results[(*found)++];
        result = {{order, {}}, workspace, CUBLAS_STATUS_SUCCESS, 1.0f};
        std::copy_n(preference->alignment, 4, result.algo.alignment);
    }
    return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream)
{
    int64_t K;
    if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t status = check_shapes(*product, *a, *b, *c, *d, &K);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    int order = algorithm == nullptr ? 0 : algorithm->order;
    const void *operands[4] = {A, B, C, D};
    for (int i = 0; algorithm != nullptr && i < 4; i++)
        if (reinterpret_cast<uintptr_t>(operands[i]) % algorithm->alignment[i] != 0) return CUBLAS_STATUS_INVALID_VALUE;
    Buffer buffer;
    if (order > 0 && (workspace_bytes < algorithm_workspace || !find_buffer(workspace, &buffer) ||
                      !buffer.holds(workspace, workspace_bytes)))
        return CUBLAS_STATUS_INVALID_VALUE;
    bool on_device = product->pointer_mode == CUBLASLT_POINTER_MODE_DEVICE;
    const float *alpha_value = static_cast<const float *>(alpha), *beta_value = static_cast<const float *>(beta);
    Product work{*product,
                 *a,
                 *b,
                 *c,
                 *d,
                 A,
                 B,
                 C,
                 D,
                 on_device ? 0 : *alpha_value,
                 on_device ? 0 : *beta_value,
                 on_device ? alpha_value : nullptr,
                 on_device ? beta_value : nullptr,
                 order,
                 workspace,
                 d->rows,
                 d->columns,
                 K};
    auto task = [work] {
        cudaError_t error;
        return is_broken("cublasLtMatmul", &error) ? error : work.run();
    };
    return enqueue(stream, task) == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
