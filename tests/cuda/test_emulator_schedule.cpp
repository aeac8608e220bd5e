/* The emulator's barriers and warps: what they compute, and that each synchronisation that is missing, divergent or
 * never reached is found. */
#include "cuda_check.h"

#include "intrinsics.cuh"
#include "launch.cuh"
#include "reduce.cuh"

#include <set>

namespace
{

/* ---- barriers ---- */

/* Reverses 256 values through shared memory. */
template <bool barrier> __global__ void reverse_kernel(float *x)
{
    float *shared = dynamic_shared<float>();
    shared[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncthreads();
    x[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

std::vector<float> reversed(nib_status (*launch)(float *))
{
    std::vector<float> x(256);
    for (int i = 0; i < 256; i++) x[i] = float(i);
    device_buffer<float> dx(x);
    check_ok(launch(dx.data()));
    return dx.download();
}

bool has_nan(const std::vector<float> &x)
{
    for (float value : x)
        if (std::isnan(value)) return true;
    return false;
}

void a_missing_barrier_shows(void **)
{
    std::vector<float> right = reversed(
        [](float *x) { return nib_cuda_launch(reverse_kernel<true>, 1, 256, 256 * sizeof(float), nullptr, x); });
    for (int i = 0; i < 256; i++) assert_true(right[i] == 255.0f - i);
    assert_true(has_nan(reversed(
        [](float *x) { return nib_cuda_launch(reverse_kernel<false>, 1, 256, 256 * sizeof(float), nullptr, x); })));
}

/* Ten rounds through one buffer: without the second barrier a warp that runs ahead overwrites what others still read.
 */
template <bool second> __global__ void rounds_kernel(float *wrong)
{
    float *shared = dynamic_shared<float>();
    for (int round = 0; round < 10; round++) {
        shared[threadIdx.x] = float(round);
        __syncthreads();
        if (shared[(threadIdx.x + 32) % blockDim.x] != float(round)) *wrong = 1.0f;
        if (second) __syncthreads();
    }
}

void a_missing_second_barrier_shows(void **)
{
    device_buffer<float> wrong(std::vector<float>{0.0f});
    check_ok(nib_cuda_launch(rounds_kernel<true>, 1, 128, 512, nullptr, wrong.data()));
    assert_true(wrong.download()[0] == 0.0f);
    check_ok(nib_cuda_launch(rounds_kernel<false>, 1, 128, 512, nullptr, wrong.data()));
    assert_true(wrong.download()[0] == 1.0f);
}

/* Neighbours of one warp exchange through shared memory. */
template <bool barrier> __global__ void exchange_kernel(float *x)
{
    float *shared = dynamic_shared<float>();
    shared[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncwarp();
    x[threadIdx.x] = shared[threadIdx.x ^ 1];
}

void a_missing_syncwarp_shows(void **)
{
    assert_false(
        has_nan(reversed([](float *x) { return nib_cuda_launch(exchange_kernel<true>, 1, 256, 1024, nullptr, x); })));
    assert_true(
        has_nan(reversed([](float *x) { return nib_cuda_launch(exchange_kernel<false>, 1, 256, 1024, nullptr, x); })));
}

__global__ void divergent_kernel(float *x)
{
    if (threadIdx.x < 40) {
        __syncthreads();
        *x = 1.0f;
    } else {
        __syncthreads();
        *x = 2.0f;
    }
}

void a_divergent_barrier_is_found(void **)
{
    device_buffer<float> x(1);
    check_ok(nib_cuda_launch(divergent_kernel, 1, 64, 0, nullptr, x.data()));
    check_kernel_fails("divergence: is at this __syncthreads while another thread is at that of");
}

__global__ void lonely_barrier_kernel(float *x)
{
    if (threadIdx.x == 33) __syncthreads();
    __shfl_xor_sync(0xffffffffu, *x, 1);
}

void a_deadlock_is_found_and_told(void **)
{
    device_buffer<float> x(1);
    check_ok(nib_cuda_launch(lonely_barrier_kernel, 1, 64, 0, nullptr, x.data()));
    check_kernel_fails("deadlock:");
    check_kernel_fails("1 threads (first (33,0,0), last (33,0,0)) wait for __syncthreads at");
    check_kernel_fails("31 threads (first (32,0,0), last (63,0,0)) wait for __shfl_xor_sync at");
    check_kernel_fails("32 of 64 threads have ended");
}

/* Threads that have ended are not waited for, as on the chip. */
__global__ void early_exit_kernel(float *x)
{
    if (threadIdx.x >= 48) return;
    __syncthreads();
    x[threadIdx.x] = 1.0f;
}

void ended_threads_are_not_waited_for(void **)
{
    device_buffer<float> x(64);
    check_ok(nib_cuda_launch(early_exit_kernel, 1, 64, 0, nullptr, x.data()));
    assert_true(x.download()[47] == 1.0f);
}

__global__ void votes_kernel(int *out)
{
    int t = threadIdx.x;
    out[t * 4 + 0] = __syncthreads_and(t < 96);
    out[t * 4 + 1] = __syncthreads_or(t == 5);
    out[t * 4 + 2] = __syncthreads_count(t % 3 == 0);
    out[t * 4 + 3] = __syncthreads_and(t < 97);
}

void barriers_vote(void **)
{
    device_buffer<int> out(96 * 4);
    check_ok(nib_cuda_launch(votes_kernel, 1, 96, 0, nullptr, out.data()));
    std::vector<int> result = out.download();
    for (int t = 0; t < 96; t++) {
        assert_true(result[t * 4] && result[t * 4 + 1] && result[t * 4 + 3]);
        assert_int_equal(result[t * 4 + 2], 32);
    }
}

/* Warp 0 produces, warp 1 consumes; the producer only arrives. */
__global__ void named_kernel(float *x, unsigned threads)
{
    float *shared = dynamic_shared<float>();
    if (threadIdx.x < 32) {
        shared[threadIdx.x] = float(threadIdx.x);
        named_barrier_arrive(1, threads);
    } else {
        named_barrier_sync(1, threads);
        x[threadIdx.x - 32] = shared[63 - threadIdx.x];
    }
}

void named_barriers_join_warps(void **)
{
    device_buffer<float> x(32);
    check_ok(nib_cuda_launch(named_kernel, 1, 64, 128, nullptr, x.data(), 64u));
    std::vector<float> result = x.download();
    for (int i = 0; i < 32; i++) assert_true(result[i] == 31.0f - i);
    check_ok(nib_cuda_launch(named_kernel, 1, 64, 128, nullptr, x.data(), 96u));
    check_kernel_fails("32 threads (first (32,0,0), last (63,0,0)) wait for named_barrier_sync");
    nib_emulator::reset();
    device_buffer<float> again(32);
    check_ok(nib_cuda_launch(named_kernel, 1, 64, 128, nullptr, again.data(), 33u));
    check_kernel_fails("barrier 1 for 33 threads, expected a multiple of 32");
}

/* ---- warps ---- */

__global__ void shuffle_kernel(int *out)
{
    int lane = threadIdx.x;
    out[0 * 32 + lane] = __shfl_sync(0xffffffffu, lane, 7);
    out[1 * 32 + lane] = __shfl_sync(0xffffffffu, lane, 3, 8);
    out[2 * 32 + lane] = __shfl_up_sync(0xffffffffu, lane, 3u);
    out[3 * 32 + lane] = __shfl_down_sync(0xffffffffu, lane, 3u, 16);
    out[4 * 32 + lane] = __shfl_xor_sync(0xffffffffu, lane, 9);
    out[5 * 32 + lane] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 2));
    out[6 * 32 + lane] = __any_sync(0xffffffffu, lane == 3) + 2 * __all_sync(0xffffffffu, lane < 31);
    out[7 * 32 + lane] = __reduce_max_sync(0xffffffffu, lane - 40);
    out[8 * 32 + lane] = static_cast<int>(__reduce_add_sync(0xffffffffu, static_cast<unsigned>(lane)));
    out[9 * 32 + lane] = static_cast<int>(__shfl_xor_sync(0xffffffffu, 1ll << lane, 1) >> (lane ^ 1));
}

/* By the PTX manual's definition of shfl, vote and redux. */
void warp_operations_follow_the_manual(void **)
{
    device_buffer<int> out(10 * 32);
    check_ok(nib_cuda_launch(shuffle_kernel, 1, 32, 0, nullptr, out.data()));
    std::vector<int> r = out.download();
    for (int lane = 0; lane < 32; lane++) {
        assert_int_equal(r[0 * 32 + lane], 7);
        assert_int_equal(r[1 * 32 + lane], lane / 8 * 8 + 3);
        assert_int_equal(r[2 * 32 + lane], lane < 3 ? lane : lane - 3);
        assert_int_equal(r[3 * 32 + lane], lane % 16 < 13 ? lane + 3 : lane);
        assert_int_equal(r[4 * 32 + lane], lane ^ 9);
        assert_int_equal(r[5 * 32 + lane], static_cast<int>(0xaaaaaaaau));
        assert_int_equal(r[6 * 32 + lane], 1);
        assert_int_equal(r[7 * 32 + lane], -9);
        assert_int_equal(r[8 * 32 + lane], 31 * 16);
        assert_int_equal(r[9 * 32 + lane], 1);
    }
}

__global__ void absent_lane_kernel(float *x)
{
    if (threadIdx.x == 4) return;
    x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

void a_lane_that_ended_gives_nan(void **)
{
    device_buffer<float> x(32);
    check_ok(nib_cuda_launch(absent_lane_kernel, 1, 32, 0, nullptr, x.data()));
    std::vector<float> result = x.download();
    assert_true(std::isnan(result[5]) && result[6] == 1.0f);
}

__global__ void wrong_mask_kernel(float *x) { x[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }

void a_lane_outside_its_mask_is_found(void **)
{
    device_buffer<float> x(32);
    check_ok(nib_cuda_launch(wrong_mask_kernel, 1, 32, 0, nullptr, x.data()));
    check_kernel_fails("is not in its own mask 0x0000ffff");
}

__global__ void sums_kernel(float *out, const float *x)
{
    float *shared = dynamic_shared<float>();
    out[threadIdx.x] = block_sum(x[threadIdx.x], shared) + block_max(-x[threadIdx.x], shared);
}

void block_sums(void **)
{
    std::vector<float> x(160);
    for (int i = 0; i < 160; i++) x[i] = float(i + 1);
    device_buffer<float> dx(x), out(160);
    check_ok(nib_cuda_launch(sums_kernel, 1, 160, 128, nullptr, out.data(), dx.data()));
    for (float value : out.download()) assert_true(value == 160 * 161 / 2 - 1);
}

/* ---- the order itself ---- */

__global__ void order_kernel(int *count, int *order)
{
    order[atomicAdd(count, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

std::vector<int> order_of(uint64_t seed)
{
    nib_emulator::set_seed(seed);
    device_buffer<int> count(std::vector<int>{0}), order(128);
    check_ok(nib_cuda_launch(order_kernel, 1, 128, 0, nullptr, count.data(), order.data()));
    return order.download();
}

void the_order_is_random_and_by_the_seed(void **)
{
    std::vector<int> first = order_of(1);
    assert_true(first == order_of(1));
    assert_true(first != order_of(2));
    assert_int_equal(std::set<int>(first.begin(), first.end()).size(), 128);
    assert_false(std::is_sorted(first.begin(), first.end()));
}

__global__ void histogram_kernel(float *sum, unsigned *largest, int *last)
{
    atomicAdd(sum, 1.0f);
    atomicMax(largest, blockIdx.x * 64 + threadIdx.x);
    atomicCAS(last, -1, static_cast<int>(threadIdx.x));
}

void atomics_hold_across_blocks(void **)
{
    device_buffer<float> sum(std::vector<float>{0});
    device_buffer<unsigned> largest(std::vector<unsigned>{0});
    device_buffer<int> last(std::vector<int>{-1});
    check_ok(nib_cuda_launch(histogram_kernel, 100, 64, 0, nullptr, sum.data(), largest.data(), last.data()));
    assert_true(sum.download()[0] == 6400.0f);
    assert_int_equal(largest.download()[0], 6399);
    assert_true(last.download()[0] >= 0);
}

__global__ void indices_kernel(int *seen)
{
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    int threads = blockDim.x * blockDim.y * blockDim.z;
    atomicAdd(&seen[block * threads + thread], 1);
}

void three_dimensions_are_covered_once(void **)
{
    device_buffer<int> seen(std::vector<int>(2 * 3 * 4 * 5 * 2 * 3, 0));
    check_ok(nib_cuda_launch(indices_kernel, dim3(2, 3, 4), dim3(5, 2, 3), 0, nullptr, seen.data()));
    for (int count : seen.download()) assert_int_equal(count, 1);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_missing_barrier_shows, reset_emulator),
        cmocka_unit_test_setup(a_missing_second_barrier_shows, reset_emulator),
        cmocka_unit_test_setup(a_missing_syncwarp_shows, reset_emulator),
        cmocka_unit_test_setup(a_divergent_barrier_is_found, reset_emulator),
        cmocka_unit_test_setup(a_deadlock_is_found_and_told, reset_emulator),
        cmocka_unit_test_setup(ended_threads_are_not_waited_for, reset_emulator),
        cmocka_unit_test_setup(barriers_vote, reset_emulator),
        cmocka_unit_test_setup(named_barriers_join_warps, reset_emulator),
        cmocka_unit_test_setup(warp_operations_follow_the_manual, reset_emulator),
        cmocka_unit_test_setup(a_lane_that_ended_gives_nan, reset_emulator),
        cmocka_unit_test_setup(a_lane_outside_its_mask_is_found, reset_emulator),
        cmocka_unit_test_setup(block_sums, reset_emulator),
        cmocka_unit_test_setup(the_order_is_random_and_by_the_seed, reset_emulator),
        cmocka_unit_test_setup(atomics_hold_across_blocks, reset_emulator),
        cmocka_unit_test_setup(three_dimensions_are_covered_once, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
