/* The backend itself: why there is no device, copies, scratch that grows in the middle of an op. */
#include "cuda_check.h"

#include "cuda/backend.h"
#include "cuda/launch.cuh"

extern "C" {
#include "base/random.h"
#include "cpu/backend.h"
}

#include <cmath>

static nib_ops *open_backend()
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    return ops;
}

#ifdef NIB_CUDA_EMULATED
static void check_refused(const char *reason)
{
    nib_ops *ops;
    assert_int_equal(nib_cuda_backend_create(0, &ops), NIB_ERROR_DEVICE);
    assert_null(ops);
    if (strstr(nib_error_message(), reason) == nullptr)
        fail_msg("expected: %s, found: %s", reason, nib_error_message());
}

static void a_missing_device_is_explained(void **)
{
    nib_emulator::set_device_count(0);
    check_refused("finds no GPU");
    nib_emulator::reset();
    nib_emulator::set_device(7, 5, 40, size_t{16} << 30);
    check_refused("sm_75; Nibble needs sm_80");
    nib_emulator::reset();
    nib_ops *ops;
    assert_int_equal(nib_cuda_backend_create(3, &ops), NIB_ERROR_DEVICE);
    assert_non_null(strstr(nib_error_message(), "rank 3 of this machine"));
}

static void each_rank_has_its_own_device(void **)
{
    nib_emulator::set_device_count(2);
    nib_ops *ops;
    int current = 0;
    check_ok(nib_cuda_backend_create(1, &ops));
    check_cuda(cudaGetDevice(&current));
    assert_int_equal(current, 1);
    assert_non_null(strstr(ops->device, "emulated 1, sm_90"));
    ops->close(ops);
    assert_int_equal(nib_cuda_backend_create(2, &ops), NIB_ERROR_DEVICE);
    assert_non_null(strstr(nib_error_message(), "rank 2 of this machine has no GPU of its own: it sees 2"));
}
#endif

static void copies_of_any_size_arrive(void **)
{
    nib_ops *ops = open_backend();
    for (size_t bytes :
         {size_t{1}, size_t{1} << 20, (size_t{9} << 20) + 5}) { /* a piece of the ring, and more than all */
        std::vector<uint8_t> sent(bytes), received(bytes), fetched(bytes);
        void *block;
        for (size_t i = 0; i < bytes; i++) sent[i] = (uint8_t)(i * 7 + i / 251);
        std::vector<uint8_t> want = sent;
        check_ok(ops->allocate(ops, "test", bytes, &block));
        check_ok(ops->upload(ops, block, sent.data(), bytes));
        std::fill(sent.begin(), sent.end(), 0); /* the host's memory is free at once */
        check_ok(ops->fetch(ops, fetched.data(), block, bytes));
        check_ok(ops->download(ops, received.data(), block, bytes));
        check_ok(ops->synchronize(ops));
        assert_true(received == want && fetched == want);
        ops->release(ops, block, bytes);
    }
    ops->close(ops);
}

/* Small and large pieces in both directions, more than the ring of pinned memory holds, in bytes and in number: what
 * comes round to a piece that is on its way waits for it. Without a large one, a step's worth does not wait at all. */
static void copies_in_flight_keep_apart(void **)
{
    nib_ops *ops = open_backend();
    constexpr size_t most = size_t{3} << 19, rounds = 600;
    std::vector<std::vector<uint8_t>> want(rounds), fetched(rounds);
    void *block;
    check_ok(ops->allocate(ops, "test", most, &block));
    for (size_t i = 0; i < rounds; i++) {
        const size_t bytes = i % 50 == 49 ? most - i : 1 + i * 13 % 70;
        for (size_t k = 0; k < bytes; k++) want[i].push_back((uint8_t)(i * 31 + k * 7 + k / 251));
        fetched[i].resize(bytes);
        std::vector<uint8_t> sent = want[i];
        check_ok(ops->upload(ops, block, sent.data(), bytes));
        check_ok(ops->fetch(ops, fetched[i].data(), block, bytes));
    }
    check_ok(ops->synchronize(ops));
    assert_true(fetched == want);
#ifdef NIB_CUDA_EMULATED
    const uint64_t before = nib_emulator::host_waits();
    std::vector<uint8_t> losses(1 << 16);
    for (int i = 0; i < 60; i++) {
        check_ok(ops->upload(ops, block, want[49].data(), 1 << 16));
        check_ok(ops->fetch(ops, losses.data(), block, losses.size()));
    }
    assert_int_equal(nib_emulator::host_waits() - before, 0);
#endif
    ops->release(ops, block, most);
    ops->close(ops);
}

static void too_large_a_tensor_is_named(void **)
{
    nib_ops *ops = open_backend();
    void *block;
    assert_int_equal(ops->allocate(ops, "base weights", size_t{1} << 40, &block), NIB_ERROR_MEMORY);
    assert_non_null(strstr(nib_error_message(), "no memory on the device for base weights: 1024.00 GiB asked for"));
    ops->close(ops);
}

/* Pieces that do not fit keep those before them; the next op finds one block of the peak. */
static void scratch_grows(void **)
{
    nib_ops *ops = open_backend();
    nib_arena *scratch = ops->scratch;
    void *first, *second, *third;
    for (int round = 0; round < 3; round++) {
        check_ok(nib_arena_take(scratch, 1000, 1, &first));
        check_ok(ops->zero(ops, first, 1000));
        for (int again = 0; again < 40; again++) { /* more often than spills are kept */
            size_t mark = scratch->used;
            check_ok(nib_arena_take(scratch, 1 << 20, 1, &second));
            check_ok(nib_arena_take(scratch, 1 << 20, 1, &third));
            assert_true(second != third && second != first);
            check_ok(ops->zero(ops, second, 1 << 20));
            check_ok(ops->zero(ops, third, 1 << 20));
            nib_arena_reset(scratch, mark);
        }
        nib_arena_reset(scratch, 0);
        if (round > 0) assert_true(scratch->capacity == scratch->peak);
    }
    check_ok(ops->synchronize(ops));
    ops->close(ops);
#ifdef NIB_CUDA_EMULATED
    assert_int_equal(nib_emulator::device_memory_used(), 0);
#endif
}

#ifdef NIB_CUDA_EMULATED
__global__ void write_kernel(float *x, int64_t i) { x[i] = 1.0f; }

/* One element behind a piece of scratch is another's, whether its size is a whole number of lines or not; what lay
 * there before counts no more. */
static void a_write_behind_a_piece_of_scratch_is_reported(void **)
{
    for (int64_t n : {1, 63, 100, 64 * 4, 4095}) {
        nib_ops *ops = open_backend();
        float *first, *second;
        for (int round = 0; round < 2; round++) { /* the second round finds a block for both */
            check_ok(nib_arena_take(ops->scratch, n, sizeof(float), &first));
            check_ok(nib_arena_take(ops->scratch, 7, sizeof(float), &second));
            nib_arena_reset(ops->scratch, 0);
        }
        check_ok(nib_arena_take(ops->scratch, n, sizeof(float), &first));
        check_ok(nib_arena_take(ops->scratch, 7, sizeof(float), &second));
        for (int64_t i : {int64_t{0}, n - 1})
            check_ok(nib_cuda_launch(write_kernel, 1, 1, 0, nib_cuda_stream(ops), first, i));
        check_ok(nib_cuda_launch(write_kernel, 1, 1, 0, nib_cuda_stream(ops), second, int64_t{6}));
        nib_arena_reset(ops->scratch, 0);
        check_ok(nib_arena_take(ops->scratch, n + 1, sizeof(float), &first));
        check_ok(nib_cuda_launch(write_kernel, 1, 1, 0, nib_cuda_stream(ops), first, n));
        check_ok(ops->synchronize(ops));
        check_ok(nib_cuda_launch(write_kernel, 1, 1, 0, nib_cuda_stream(ops), first, n + 1));
        const std::string bytes = std::to_string(4 * (n + 1));
        check_kernel_fails(
            ("write_kernel: byte " + bytes + " of a piece of " + bytes + " bytes of scratch was written").c_str());
        ops->close(ops);
        nib_emulator::reset();
    }
}
#endif

int main()
{
    const struct CMUnitTest tests[] = {
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(a_missing_device_is_explained, reset_emulator),
        cmocka_unit_test_setup(each_rank_has_its_own_device, reset_emulator),
#endif
        cmocka_unit_test_setup(copies_of_any_size_arrive, reset_emulator),
        cmocka_unit_test_setup(copies_in_flight_keep_apart, reset_emulator),
        cmocka_unit_test_setup(too_large_a_tensor_is_named, reset_emulator),
        cmocka_unit_test_setup(scratch_grows, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(a_write_behind_a_piece_of_scratch_is_reported, reset_emulator),
#endif
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
