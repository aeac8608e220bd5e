/* Sums and maxima over a block, called again at once over the same memory: whole numbers, so that every order gives the
 * same, at numbers of warps that are less than a warp has lanes, and at all that a block can have. */
#include "cuda_check.h"

#include "launch.cuh"
#include "reduce.cuh"

namespace
{

__global__ void reduce_kernel(const float *x, float *out)
{
    float *shared = dynamic_shared<float>();
    const float own = x[threadIdx.x];
    if (threadIdx.x < 32) shared[threadIdx.x] = 1e9f; /* as a larger block may have left it */
    out[4 * threadIdx.x] = block_sum(own, shared);
    out[4 * threadIdx.x + 1] = block_sum(2.0f * own, shared);
    out[4 * threadIdx.x + 2] = block_max(own, shared);
    out[4 * threadIdx.x + 3] = block_max(-own, shared);
}

void every_thread_has_the_result(void **)
{
    for (size_t threads : {32, 96, 1024})
        for (size_t largest : {size_t{0}, threads / 2, threads - 1}) {
            std::vector<float> x(threads, -3.0f);
            x[largest] = -1.0f;
            x[(largest + 7) % threads] = -8.0f;
            const float sum = -3.0f * (float)threads - 3.0f;
            const std::vector<float> want = {sum, 2.0f * sum, -1.0f, 8.0f};
            const device_buffer<float> on_device(x), out(4 * threads);
            check_ok(nib_cuda_launch(reduce_kernel, 1, (unsigned)threads, 32 * sizeof(float), nullptr,
                                     (const float *)on_device.data(), out.data()));
            const std::vector<float> found = out.download();
            for (size_t i = 0; i < found.size(); i++) assert_true(found[i] == want[i % 4]);
        }
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_thread_has_the_result, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
