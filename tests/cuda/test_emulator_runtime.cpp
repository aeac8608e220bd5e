/* The emulator's streams, copies, graphs and cuBLASLt: what is right gives the right numbers, and code that does not
 * wait finds nothing there. */
#include "cuda_check.h"

#include "intrinsics.cuh"
#include "launch.cuh"

#include <cublasLt.h>
#include <cuda_bf16.h>

#include <cmath>
#include <random>

namespace
{

__global__ void set_kernel(float *x, float value) { *x = value; }
__global__ void add_kernel(float *x, float value) { *x += value; }

/* ---- streams and events ---- */

struct stream {
    cudaStream_t handle;
    explicit stream(unsigned flags = cudaStreamNonBlocking) { check_cuda(cudaStreamCreateWithFlags(&handle, flags)); }
    ~stream() { cudaStreamDestroy(handle); }
};

/* Pinned memory is read and written when the copy is done, and not before somebody waits. */
void nothing_is_done_before_a_wait(void **)
{
    stream s;
    float *host;
    device_buffer<float> x(1);
    check_cuda(cudaMallocHost(&host, 4));
    *host = 5.0f;
    check_cuda(cudaMemcpyAsync(x.data(), host, 4, cudaMemcpyHostToDevice, s.handle));
    check_ok(nib_cuda_launch(add_kernel, 1, 1, 0, s.handle, x.data(), 1.0f));
    check_cuda(cudaMemcpyAsync(host, x.data(), 4, cudaMemcpyDeviceToHost, s.handle));
    assert_true(*host == 5.0f);
    assert_int_equal(cudaStreamQuery(s.handle), cudaErrorNotReady);
    *host = 7.0f; /* too late: the first copy has been done by the question */
    check_cuda(cudaStreamSynchronize(s.handle));
    assert_true(*host == 6.0f);
    check_cuda(cudaFreeHost(host));
}

/* A call waits where it finds something to be done, and only there; so does a copy to pageable memory, and a free. */
void waits_are_counted(void **)
{
    stream s;
    cudaEvent_t event;
    float *x, host;
    uint64_t before = nib_emulator::host_waits();
    const auto waited = [&] {
        const uint64_t count = nib_emulator::host_waits() - before;
        before += count;
        return count;
    };
    check_cuda(cudaMalloc((void **)&x, 4));
    check_cuda(cudaEventCreate(&event));
    check_cuda(cudaStreamSynchronize(s.handle));
    check_cuda(cudaDeviceSynchronize());
    check_ok(nib_cuda_launch(set_kernel, 1, 1, 0, s.handle, x, 1.0f));
    check_cuda(cudaEventRecord(event, s.handle));
    assert_int_equal(waited(), 0);
    check_cuda(cudaEventSynchronize(event));
    assert_int_equal(waited(), 1);
    check_cuda(cudaEventSynchronize(event));
    check_cuda(cudaStreamSynchronize(s.handle));
    assert_int_equal(waited(), 0);
    for (int call = 0; call < 4; call++) {
        check_ok(nib_cuda_launch(set_kernel, 1, 1, 0, s.handle, x, 1.0f));
        check_cuda(call == 0   ? cudaStreamSynchronize(s.handle)
                   : call == 1 ? cudaDeviceSynchronize()
                   : call == 2 ? cudaMemcpyAsync(&host, x, 4, cudaMemcpyDeviceToHost, s.handle)
                               : cudaFree(x));
        assert_int_equal(waited(), 1);
    }
    check_cuda(cudaEventDestroy(event));
}

/* Pageable memory, as CUDA says: read before the call returns; a copy back is waited for. */
void pageable_copies(void **)
{
    stream s;
    device_buffer<float> x(1);
    float host = 5.0f, result = 0.0f;
    check_cuda(cudaMemcpyAsync(x.data(), &host, 4, cudaMemcpyHostToDevice, s.handle));
    host = 6.0f;
    check_cuda(cudaMemcpyAsync(&result, x.data(), 4, cudaMemcpyDeviceToHost, s.handle));
    assert_true(result == 5.0f);
}

void streams_are_apart_without_an_event(void **)
{
    for (bool wait : {false, true}) {
        stream first, second;
        cudaEvent_t event;
        device_buffer<float> x(1);
        float *result;
        check_cuda(cudaMallocHost(&result, 4));
        check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        check_ok(nib_cuda_launch(set_kernel, 1, 1, 0, first.handle, x.data(), 3.0f));
        check_cuda(cudaEventRecord(event, first.handle));
        if (wait) check_cuda(cudaStreamWaitEvent(second.handle, event));
        check_cuda(cudaMemcpyAsync(result, x.data(), 4, cudaMemcpyDeviceToHost, second.handle));
        check_cuda(cudaStreamSynchronize(second.handle));
        assert_true(wait ? *result == 3.0f : std::isnan(*result));
        check_cuda(cudaEventDestroy(event));
        check_cuda(cudaFreeHost(result));
    }
}

void events(void **)
{
    stream s;
    cudaEvent_t begin, end;
    float milliseconds;
    device_buffer<float> x(1);
    check_cuda(cudaEventCreate(&begin));
    check_cuda(cudaEventCreate(&end));
    check_cuda(cudaEventRecord(begin, s.handle));
    check_ok(nib_cuda_launch(set_kernel, 1, 1, 0, s.handle, x.data(), 3.0f));
    check_cuda(cudaEventRecord(end, s.handle));
    assert_int_equal(cudaEventElapsedTime(&milliseconds, begin, end), cudaErrorNotReady);
    check_cuda(cudaEventSynchronize(end));
    check_cuda(cudaEventElapsedTime(&milliseconds, begin, end));
    assert_true(milliseconds > 0);
    check_cuda(cudaEventDestroy(begin));
    check_cuda(cudaEventDestroy(end));
}

/* The default stream and a blocking one are in the order of the calls. */
void the_default_stream_orders(void **)
{
    stream s(cudaStreamDefault);
    device_buffer<float> x(1);
    check_ok(nib_cuda_launch(set_kernel, 1, 1, 0, s.handle, x.data(), 3.0f));
    check_ok(nib_cuda_launch(add_kernel, 1, 1, 0, nullptr, x.data(), 1.0f));
    check_ok(nib_cuda_launch(set_kernel, 1, 1, 0, s.handle, x.data(), 9.0f));
    check_cuda(cudaStreamSynchronize(s.handle));
    assert_true(x.download()[0] == 9.0f);
}

void graphs_repeat_what_was_captured(void **)
{
    stream s;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    device_buffer<float> x(std::vector<float>{1.0f});
    check_cuda(cudaStreamBeginCapture(s.handle, cudaStreamCaptureModeGlobal));
    check_ok(nib_cuda_launch(add_kernel, 1, 1, 0, s.handle, x.data(), 2.0f));
    check_cuda(cudaStreamEndCapture(s.handle, &graph));
    check_cuda(cudaGraphInstantiate(&executable, graph));
    assert_true(x.download()[0] == 1.0f); /* captured, not done */
    for (int i = 0; i < 3; i++) check_cuda(cudaGraphLaunch(executable, s.handle));
    check_cuda(cudaStreamSynchronize(s.handle));
    assert_true(x.download()[0] == 7.0f);
    check_cuda(cudaGraphExecDestroy(executable));
    check_cuda(cudaGraphDestroy(graph));
}

/* A call that would wait fails, and so does the capture; the next one is as new. */
void what_waits_spoils_a_capture(void **)
{
    stream s;
    cudaGraph_t graph;
    cudaEvent_t event;
    void *block;
    check_cuda(cudaEventCreate(&event));
    for (int call = 0; call < 4; call++) {
        cudaError_t error = cudaSuccess, expected = cudaErrorStreamCaptureUnsupported;
        check_cuda(cudaStreamBeginCapture(s.handle, cudaStreamCaptureModeThreadLocal));
        check_cuda(cudaEventRecord(event, s.handle));
        if (call == 0) error = cudaStreamSynchronize(s.handle);
        if (call == 1) error = cudaMalloc(&block, 8);
        if (call == 2) error = cudaDeviceSynchronize();
        if (call == 3) error = cudaEventSynchronize(event), expected = cudaErrorCapturedEvent;
        assert_int_equal(error, expected);
        assert_int_equal(cudaStreamEndCapture(s.handle, &graph), cudaErrorStreamCaptureInvalidated);
        assert_null(graph);
    }
    check_cuda(cudaStreamBeginCapture(s.handle, cudaStreamCaptureModeThreadLocal));
    check_cuda(cudaStreamEndCapture(s.handle, &graph));
    check_cuda(cudaGraphDestroy(graph));
    check_cuda(cudaEventDestroy(event));
}

void bad_copies_are_refused(void **)
{
    device_buffer<float> x(4);
    float host[8];
    assert_int_equal(cudaMemcpy(x.data(), host, 20, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(host, host + 4, 16, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(x.data(), x.data(), 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(x.data(), 0, 17), cudaErrorInvalidValue);
    check_cuda(cudaMemset(x.data(), 0, 16));
    assert_true(x.download()[3] == 0.0f);
}

void a_buffer_that_is_freed_early_is_missed(void **)
{
    stream s;
    float *x;
    check_cuda(cudaMalloc(&x, 4));
    check_cuda(cudaFreeAsync(x, s.handle));
    check_ok(nib_cuda_launch(set_kernel, 1, 1, 0, s.handle, x, 3.0f));
    check_kernel_fails("set_kernel: an argument leads to");
}

/* ---- cuBLASLt ---- */

struct product {
    cublasOperation_t transpose_a, transpose_b;
    int M, N, K, batches;
    float alpha, beta;
    int order;
};

template <class T>
cublasLtMatrixLayout_t layout(cudaDataType type, int rows, int columns, int leading, int batches, T stride)
{
    cublasLtMatrixLayout_t made;
    int64_t elements = stride;
    assert_int_equal(cublasLtMatrixLayoutCreate(&made, type, rows, columns, leading), CUBLAS_STATUS_SUCCESS);
    cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batches, sizeof batches);
    cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &elements, sizeof elements);
    return made;
}

/* bf16 operands of small integers, C and D fp32 in one buffer: all sums exact. */
void check_product(const product &p)
{
    int a_rows = p.transpose_a == CUBLAS_OP_T ? p.K : p.M, a_columns = p.transpose_a == CUBLAS_OP_T ? p.M : p.K;
    int b_rows = p.transpose_b == CUBLAS_OP_T ? p.N : p.K, b_columns = p.transpose_b == CUBLAS_OP_T ? p.K : p.N;
    int lda = a_rows + 3, ldb = b_rows + 1, ldc = p.M + 2;
    std::mt19937 random(11);
    auto integers = [&](size_t n) {
        std::vector<float> values(n);
        for (float &x : values) x = float(int(random() % 9) - 4);
        return values;
    };
    std::vector<float> a = integers(size_t(lda) * a_columns * p.batches),
                       b = integers(size_t(ldb) * b_columns * p.batches), c = integers(size_t(ldc) * p.N * p.batches);
    std::vector<__nv_bfloat16> ea, eb;
    for (float x : a) ea.push_back(__float2bfloat16_rn(x));
    for (float x : b) eb.push_back(__float2bfloat16_rn(x));
    device_buffer<__nv_bfloat16> da(ea), db(eb);
    device_buffer<float> dc(c);
    device_buffer<uint8_t> workspace(1 << 16);

    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t how;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[4];
    int count;
    uint64_t workspace_bytes = workspace.size();
    int32_t ta = p.transpose_a, tb = p.transpose_b;
    assert_int_equal(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulDescCreate(&how, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulDescSetAttribute(how, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
    cublasLtMatmulDescSetAttribute(how, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
    cublasLtMatrixLayout_t la = layout(CUDA_R_16BF, a_rows, a_columns, lda, p.batches, lda * a_columns),
                           lb = layout(CUDA_R_16BF, b_rows, b_columns, ldb, p.batches, ldb * b_columns),
                           lc = layout(CUDA_R_32F, p.M, p.N, ldc, p.batches, ldc * p.N);
    assert_int_equal(cublasLtMatmulPreferenceCreate(&preference), CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, 8);
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(handle, how, la, lb, lc, lc, preference, 4, found, &count),
                     CUBLAS_STATUS_SUCCESS);
    assert_true(count > p.order);
    assert_int_equal(cublasLtMatmul(handle, how, &p.alpha, da.data(), la, db.data(), lb, &p.beta, dc.data(), lc,
                                    dc.data(), lc, &found[p.order].algo, workspace.data(), workspace.size(), nullptr),
                     CUBLAS_STATUS_SUCCESS);
    std::vector<float> result = dc.download();
    for (int batch = 0; batch < p.batches; batch++)
        for (int m = 0; m < p.M; m++)
            for (int n = 0; n < p.N; n++) {
                float sum = 0;
                for (int k = 0; k < p.K; k++)
                    sum += a[batch * lda * a_columns + (p.transpose_a == CUBLAS_OP_T ? m * lda + k : k * lda + m)] *
                           b[batch * ldb * b_columns + (p.transpose_b == CUBLAS_OP_T ? k * ldb + n : n * ldb + k)];
                size_t at = size_t(batch) * ldc * p.N + n * ldc + m;
                assert_true(result[at] == p.alpha * sum + (p.beta != 0 ? p.beta * c[at] : 0.0f));
            }
    for (auto made : {la, lb, lc}) cublasLtMatrixLayoutDestroy(made);
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(how);
    cublasLtDestroy(handle);
}

void cublaslt_products(void **)
{
    check_product({CUBLAS_OP_N, CUBLAS_OP_N, 5, 7, 33, 1, 1.0f, 0.0f, 0});
    check_product({CUBLAS_OP_T, CUBLAS_OP_N, 64, 3, 48, 1, 2.0f, 1.0f, 1});
    check_product({CUBLAS_OP_N, CUBLAS_OP_T, 17, 16, 1, 1, 0.5f, 2.0f, 2});
    check_product({CUBLAS_OP_T, CUBLAS_OP_T, 8, 8, 100, 3, 1.0f, 1.0f, 0});
}

void cublaslt_refuses_what_does_not_fit(void **)
{
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t how;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found;
    int count;
    assert_int_equal(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulDescCreate(&how, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatrixLayout_t a = layout(CUDA_R_16BF, 4, 8, 4, 1, 0), b = layout(CUDA_R_16BF, 8, 4, 8, 1, 0),
                           wrong = layout(CUDA_R_16BF, 9, 4, 9, 1, 0), d = layout(CUDA_R_16BF, 4, 4, 4, 1, 0);
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(handle, how, a, wrong, d, d, preference, 1, &found, &count),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(handle, how, a, b, d, d, preference, 1, &found, &count),
                     CUBLAS_STATUS_SUCCESS);
    device_buffer<__nv_bfloat16> da(32), db(32), dd(15);
    float one = 1.0f, zero = 0.0f;
    assert_int_equal(cublasLtMatmul(handle, how, &one, da.data() + 1, a, db.data(), b, &zero, dd.data(), d, dd.data(),
                                    d, &found.algo, nullptr, 0, nullptr),
                     CUBLAS_STATUS_INVALID_VALUE); /* not aligned as promised */
    assert_int_equal(cublasLtMatmul(handle, how, &one, da.data(), a, db.data(), b, &zero, dd.data(), d, dd.data(), d,
                                    &found.algo, nullptr, 0, nullptr),
                     CUBLAS_STATUS_SUCCESS);
    check_kernel_fails("cublasLtMatmul: D of 16 elements does not fit at byte 0 of a device buffer of 30 bytes");
    for (auto made : {a, b, wrong, d}) cublasLtMatrixLayoutDestroy(made);
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(how);
    cublasLtDestroy(handle);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(nothing_is_done_before_a_wait, reset_emulator),
        cmocka_unit_test_setup(waits_are_counted, reset_emulator),
        cmocka_unit_test_setup(pageable_copies, reset_emulator),
        cmocka_unit_test_setup(streams_are_apart_without_an_event, reset_emulator),
        cmocka_unit_test_setup(events, reset_emulator),
        cmocka_unit_test_setup(the_default_stream_orders, reset_emulator),
        cmocka_unit_test_setup(graphs_repeat_what_was_captured, reset_emulator),
        cmocka_unit_test_setup(what_waits_spoils_a_capture, reset_emulator),
        cmocka_unit_test_setup(bad_copies_are_refused, reset_emulator),
        cmocka_unit_test_setup(a_buffer_that_is_freed_early_is_missed, reset_emulator),
        cmocka_unit_test_setup(cublaslt_products, reset_emulator),
        cmocka_unit_test_setup(cublaslt_refuses_what_does_not_fit, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
