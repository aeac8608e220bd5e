/* Products of NF4 weights with few rows against the CPU's linear in fp32, on the same rounded inputs. */
#include "backends.h"
#include "linear_case.h"

#include "cuda/backend.h"
#include "cuda/nf4_matvec.h"
#include "cuda/nf4_small_matmul.h"

namespace
{

using product = nib_status (*)(nib_ops *, const nib_linear *, nib_matrix, nib_matrix, nib_matrix);

/* Both u and y are bf16 on the device; u is what the CPU computed, rounded, so only y's own rounding (2^-9) and the
 * order of fp32 sums are between the two. The CPU adds the adapter of the unrounded u: 2^-9 of a part of y more. */
void check_product(backends &with, product multiply, int64_t M, int64_t K, const std::vector<part_shape> &shapes)
{
    linear_case linear(K, shapes, (uint64_t)(1000 * M + K));
    const int64_t N = linear.outputs(), R = linear.ranks();
    std::vector<float> x = random_bf16(1, M * K), u((size_t)(M * R)), y((size_t)(M * N));
    check_ok(with.cpu->linear_forward(with.cpu, &linear.cpu, dense_matrix(x, M, K), {0.0f, 0}, dense_matrix(u, M, R),
                                      dense_matrix(y, M, N)));
    strided_matrix device_x(x, M, K, 8), device_u(u, M, R, 3), device_y(M, N, 5), again(M, N, 5);
    nib_matrix u_matrix = device_u.matrix();
    if (R == 0) u_matrix.data = nullptr;
    check_ok(multiply(with.cuda, &linear.device, device_x.matrix(), u_matrix, device_y.matrix()));
    const std::vector<float> found = device_y.download();
    check_near("y", found, y, 4.0 / 512);
    nib_emulator::set_seed((uint64_t)(M + K)); /* other orders of warps and lanes: the same bits */
    check_ok(multiply(with.cuda, &linear.device, device_x.matrix(), u_matrix, again.matrix()));
    assert_memory_equal(again.download().data(), found.data(), found.size() * sizeof(float));
}

const std::vector<part_shape> one = {{48, 0, false}}, attention = {{64, 8, true}, {16, 8, false}, {16, 3, true}},
                              two_blocks = {{96, 16, false}, {80, 0, true}};

void rows_of_a_matvec(void **)
{
    backends with;
    for (int64_t M = 1; M <= 8; M++) check_product(with, nib_cuda_nf4_small_matmul, M, 64 * (2 * M + 1), attention);
    check_product(with, nib_cuda_nf4_small_matmul, 3, 64, one);
    check_product(with, nib_cuda_nf4_small_matmul, 1, 1024 + 128, one);
    check_product(with, nib_cuda_nf4_small_matmul, 5, 5 * 1024 + 64, one);
}

void rows_of_a_small_product(void **)
{
    backends with;
    for (int64_t M : {9, 16, 17, 31, 33, 64}) check_product(with, nib_cuda_nf4_small_matmul, M, 64 * 9, two_blocks);
    check_product(with, nib_cuda_nf4_small_matmul, 12, 64, one);
    check_product(with, nib_cuda_nf4_small_matmul, 10, 2048 + 64, attention); /* several ranges of columns */
}

void the_plain_product(void **)
{
    backends with;
    for (int64_t M : {1, 8, 9, 64}) check_product(with, nib_cuda_nf4_small_matmul_plain, M, 64 * 5, attention);
    check_product(with, nib_cuda_nf4_small_matmul, 12, 192, {{24, 4, true}, {7, 1, false}}); /* odd parts fall back */
}

#ifdef NIB_CUDA_EMULATED
/* A matvec reads codes once, rows of x once for 16 outputs, and an absmax once for each half of its block, for one
 * product of 16 outputs and 16 columns each. A product of more rows asks for a step's tiles once: x [16][128] and codes
 * [128][128], 16 bytes a copy. */
void the_bytes_are_those_of_the_tiles(void **)
{
    backends with;
    const int64_t K = 4096, N = 48, steps = K / 128;
    for (int64_t M : {3, 8, 9}) {
        const linear_case linear(K, one, 7);
        strided_matrix x(random_bf16(1, M * K), M, K, 8), y(M, N, 8);
        check_cuda(cudaDeviceSynchronize());
        nib_emulator::reset_counters();
        check_ok(nib_cuda_nf4_small_matmul(with.cuda, &linear.device, x.matrix(), {}, y.matrix()));
        check_cuda(cudaDeviceSynchronize());
        const nib_emulator::Counters counters = nib_emulator::counters();
        const int64_t absmax = N * K / 64 * (1 + 4 + 4);
        if (M <= NIB_CUDA_MATVEC_ROWS) {
            assert_int_equal(counters.global_read, N * K / 2 + N / 16 * M * K * 2 + 2 * absmax);
            assert_int_equal(counters.matrix_products, N / 16 * K / 16);
        } else
            assert_int_equal(counters.async_copies, steps * (16 * 128 * 2 + 128 * 128 / 2) / 16);
    }
}
#endif

void what_is_not_supported_is_refused(void **)
{
    backends with;
    linear_case linear(64, one, 1);
    strided_matrix x(65, 64, 8), y(65, 48, 0);
    assert_false(nib_cuda_nf4_small_matmul_takes(&linear.device, 65));
    assert_int_equal(nib_cuda_nf4_small_matmul(with.cuda, &linear.device, x.matrix(), {}, y.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "[65, 64]"));
    nib_matrix few = nib_matrix_rows(x.matrix(), 0, 4);
    assert_int_equal(nib_cuda_nf4_small_matmul(with.cuda, &linear.device, few, {}, y.matrix()), NIB_ERROR_SHAPE);
    few.stride = 71;
    assert_int_equal(nib_cuda_nf4_small_matmul(with.cuda, &linear.device, few, {}, nib_matrix_rows(y.matrix(), 0, 4)),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "rows of 71"));
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(rows_of_a_matvec, reset_emulator),
        cmocka_unit_test_setup(rows_of_a_small_product, reset_emulator),
        cmocka_unit_test_setup(the_plain_product, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(the_bytes_are_those_of_the_tiles, reset_emulator),
#endif
        cmocka_unit_test_setup(what_is_not_supported_is_refused, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
