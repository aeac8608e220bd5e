/* Hopper's products of NF4 weights decoded in registers, y and dx, against the CPU's linear in fp32 on the same rounded
 * inputs, and to the bit where only one weight is looked at. */
#include "backends.h"
#include "linear_case.h"

#include "cuda/backend.h"
#include "cuda/nf4_matmul_hopper.h"

namespace
{

bool on_hopper(const backends &with) { return nib_cuda_device_of(with.cuda)->architecture == 90; }

/* What an adapter and a bias are beside W: room columns of anything. */
struct beside_shape {
    int64_t room, gap;
};

/* y of x [M, K + room] and the linear's weights with `beside`, by the CPU in fp32 of bf16 values: the base product of
 * the linear without adapter, and the columns beside it by a loop. */
std::vector<float> expected_product(backends &with, linear_case &linear, std::vector<float> &x, int64_t M,
                                    const std::vector<float> &beside, int64_t room)
{
    const int64_t K = linear.cpu.K, N = linear.outputs();
    std::vector<float> y((size_t)(M * N));
    nib_linear base = linear.cpu;
    for (int p = 0; p < base.parts; p++) base.part[p].lora.rank = 0;
    const nib_matrix wide = dense_matrix(x, M, K + room);
    check_ok(with.cpu->linear_forward(with.cpu, &base, nib_matrix_columns(wide, 0, K), {0.0f, 0}, {},
                                      dense_matrix(y, M, N)));
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t r = 0; r < room; r++)
                y[(size_t)(m * N + n)] += x[(size_t)(m * (K + room) + K + r)] * beside[(size_t)(n * room + r)];
    return y;
}

/* Between the two: y's rounding (2^-9 of itself) and the order of fp32 sums. */
void check_product(backends &with, int64_t M, int64_t K, const std::vector<part_shape> &shapes, beside_shape s)
{
    linear_case linear(K, shapes, (uint64_t)(1000 * M + K));
    const int64_t N = linear.outputs();
    std::vector<float> x = random_bf16(1, M * (K + s.room)), beside = random_bf16(2, N * s.room);
    const std::vector<float> y = expected_product(with, linear, x, M, beside, s.room);
    strided_matrix device_x(x, M, K + s.room, 8 - s.room % 8), device_y(M, N, 8), again(M, N, 8);
    strided_matrix device_beside(beside, N, s.room, s.gap);
    check_ok(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, device_x.matrix(), device_beside.matrix(),
                                        device_y.matrix()));
    const std::vector<float> found = device_y.download();
    check_near("y", found, y, 2.5 / 512);
    nib_emulator::set_seed((uint64_t)(M + K)); /* other orders of warps and lanes: the same bits */
    check_ok(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, device_x.matrix(), device_beside.matrix(),
                                        again.matrix()));
    assert_memory_equal(again.download().data(), found.data(), found.size() * sizeof(float));
}

/* dx of dy [M, outputs + ranks] likewise: the base's by the CPU, the rows below it by a loop. */
std::vector<float> expected_dx(backends &with, linear_case &linear, std::vector<float> &dy, int64_t M,
                               const std::vector<float> &below, int64_t ranks)
{
    const int64_t K = linear.cpu.K, N = linear.outputs();
    std::vector<float> dx((size_t)(M * K)), x((size_t)(M * K));
    nib_linear base = linear.cpu;
    for (int p = 0; p < base.parts; p++) base.part[p].lora.rank = 0;
    const nib_matrix wide = dense_matrix(dy, M, N + ranks);
    check_ok(with.cpu->linear_backward(with.cpu, &base, dense_matrix(x, M, K), {0.0f, 0}, {},
                                       nib_matrix_columns(wide, 0, N), false, dense_matrix(dx, M, K)));
    for (int64_t m = 0; m < M; m++)
        for (int64_t r = 0; r < ranks; r++)
            for (int64_t k = 0; k < K; k++)
                dx[(size_t)(m * K + k)] += dy[(size_t)(m * (N + ranks) + N + r)] * below[(size_t)(r * K + k)];
    return dx;
}

/* Between the two: dx's rounding and the order of fp32 sums. */
void check_dx(backends &with, int64_t M, int64_t K, const std::vector<part_shape> &shapes, int64_t ranks)
{
    linear_case linear(K, shapes, (uint64_t)(1000 * M + K));
    const int64_t N = linear.outputs();
    std::vector<float> dy = random_bf16(1, M * (N + ranks)), below = random_bf16(2, ranks * K);
    const std::vector<float> dx = expected_dx(with, linear, dy, M, below, ranks);
    strided_matrix device_dy(dy, M, N + ranks, 8), device_below(below, ranks, K, ranks % 16);
    strided_matrix device_dx(M, K, 8), again(M, K, 8);
    check_ok(nib_cuda_nf4_matmul_hopper_backward(with.cuda, &linear.device, device_dy.matrix(), device_below.matrix(),
                                                 device_dx.matrix()));
    const std::vector<float> found = device_dx.download();
    check_near("dx", found, dx, 2.5 / 512);
    nib_emulator::set_seed((uint64_t)(M + K));
    check_ok(nib_cuda_nf4_matmul_hopper_backward(with.cuda, &linear.device, device_dy.matrix(), device_below.matrix(),
                                                 again.matrix()));
    assert_memory_equal(again.download().data(), found.data(), found.size() * sizeof(float));
}

const std::vector<part_shape> one = {{48, 0, false}}, three = {{136, 0, false}, {64, 0, false}, {8, 0, false}},
                              large = {{264, 0, false}};

void awkward_shapes(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    for (int64_t M : {1, 7, 65, 127, 128, 129, 255, 257, 300}) check_product(with, M, 64, one, {0, 0});
    for (int64_t K : {128, 192, 320, 704}) check_product(with, 66, K, three, {0, 0});
    check_product(with, 300, 256, large, {0, 0}); /* more tiles than processors: several a block */
    check_product(with, 129, 1024, three, {0, 0});
    for (int64_t M : {1100, 1290}) check_product(with, M, 64, large, {0, 0}); /* short tiles behind each other */
}

void columns_beside_the_weights(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    for (int64_t room : {2, 8, 16, 24, 64, 72, 136}) check_product(with, 67, 128, three, {room, 2});
    check_product(with, 259, 192, large, {24, 0});
}

/* x of rows with a single 1: y is a column of weights, the bits of which are those of the CPU's dequantisation. Codes
 * and double-quantised absmax are random, so each code meets many absmax. */
void every_weight_is_decoded_to_the_bit(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    const int64_t K = 256, N = 72;
    linear_case linear(K, {{72, 0, false}}, 5);
    std::vector<float> x((size_t)(K * K)), weights((size_t)(N * K));
    for (int64_t k = 0; k < K; k++) x[(size_t)(k * K + k)] = 1.0f;
    check_ok(with.cpu->nf4_dequantize(with.cpu, &linear.cpu.part[0].nf4, dense_matrix(weights, N, K)));
    strided_matrix device_x(x, K, K, 0), device_y(K, N, 8);
    check_ok(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, device_x.matrix(), {}, device_y.matrix()));
    const std::vector<float> y = device_y.download();
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++)
            if (y[(size_t)(k * N + n)] != weights[(size_t)(n * K + k)])
                fail_msg("weight [%d][%d] is %.9g, expected %.9g", (int)n, (int)k, y[(size_t)(k * N + n)],
                         weights[(size_t)(n * K + k)]);
}

void awkward_shapes_backward(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    for (int64_t M : {1, 7, 65, 127, 128, 129, 255, 257, 300}) check_dx(with, M, 64, one, 0);
    for (int64_t K : {128, 192, 320, 704}) check_dx(with, 66, K, three, 0);
    check_dx(with, 300, 256, large, 0);
    check_dx(with, 129, 1024, three, 0);
    for (int64_t M : {1100, 1290}) check_dx(with, M, 64, large, 0); /* several tiles a block */
}

void rows_below_the_weights(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    for (int64_t ranks : {8, 16, 24, 64, 72, 136}) check_dx(with, 67, 128, three, ranks);
    check_dx(with, 259, 192, large, 16); /* the rows below end where their memory does */
}

/* dy of rows with a single 1: dx is a row of weights. */
void every_weight_is_decoded_to_the_bit_backward(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    const int64_t K = 320, N = 136;
    linear_case linear(K, {{N, 0, false}}, 5);
    std::vector<float> dy((size_t)(N * N)), weights((size_t)(N * K));
    for (int64_t n = 0; n < N; n++) dy[(size_t)(n * N + n)] = 1.0f;
    check_ok(with.cpu->nf4_dequantize(with.cpu, &linear.cpu.part[0].nf4, dense_matrix(weights, N, K)));
    strided_matrix device_dy(dy, N, N, 0), device_dx(N, K, 8);
    check_ok(
        nib_cuda_nf4_matmul_hopper_backward(with.cuda, &linear.device, device_dy.matrix(), {}, device_dx.matrix()));
    const std::vector<float> dx = device_dx.download();
    for (size_t i = 0; i < weights.size(); i++)
        if (dx[i] != weights[i])
            fail_msg("weight [%d][%d] is %.9g, expected %.9g", (int)(i / K), (int)(i % K), dx[i], weights[i]);
}

void what_is_not_supported_is_refused(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    linear_case odd(64, {{12, 0, false}}, 1), narrow(96, one, 1), linear(64, one, 1);
    strided_matrix x(65, 64, 8), y(65, 48, 8), wide(65, 96, 8);
    assert_false(nib_cuda_nf4_matmul_hopper_takes(with.cuda, &odd.device, x.matrix(), y.matrix()));
    assert_int_equal(nib_cuda_nf4_matmul_hopper(with.cuda, &odd.device, x.matrix(), {}, y.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "multiple of 8 rows"));
    assert_int_equal(nib_cuda_nf4_matmul_hopper(with.cuda, &narrow.device, wide.matrix(), {}, y.matrix()),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "K 96"));
    nib_matrix shifted = x.matrix();
    shifted.stride = 71;
    assert_int_equal(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, shifted, {}, y.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "rows of 71"));
    strided_matrix few(48, 3, 0), room(65, 67, 5);
    assert_int_equal(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, room.matrix(), few.matrix(), y.matrix()),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "[48, 3] beside W"));
    check_ok(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, nib_matrix_rows(x.matrix(), 0, 0), {},
                                        nib_matrix_rows(y.matrix(), 0, 0)));
}

void what_is_not_supported_is_refused_backward(void **)
{
    backends with;
    if (!on_hopper(with)) return;
    linear_case odd(64, {{12, 0, false}}, 1), linear(64, one, 1);
    strided_matrix dy(65, 48, 8), dx(65, 64, 8), wide(65, 56, 8), three_ranks(65, 51, 5);
    const auto call = [&](linear_case &of, nib_matrix from, nib_matrix below, nib_matrix to) {
        return nib_cuda_nf4_matmul_hopper_backward(with.cuda, &of.device, from, below, to);
    };
    assert_int_equal(call(odd, dy.matrix(), {}, dx.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "multiple of 8 rows"));
    assert_int_equal(call(linear, wide.matrix(), {}, dx.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "expected [T, 48] to [T, 64]"));
    nib_matrix shifted = dx.matrix();
    shifted.stride = 71;
    assert_int_equal(call(linear, dy.matrix(), {}, shifted), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "rows of 71"));
    strided_matrix below(3, 64, 0);
    assert_int_equal(call(linear, three_ranks.matrix(), below.matrix(), dx.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "[3, 64] below W"));
    check_ok(call(linear, nib_matrix_rows(dy.matrix(), 0, 0), {}, nib_matrix_rows(dx.matrix(), 0, 0)));
}

#ifdef NIB_CUDA_EMULATED
/* Codes are read once for each tile of rows, x once for each tile of outputs, y is written once; no more. */
void the_bytes_are_those_of_the_tiles(void **)
{
    backends with;
    const int64_t M = 300, K = 256, N = 264; /* 2 x 3 tiles */
    linear_case linear(K, large, 3);
    strided_matrix x(random_bf16(1, M * K), M, K, 0), y(M, N, 0);
    check_cuda(cudaDeviceSynchronize());
    nib_emulator::reset_counters();
    check_ok(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, x.matrix(), {}, y.matrix()));
    check_cuda(cudaDeviceSynchronize());
    const nib_emulator::Counters counters = nib_emulator::counters();
    const int64_t absmax = N * K / 64 * (1 + 4 + 4); /* code, its value, its scale */
    assert_int_equal(counters.bank_conflicts, 0);
    assert_int_equal(counters.global_read, 3 * M * K * 2 + 2 * (N * K / 2 + absmax));
    assert_int_equal(counters.global_written, M * N * 2);
    assert_int_equal(counters.matrix_products, 6 * 2 * K / 16);
}

void the_bytes_are_those_of_the_tiles_backward(void **)
{
    backends with;
    const int64_t M = 300, K = 320, N = 200; /* 2 x 3 tiles of 4 steps */
    linear_case linear(K, {{N, 0, false}}, 3);
    strided_matrix dy(random_bf16(1, M * N), M, N, 0), dx(M, K, 0);
    check_cuda(cudaDeviceSynchronize());
    nib_emulator::reset_counters();
    check_ok(nib_cuda_nf4_matmul_hopper_backward(with.cuda, &linear.device, dy.matrix(), {}, dx.matrix()));
    check_cuda(cudaDeviceSynchronize());
    const nib_emulator::Counters counters = nib_emulator::counters();
    const int64_t absmax = N * K / 64 * (1 + 4 + 4); /* code, its value, its scale */
    assert_int_equal(counters.bank_conflicts, 0);
    assert_int_equal(counters.global_read, 3 * M * N * 2 + 2 * (N * K / 2 + absmax));
    assert_int_equal(counters.global_written, M * K * 2);
    assert_int_equal(counters.matrix_products, 6 * 2 * 4 * 4);
}

void another_card_is_refused(void **)
{
    nib_emulator::set_device(8, 9, 4, size_t{2} << 30);
    backends with;
    linear_case linear(64, one, 1);
    strided_matrix x(65, 64, 8), y(65, 48, 8);
    assert_int_equal(nib_cuda_nf4_matmul_hopper(with.cuda, &linear.device, x.matrix(), {}, y.matrix()),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "sm_89"));
    assert_int_equal(nib_cuda_nf4_matmul_hopper_backward(with.cuda, &linear.device, y.matrix(), {}, x.matrix()),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "sm_89"));
}
#endif

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(awkward_shapes, reset_emulator),
        cmocka_unit_test_setup(columns_beside_the_weights, reset_emulator),
        cmocka_unit_test_setup(every_weight_is_decoded_to_the_bit, reset_emulator),
        cmocka_unit_test_setup(what_is_not_supported_is_refused, reset_emulator),
        cmocka_unit_test_setup(awkward_shapes_backward, reset_emulator),
        cmocka_unit_test_setup(rows_below_the_weights, reset_emulator),
        cmocka_unit_test_setup(every_weight_is_decoded_to_the_bit_backward, reset_emulator),
        cmocka_unit_test_setup(what_is_not_supported_is_refused_backward, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(the_bytes_are_those_of_the_tiles, reset_emulator),
        cmocka_unit_test_setup(the_bytes_are_those_of_the_tiles_backward, reset_emulator),
        cmocka_unit_test_setup(another_card_is_refused, reset_emulator),
#endif
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
