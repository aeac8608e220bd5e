/* The emulator's eye on plain accesses: what no barrier orders is found whatever the schedule made of it, what one does
 * order is let through; a pointer that leaves its buffer is found where it reads. */
#include "cuda_check.h"

#include "intrinsics_hopper.cuh"
#include "launch.cuh"

namespace
{

void check_race(bool expected)
{
    if (expected)
        check_kernel_fails("race");
    else
        check_cuda(cudaDeviceSynchronize());
}

/* All threads write what is right, so that only their order is wrong. */
enum class order { none, block, warp, named, arrival, shuffle };
template <order ORDER> __global__ void pass_on_kernel(int *out)
{
    int *shared = dynamic_shared<int>();
    if (threadIdx.x == 5) shared[0] = 7;
    if (ORDER == order::block) __syncthreads();
    if (ORDER == order::warp) __syncwarp();
    if (ORDER == order::named) named_barrier_sync(1, 64);
    if (ORDER == order::shuffle) __shfl_xor_sync(0xffffffffu, 1, 1);
    if (ORDER == order::arrival) {
        if (threadIdx.x < 32)
            named_barrier_arrive(1, 64);
        else
            named_barrier_sync(1, 64);
    }
    if (threadIdx.x == 5 || threadIdx.x == 9 || threadIdx.x == 40) out[threadIdx.x] = shared[0];
}

template <order ORDER> bool races(int threads)
{
    reset_emulator(nullptr);
    device_buffer<int> out(64);
    check_ok(nib_cuda_launch(pass_on_kernel<ORDER>, 1, threads, 64, nullptr, out.data()));
    const bool failed = cudaDeviceSynchronize() != cudaSuccess;
    if (failed) assert_non_null(strstr(cudaGetErrorString(cudaGetLastError()), "race behind this line"));
    reset_emulator(nullptr);
    return failed;
}

void only_barriers_order(void **)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        nib_emulator::set_first_seed(seed);
        assert_true(races<order::none>(64));
        assert_true(races<order::shuffle>(32));
        assert_false(races<order::block>(64));
        assert_false(races<order::named>(64));
        assert_false(races<order::warp>(32));
        assert_true(races<order::warp>(64));    /* of the two warps, one knows */
        assert_true(races<order::arrival>(64)); /* a lane of the warp that only arrives reads what another wrote */
    }
    nib_emulator::set_first_seed(1);
}

/* Halves of one word are no one's business but their own; a byte that two write is. */
template <class T> __global__ void neighbours_kernel(int apart)
{
    T *shared = dynamic_shared<T>();
    shared[threadIdx.x / apart] = T(threadIdx.x / apart);
}

void bytes_are_told_apart(void **)
{
    check_ok(nib_cuda_launch(neighbours_kernel<uint16_t>, 1, 64, 256, nullptr, 1));
    check_race(false);
    check_ok(nib_cuda_launch(neighbours_kernel<uint8_t>, 1, 64, 256, nullptr, 1));
    check_race(false);
    check_ok(nib_cuda_launch(neighbours_kernel<uint8_t>, 1, 64, 256, nullptr, 2));
    check_race(true);
}

/* Many have read it: whoever was the last, the write has no order with one of them. */
template <bool barrier> __global__ void overwrite_kernel(int *out)
{
    int *shared = dynamic_shared<int>();
    if (threadIdx.x == 0) shared[0] = 3;
    __syncthreads();
    out[threadIdx.x] = shared[0];
    if (barrier) __syncthreads();
    if (threadIdx.x == 70) shared[0] = 3;
}

void a_write_after_a_read_is_a_race(void **)
{
    device_buffer<int> out(128);
    check_ok(nib_cuda_launch(overwrite_kernel<true>, 1, 128, 64, nullptr, out.data()));
    check_race(false);
    check_ok(nib_cuda_launch(overwrite_kernel<false>, 1, 128, 64, nullptr, out.data()));
    check_race(true);
}

/* Lane 0 of a consumer frees the stage for its warp: the others' reads must be known to it. */
template <bool known> __global__ void hand_back_kernel(int *out)
{
    int *shared = dynamic_shared<int>();
    uint64_t *freed = reinterpret_cast<uint64_t *>(shared + 32);
    if (threadIdx.x == 0) mbarrier_init(freed, 1);
    if (threadIdx.x < 32) shared[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x < 32) {
        out[threadIdx.x] = shared[31 - threadIdx.x];
        if (known) __syncwarp();
        if (threadIdx.x == 0) mbarrier_arrive(freed);
    } else {
        mbarrier_wait(freed, 0);
        shared[threadIdx.x - 32] = 2;
    }
}

void an_mbarrier_hands_on_what_its_threads_know(void **)
{
    device_buffer<int> out(32);
    check_ok(nib_cuda_launch(hand_back_kernel<true>, 1, 64, 256, nullptr, out.data()));
    check_race(false);
    check_ok(nib_cuda_launch(hand_back_kernel<false>, 1, 64, 256, nullptr, out.data()));
    check_race(true);
}

/* Thread 0 writes what its own copy brings, and a neighbour of it: nobody else is near. */
template <int WAIT> __global__ void overtake_kernel(const float *x, int at)
{
    float *shared = dynamic_shared<float>();
    cp_async_16(shared, x, true);
    cp_async_commit();
    if (WAIT) cp_async_wait<0>();
    shared[at] = 1.0f;
}

void an_own_copy_is_waited_for(void **)
{
    for (int at : {0, 3, 4}) {
        reset_emulator(nullptr);
        device_buffer<float> x(std::vector<float>(4, 1.0f));
        check_ok(nib_cuda_launch(overtake_kernel<1>, 1, 1, 64, nullptr, x.data(), at));
        check_cuda(cudaDeviceSynchronize());
        check_ok(nib_cuda_launch(overtake_kernel<0>, 1, 1, 64, nullptr, x.data(), at));
        if (at < 4)
            check_kernel_fails("an own cp_async_16 brings");
        else
            check_cuda(cudaDeviceSynchronize());
    }
    reset_emulator(nullptr);
}

__global__ void reading_kernel(const float *x, int n, float *out) { *out = x[n]; }

void a_read_beyond_a_buffer_is_found(void **)
{
    device_buffer<float> x(std::vector<float>(100, 1.0f)), out(1);
    check_ok(nib_cuda_launch(reading_kernel, 1, 1, 0, nullptr, x.data(), 99, out.data()));
    check_cuda(cudaDeviceSynchronize());
    check_ok(nib_cuda_launch(reading_kernel, 1, 1, 0, nullptr, x.data(), 100, out.data()));
    check_kernel_fails("a read behind this line of 4 bytes at byte 400 of a device buffer of 400 bytes");
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(only_barriers_order, reset_emulator),
        cmocka_unit_test_setup(bytes_are_told_apart, reset_emulator),
        cmocka_unit_test_setup(a_write_after_a_read_is_a_race, reset_emulator),
        cmocka_unit_test_setup(an_mbarrier_hands_on_what_its_threads_know, reset_emulator),
        cmocka_unit_test_setup(an_own_copy_is_waited_for, reset_emulator),
        cmocka_unit_test_setup(a_read_beyond_a_buffer_is_found, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
