/* The emulator's memory and launches: a kernel that is right runs, and each way of being wrong is found, with its
 * place. An op's test looks like the first case: buffers, a launch, a comparison. */
#include "cuda_check.h"

#include "intrinsics.cuh"
#include "launch.cuh"

namespace
{

/* y[i] = a x[i] + y[i] */
__global__ void axpy_kernel(float a, const float *x, float *y, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

void a_right_kernel_runs(void **)
{
    for (int n : {1, 127, 128, 129, 1000}) {
        std::vector<float> x(n), y(n);
        for (int i = 0; i < n; i++) x[i] = float(i), y[i] = 1.0f;
        device_buffer<float> dx(x), dy(y);
        check_ok(nib_cuda_launch(axpy_kernel, (n + 127) / 128, 128, 0, nullptr, 2.0f, dx.data(), dy.data(), n));
        std::vector<float> result = dy.download();
        for (int i = 0; i < n; i++) assert_true(result[i] == 2.0f * i + 1.0f);
    }
}

void new_memory_is_nan(void **)
{
    device_buffer<float> x(8), y(std::vector<float>(8, 1.0f));
    check_ok(nib_cuda_launch(axpy_kernel, 1, 8, 0, nullptr, 0.0f, x.data(), y.data(), 8));
    for (float value : y.download()) assert_true(std::isnan(value));
}

__global__ void write_at_kernel(float *x, long i) { x[i] = 1.0f; }

/* A few bytes beyond are found by the sentinels, a page or more by the page that nobody may touch. */
void writes_out_of_bounds_are_found(void **)
{
    for (long i : {8L, 9L, -1L, 30L}) {
        nib_emulator::reset();
        device_buffer<float> x(8);
        check_ok(nib_cuda_launch(write_at_kernel, 1, 1, 0, nullptr, x.data(), i));
        check_kernel_fails(i < 0 ? "4 bytes before a buffer of 32 bytes were written"
                                 : "of a buffer of 32 bytes was written");
    }
    for (long i : {1024L, -1024L}) { /* into a guard page; what lies behind it is anybody's */
        nib_emulator::reset();
        device_buffer<float> x(8);
        check_ok(nib_cuda_launch(write_at_kernel, 1, 1, 0, nullptr, x.data(), i));
        check_kernel_fails("write_at_kernel, block (0,0,0), thread (0,0,0): touched");
    }
}

__global__ void load_at_kernel(const float *x, float *y, int i) { store16(y, load16(x + i)); }

void vector_loads_are_checked_to_the_byte(void **)
{
    struct {
        int i;
        const char *text;
    } cases[] = {{1, "load16 of 16 bytes is misaligned: byte 4"},
                 {8, "load16 of 16 bytes at byte 32 of a device buffer of 40 bytes"},
                 {-4, "load16 of 16 bytes at 16 bytes before a device buffer of 40 bytes"}};
    for (auto &one : cases) {
        nib_emulator::reset();
        device_buffer<float> x(10), y(4);
        check_ok(nib_cuda_launch(load_at_kernel, 1, 1, 0, nullptr, x.data(), y.data(), one.i));
        check_kernel_fails(one.text);
        check_kernel_fails("test_emulator_memory.cpp:");
    }
}

void host_memory_in_a_kernel_is_found(void **)
{
    device_buffer<float> y(8);
    std::vector<float> x(8);
    check_ok(nib_cuda_launch(axpy_kernel, 1, 8, 0, nullptr, 2.0f, x.data(), y.data(), 8));
    check_kernel_fails("axpy_kernel: an argument leads to");
}

void null_is_found(void **)
{
    check_ok(nib_cuda_launch(write_at_kernel, 1, 32, 0, nullptr, static_cast<float *>(nullptr), 0L));
    check_kernel_fails("a null pointer was followed");
}

__global__ void shared_kernel(float *y, int i)
{
    float *shared = dynamic_shared<float>();
    if (i >= 0) shared[i] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = shared[threadIdx.x];
}

void shared_memory_is_nan_and_bounded(void **)
{
    device_buffer<float> y(32);
    check_ok(nib_cuda_launch(shared_kernel, 1, 32, 128, nullptr, y.data(), -1));
    for (float value : y.download()) assert_true(std::isnan(value));
    check_ok(nib_cuda_launch(shared_kernel, 1, 32, 128, nullptr, y.data(), 32));
    check_kernel_fails("wrote to shared memory at byte 128, 128 bytes were asked for");
    nib_emulator::reset();
    device_buffer<float> again(32);
    check_ok(nib_cuda_launch(shared_kernel, 1, 32, 128, nullptr, again.data(), 100000));
    check_kernel_fails("touched byte 400000 of shared memory, 128 bytes were asked for");
}

__global__ void deep_kernel(float *y)
{
    volatile float large[1 << 20]; /* beyond every stack */
    large[0] = 1.0f;
    *y = large[0];
}

void a_stack_overflow_is_found(void **)
{
    device_buffer<float> y(1);
    check_ok(nib_cuda_launch(deep_kernel, 1, 1, 0, nullptr, y.data()));
    check_kernel_fails("deep_kernel, block (0,0,0), thread (0,0,0): ");
}

void a_bad_launch_is_refused_by_name_and_shape(void **)
{
    device_buffer<float> y(8);
    assert_int_equal(nib_cuda_launch(write_at_kernel, 0, 32, 0, nullptr, y.data(), 0L), NIB_ERROR_DEVICE);
    assert_non_null(
        strstr(nib_error_message(), "write_at_kernel, grid 0 x 1 x 1, block 32 x 1 x 1, 0 bytes of shared"));
    assert_int_equal(nib_cuda_launch(write_at_kernel, 1, 1025, 0, nullptr, y.data(), 0L), NIB_ERROR_DEVICE);
    assert_int_equal(nib_cuda_launch(write_at_kernel, 1, 32, 228 << 10, nullptr, y.data(), 0L), NIB_ERROR_DEVICE);
    check_cuda(cudaDeviceSynchronize()); /* the device goes on */
}

void an_error_stays(void **)
{
    device_buffer<float> y(8);
    check_ok(nib_cuda_launch(write_at_kernel, 1, 1, 0, nullptr, y.data(), 8L));
    check_kernel_fails("buffer of 32 bytes");
    void *block;
    assert_int_equal(cudaMalloc(&block, 8), cudaErrorLaunchFailure);
    assert_int_equal(nib_cuda_launch(write_at_kernel, 1, 1, 0, nullptr, y.data(), 0L), NIB_ERROR_DEVICE);
    check_cuda(cudaDeviceReset());
    check_cuda(cudaMalloc(&block, 8));
}

void memory_is_accounted(void **)
{
    nib_emulator::set_device(8, 0, 2, 1 << 20);
    void *first, *second;
    check_cuda(cudaMalloc(&first, 700 << 10));
    assert_int_equal(cudaMalloc(&second, 400 << 10), cudaErrorMemoryAllocation);
    size_t free, total;
    check_cuda(cudaMemGetInfo(&free, &total));
    assert_int_equal(free, 324 << 10);
    assert_int_equal(nib_emulator::device_memory_used(), 700 << 10);
    check_cuda(cudaFree(first));
    assert_int_equal(cudaFree(first), cudaErrorInvalidValue);
    assert_int_equal(nib_emulator::device_memory_used(), 0);
    assert_int_equal(nib_emulator::device_memory_peak(), 700 << 10);
}

void errors_can_be_injected(void **)
{
    void *block;
    nib_emulator::inject_error("cudaMalloc", 1, cudaErrorECCUncorrectable);
    check_cuda(cudaMalloc(&block, 8));
    assert_int_equal(cudaMalloc(&block, 8), cudaErrorECCUncorrectable);
    check_cuda(cudaMalloc(&block, 8));
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_right_kernel_runs, reset_emulator),
        cmocka_unit_test_setup(new_memory_is_nan, reset_emulator),
        cmocka_unit_test_setup(writes_out_of_bounds_are_found, reset_emulator),
        cmocka_unit_test_setup(vector_loads_are_checked_to_the_byte, reset_emulator),
        cmocka_unit_test_setup(host_memory_in_a_kernel_is_found, reset_emulator),
        cmocka_unit_test_setup(null_is_found, reset_emulator),
        cmocka_unit_test_setup(shared_memory_is_nan_and_bounded, reset_emulator),
        cmocka_unit_test_setup(a_stack_overflow_is_found, reset_emulator),
        cmocka_unit_test_setup(a_bad_launch_is_refused_by_name_and_shape, reset_emulator),
        cmocka_unit_test_setup(an_error_stays, reset_emulator),
        cmocka_unit_test_setup(memory_is_accounted, reset_emulator),
        cmocka_unit_test_setup(errors_can_be_injected, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
