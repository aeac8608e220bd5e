/* DoRA's own kernels: norms against the CPU backend's over NF4 and dense weights, with rows, columns and ranks that
 * fill no tile; what they scale and sum against loops in double, with and without whole vectors; refusals. The
 * gradients of a linear with DoRA: test_linear.cpp. */
#include "cuda_check.h"

extern "C" {
#include "base/random.h"
}

#include "linear_case.h"

#include "backends.h"

#include "cuda/dora.h"

/* fp32 sums of up to 1000 squares in another order, each rounded at 2^-24: 1e-5 is far above, an element that is
 * missing or counted twice far beyond. */
static const double NORM_TOLERANCE = 1e-5;

static void norms_are_the_cpu_backends(void **)
{
    const backends on;
    const struct {
        int64_t K, rows, rank;
    } shapes[] = {{64, 1, 1}, {128, 48, 4}, {100, 17, 3}, {300, 33, 32}, {256, 16, 33}, {1000, 15, 70}};
    for (const auto &s : shapes) {
        linear_case linear(s.K, {{s.rows, s.rank, false, true}}, 7);
        check_ok(on.cpu->dora_norm(on.cpu, &linear.cpu.part[0], s.K));
        check_ok(on.cuda->dora_norm(on.cuda, &linear.device.part[0], s.K));
        check_near("norm", linear.device_norm(0), linear.cpu_norm(0), NORM_TOLERANCE);
        check_near("gain", linear.device_gain(0), linear.cpu_gain(0), NORM_TOLERANCE);
    }
}

/* The NF4 weights as they are dequantised, in bf16 with gaps between the rows and in fp32: the same norms. */
static void dense_weights_have_the_same_norms(void **)
{
    const backends on;
    const int64_t K = 128, rows = 20;
    linear_case linear(K, {{rows, 5, false, true}}, 7);
    std::vector<float> wide((size_t)(rows * K));
    check_ok(on.cpu->nf4_dequantize(on.cpu, &linear.cpu.part[0].nf4, dense_matrix(wide, rows, K)));
    check_ok(on.cuda->dora_norm(on.cuda, &linear.device.part[0], K));
    const std::vector<float> expected = linear.device_norm(0);
    const strided_matrix narrow(wide, rows, K, 8);
    const device_buffer<float> device_wide(wide);
    for (const nib_matrix &dense : {narrow.matrix(), nib_matrix{device_wide.data(), rows, K, K, NIB_DTYPE_F32}}) {
        nib_linear_part part = linear.device.part[0];
        part.nf4.codes = nullptr;
        part.dense = dense;
        check_ok(on.cuda->zero(on.cuda, part.lora.dora.norm, (size_t)rows * sizeof(float)));
        check_ok(on.cuda->dora_norm(on.cuda, &part, K));
        const std::vector<float> found = linear.device_norm(0);
        assert_memory_equal(found.data(), expected.data(), expected.size() * sizeof(float));
    }
}

/* A row of zeros and no adapter on it: no direction, no division by zero. */
static void a_row_of_zeros_has_gain_zero(void **)
{
    const backends on;
    const int64_t K = 64, rows = 3;
    linear_case linear(K, {{rows, 4, false, true}}, 7);
    nib_linear_part part = linear.device.part[0];
    const strided_matrix zeros(std::vector<float>((size_t)(rows * K)), rows, K, 0),
        b(std::vector<float>((size_t)(rows * 4)), rows, 4, 0);
    part.nf4.codes = nullptr;
    part.dense = zeros.matrix();
    part.lora.b = b.matrix();
    check_ok(on.cuda->dora_norm(on.cuda, &part, K));
    for (float gain : linear.device_gain(0)) assert_true(gain == 0.0f);
}

static void scaling_and_sums_are_as_written(void **)
{
    const backends on;
    const int64_t T = 70;
    const std::vector<std::vector<part_shape>> shapes = {{{48, 4, true, true}, {16, 4, false, true}, {8, 0, true}},
                                                         {{21, 4, true, true}, {12, 4, false}},
                                                         {{24, 4, false, true}}};
    for (const auto &parts : shapes) {
        linear_case linear(64, parts, 7);
        const int64_t N = linear.outputs();
        const std::vector<float> base = random_bf16(1, T * N), through = random_bf16(2, T * N),
                                 dy = random_bf16(3, T * N);
        const device_buffer<float> device_base(base), device_through(through);
        const strided_matrix device_dy(dy, T, N, 8), y(T, N, 8), scaled(T, N, 16);
        const nib_matrix wide_base = {device_base.data(), T, N, N, NIB_DTYPE_F32},
                         wide_through = {device_through.data(), T, N, N, NIB_DTYPE_F32};
        for (int p = 0; p < linear.cpu.parts; p++)
            if (parts[(size_t)p].dora) check_ok(on.cuda->dora_norm(on.cuda, &linear.device.part[p], 64));
        check_ok(nib_cuda_dora_output(on.cuda, &linear.device, wide_base, wide_through, y.matrix()));
        check_ok(nib_cuda_dora_gradient(on.cuda, &linear.device, device_dy.matrix(), 0.5f, scaled.matrix()));
        check_ok(nib_cuda_dora_magnitude(on.cuda, &linear.device, device_dy.matrix(), wide_through));
        const std::vector<float> found_y = y.download(), found_scaled = scaled.download();
        for (int64_t p = 0, first = 0; p < linear.cpu.parts; first += parts[(size_t)p++].rows) {
            const bool dora = parts[(size_t)p].dora;
            const std::vector<float> gain = linear.device_gain((int)p), norm = linear.device_norm((int)p);
            const std::vector<float> sums = linear.device_dmagnitude((int)p);
            for (int64_t n = 0; n < parts[(size_t)p].rows; n++) {
                const double g = dora ? gain[(size_t)n] : 1.0;
                const double bias = parts[(size_t)p].bias ? linear.cpu.part[p].bias[n] : 0.0;
                double sum = linear.cpu_dmagnitude((int)p)[(size_t)n];
                for (int64_t t = 0; t < T; t++) {
                    const size_t i = (size_t)(t * N + first + n);
                    const double want = base[i] + (g - 1) * through[i] + bias, slope = (g - 0.5) * dy[i];
                    /* rounded once to bf16, 2^-8 at most, from fp32 sums of values up to 4 */
                    assert_true(std::fabs(found_y[i] - want) <= 0x1.01p-8 * std::fabs(want) + 1e-6);
                    assert_true(std::fabs(found_scaled[i] - slope) <= 0x1.01p-8 * std::fabs(slope) + 1e-6);
                    sum += dora ? (double)dy[i] * through[i] / norm[(size_t)n] : 0.0;
                }
                assert_true(!dora || std::fabs(sums[(size_t)n] - sum) <= 1e-5);
            }
        }
    }
}

#ifdef NIB_CUDA_EMULATED
/* Where a slice of tokens ends the next one begins: whole vectors, which are counted, are read and written once. */
static void every_value_moves_once(void **)
{
    const backends on;
    const int64_t T = 70, N = 24;
    linear_case linear(64, {{N, 4, false, true}}, 7);
    const strided_matrix dy(random_bf16(1, T * N), T, N, 8), to(T, N, 8);
    const device_buffer<float> base(random_bf16(2, T * N)), through(random_bf16(3, T * N));
    check_ok(on.cuda->dora_norm(on.cuda, &linear.device.part[0], 64));
    check_cuda(cudaDeviceSynchronize());
    nib_emulator::reset_counters();
    check_ok(nib_cuda_dora_gradient(on.cuda, &linear.device, dy.matrix(), 0.0f, to.matrix()));
    check_ok(nib_cuda_dora_output(on.cuda, &linear.device, {base.data(), T, N, N, NIB_DTYPE_F32},
                                  {through.data(), T, N, N, NIB_DTYPE_F32}, to.matrix()));
    check_cuda(cudaDeviceSynchronize());
    const nib_emulator::Counters counters = nib_emulator::counters();
    assert_int_equal(counters.global_written, 2 * T * N * 2);
    assert_int_equal(counters.global_read, T * N * (2 + 4 + 4));
}
#endif

static void what_does_not_fit_is_refused(void **)
{
    const backends on;
    linear_case linear(64, {{48, 4, false, true}}, 7);
    const strided_matrix y(3, 40, 0);
    const device_buffer<float> sums(3 * 48);
    const nib_matrix wide = {sums.data(), 3, 48, 48, NIB_DTYPE_F32};
    assert_int_equal(on.cuda->dora_norm(on.cuda, &linear.device.part[0], 65), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "A [4, 64]"));
    assert_int_equal(nib_cuda_dora_output(on.cuda, &linear.device, wide, wide, y.matrix()), NIB_ERROR_SHAPE);
    assert_int_equal(nib_cuda_dora_gradient(on.cuda, &linear.device, y.matrix(), 0.0f, y.matrix()), NIB_ERROR_SHAPE);
    assert_int_equal(nib_cuda_dora_magnitude(on.cuda, &linear.device, y.matrix(), wide), NIB_ERROR_SHAPE);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(norms_are_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(dense_weights_have_the_same_norms, reset_emulator),
        cmocka_unit_test_setup(a_row_of_zeros_has_gain_zero, reset_emulator),
        cmocka_unit_test_setup(scaling_and_sums_are_as_written, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(every_value_moves_once, reset_emulator),
#endif
        cmocka_unit_test_setup(what_does_not_fit_is_refused, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
