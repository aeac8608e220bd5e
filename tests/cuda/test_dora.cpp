/* DoRA's own kernels: norms against the CPU backend's over NF4 and dense weights, with rows, columns and ranks that
 * fill no tile; what they scale and sum against loops in double, with and without whole vectors; refusals. The
 * gradients of a linear with DoRA against differences of its output; against the CPU's: test_linear.cpp. */
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

/* A linear with DoRA on both parts, and sum(dy y) of it. */
struct loss_case {
    static constexpr int64_t K = 128;
    const backends &on;
    const int64_t T;
    linear_case of{K, {{48, 4, true, true}, {24, 8, false, true}}, 7};
    nib_linear &linear = of.device;
    std::vector<float> x, dy;
    const device_buffer<uint64_t> key{std::vector<uint64_t>{11, 12}};
    const nib_dropout dropout;
    strided_matrix u{T, 12, 8};

    loss_case(const backends &b, int64_t tokens, float p)
        : on(b), T(tokens), x(random_bf16(1, T * K)), dy(random_bf16(2, T * of.outputs())), dropout{p, key.data()}
    {
        find_norms();
    }
    void find_norms()
    {
        for (int p = 0; p < linear.parts; p++) check_ok(on.cuda->dora_norm(on.cuda, &linear.part[p], K));
    }
    double loss()
    {
        const strided_matrix from(x, T, K, 8), y(T, of.outputs(), 8);
        check_ok(on.cuda->linear_forward(on.cuda, &linear, from.matrix(), dropout, u.matrix(), y.matrix()));
        const std::vector<float> found = y.download();
        double sum = 0.0;
        for (size_t i = 0; i < found.size(); i++) sum += (double)dy[i] * found[i];
        return sum;
    }
    std::vector<float> backward()
    {
        const strided_matrix from(x, T, K, 8), slope(dy, T, of.outputs(), 8), dx(T, K, 8);
        check_ok(on.cuda->linear_backward(on.cuda, &linear, from.matrix(), dropout, u.matrix(), slope.matrix(), false,
                                          dx.matrix()));
        return dx.download();
    }
};

/* values a step along their gradient, as large as half of them, and as bf16 holds it; *gain: what the loss gains by it,
 * if the gradient is right. */
static std::vector<float> step_along(const std::vector<float> &values, const std::vector<float> &gradient, double *gain)
{
    double squares = 0.0, slopes = 0.0;
    for (float v : values) squares += (double)v * v;
    for (float g : gradient) slopes += (double)g * g;
    const double factor = 0.5 * std::sqrt(squares / slopes);
    std::vector<float> stepped = values;
    *gain = 0.0;
    for (size_t i = 0; i < values.size(); i++) {
        stepped[i] = nib_bf16_to_float(nib_bf16_from_float((float)(values[i] + factor * gradient[i])));
        *gain += (double)gradient[i] * ((double)stepped[i] - values[i]);
    }
    return stepped;
}

static std::vector<float> less(std::vector<float> after, const std::vector<float> &before)
{
    for (size_t i = 0; i < after.size(); i++) after[i] -= before[i];
    return after;
}

/* Along the gradient a difference is a sum of as many terms as there are values, all of one sign, where rounding of u
 * and y by 2^-9 has either: it moves the sum by less than 2^-9 of it. A term of the gradient that is missing, or has
 * the other sign, moves it by its whole share. */
static void check_difference(const char *what, double found, double expected)
{
    if (!(expected > 0.0 && std::fabs(found - expected) <= 0x1p-6 * expected))
        fail_msg("%s: the loss changes by %.7g, by its gradient %.7g", what, found, expected);
}

static void check_differences(const backends &on, int64_t T, float p)
{
    loss_case c(on, T, p);
    double gain;
    const double base = c.loss();
    const std::vector<float> x = c.x, dx = c.backward();
    c.x = step_along(x, dx, &gain);
    check_difference("x", c.loss() - base, gain);
    c.x = x;
    for (int i = 0; i < c.linear.parts; i++) {
        nib_lora &lora = c.linear.part[i].lora;
        const nib_lora &wide = c.of.cpu.part[i].lora, was = lora;
        const auto values = [](const nib_matrix &m) {
            return std::vector<float>((const float *)m.data, (const float *)m.data + m.rows * m.columns);
        };
        const strided_matrix a(step_along(values(wide.a), less(c.of.device_da(i), c.of.cpu_da(i)), &gain), lora.rank,
                               loss_case::K, 0);
        lora.a = a.matrix(); /* the norms stay: they count as constants */
        check_difference("A", c.loss() - base, gain);
        lora.a = was.a;
        const strided_matrix b(step_along(values(wide.b), less(c.of.device_db(i), c.of.cpu_db(i)), &gain),
                               c.linear.part[i].rows, lora.rank, 0);
        lora.b = b.matrix();
        check_difference("B", c.loss() - base, gain);
        lora.b = was.b;
        const std::vector<float> magnitude(wide.dora.magnitude, wide.dora.magnitude + c.linear.part[i].rows);
        const device_buffer<float> stepped(
            step_along(magnitude, less(c.of.device_dmagnitude(i), c.of.cpu_dmagnitude(i)), &gain));
        lora.dora.magnitude = stepped.data();
        c.find_norms();
        check_difference("magnitude", c.loss() - base, gain);
        lora.dora.magnitude = was.dora.magnitude;
        c.find_norms();
    }
}

/* y is linear in x, in A, in B and in the magnitudes, each by itself: the difference over a step of any size is what
 * the gradient says. By the path of few rows, that of many, and with masks. */
static void gradients_meet_differences(void **)
{
    const backends on;
    check_differences(on, 5, 0.0f);
    check_differences(on, 70, 0.0f);
    check_differences(on, 70, 0.3f);
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
        cmocka_unit_test_setup(gradients_meet_differences, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(every_value_moves_once, reset_emulator),
#endif
        cmocka_unit_test_setup(what_does_not_fit_is_refused, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
