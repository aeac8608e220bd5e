/* Linears in 8-bit floating point: rows of activations, each the nearest number by a search through the format;
 * products by cublasLt's stand-in and by the plain kernel, whose bits have to be those of the sum in double, since
 * products and scales are exact; and linears with adapters, forward and backward. */
#include "cuda_check.h"

extern "C" {
#include "base/random.h"
}

#include "backends.h"
#include "e4m3_numbers.h"
#include "linear_case.h"

#include "cuda/choice.h"
#include "cuda/linear.h"
#include "cuda/linear_fp8.h"
#include "cuda/nf4_dequantize.h"
#include "cuda/quantize_e4m3.h"

namespace
{

float held_by_bf16(float x) { return nib_bf16_to_float(nib_bf16_from_float(x)); }

template <class T> std::vector<T> download(nib_ops *ops, const T *from, int64_t n)
{
    std::vector<T> values((size_t)n);
    check_ok(ops->download(ops, values.data(), from, values.size() * sizeof(T)));
    return values;
}

/* Of a row; NaN if it holds what is not finite. */
float row_scale(const float *row, int64_t K)
{
    float largest = 0;
    for (int64_t k = 0; k < K; k++) {
        const float size = std::fabs(row[k]);
        largest = std::isfinite(largest) && !(size <= largest) ? size : largest;
    }
    return std::isfinite(largest) ? e4m3_scale(largest) : NAN;
}

/* x as the format holds it, row by row; NaN in a row that holds what is not finite. */
std::vector<float> rounded_rows(const std::vector<float> &x, int64_t T, int64_t K)
{
    std::vector<float> rounded(x.size());
    for (int64_t t = 0; t < T; t++) {
        const float scale = row_scale(x.data() + t * K, K);
        for (int64_t k = 0; k < K; k++)
            rounded[(size_t)(t * K + k)] =
                std::isnan(scale) ? NAN : scale * e4m3_number(nearest_e4m3(x[(size_t)(t * K + k)] / scale));
    }
    return rounded;
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void check_quantized(nib_ops *ops, const std::vector<float> &x, int64_t T, int64_t K)
{
    const strided_matrix device_x(x, T, K, 8);
    const std::vector<float> expected = rounded_rows(x, T, K);
    nib_cuda_e4m3 out;
    check_ok(nib_cuda_quantize_e4m3(ops, device_x.matrix(), &out));
    const std::vector<uint8_t> data = download(ops, out.data, T * out.stride);
    const std::vector<float> scale = download(ops, out.scale, T);
    for (int64_t t = 0; t < T; t++) {
        assert_true(same(scale[(size_t)t], row_scale(x.data() + t * K, K)));
        for (int64_t k = 0; k < K; k++) {
            const float number = e4m3_number(data[(size_t)(t * out.stride + k)]), found = scale[(size_t)t] * number;
            assert_int_equal(std::isnan(number), std::isnan(scale[(size_t)t]));
            if (!same(found, expected[(size_t)(t * K + k)]))
                fail_msg("row %d, column %d: %.9g becomes %.9g, expected %.9g", (int)t, (int)k, x[(size_t)(t * K + k)],
                         found, expected[(size_t)(t * K + k)]);
        }
    }
    nib_arena_reset(ops->scratch, 0);
}

/* Rows of all sizes that bf16 has, each with numbers of twenty binades; rows whose largest is just within and just
 * beyond a power of two times 448; rows of zeros. */
void rows_are_the_nearest_numbers(void **)
{
    const backends on;
    for (int64_t K : {16, 112, 272}) {
        const int64_t T = 19;
        std::vector<float> x = random_bf16(5, T * K);
        for (int64_t t = 0; t < T; t++)
            for (int64_t k = 0; k < K; k++)
                x[(size_t)(t * K + k)] = held_by_bf16(std::ldexp(x[(size_t)(t * K + k)], (int)(14 * t - 125 - k % 20)));
        for (int64_t k = 0; k < K; k++) x[(size_t)(3 * K + k)] = k % 2 ? -0.0f : 0.0f;
        x[(size_t)(5 * K + 1)] = std::ldexp(448.0f, -11);
        x[(size_t)(6 * K + K - 1)] = -std::ldexp(450.0f, -9);
        x[(size_t)(7 * K + K / 2)] = std::ldexp(510.0f, 3);
        check_quantized(on.cuda, x, T, K);
    }
}

/* Wherever it stands, and whatever its sign: nothing of the row is left that could pass for a number. */
void a_row_that_is_not_finite_is_none(void **)
{
    const backends on;
    const int64_t T = 9, K = 272;
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY})
        for (int64_t k : {int64_t{0}, int64_t{131}, K - 1}) {
            std::vector<float> x = random_bf16(6, T * K);
            x[(size_t)(4 * K + k)] = bad;
            check_quantized(on.cuda, x, T, K);
        }
}

struct operand {
    device_buffer<uint8_t> data;
    device_buffer<float> scale;
    nib_cuda_e4m3 matrix;
    std::vector<float> values;
    operand(uint64_t seed, int64_t rows, int64_t columns, bool one_scale)
        : data((size_t)(rows * (columns + 16))),
          scale((size_t)rows), matrix{data.data(), rows, columns, columns + 16, scale.data()}
    {
        std::vector<uint8_t> bytes((size_t)(rows * matrix.stride), 127);
        std::vector<float> scales;
        for (int64_t i = 0; i < rows; i++) {
            scales.push_back(std::ldexp(1.0f, one_scale ? -9 : (int)(i % 7) - 12));
            for (int64_t k = 0; k < columns; k++) {
                const uint8_t byte = nearest_e4m3(4.0f * uniform_value(seed, (uint64_t)(i * columns + k)));
                bytes[(size_t)(i * matrix.stride + k)] = byte;
                values.push_back(scales.back() * e4m3_number(byte));
            }
        }
        data.upload(bytes);
        scale.upload(scales);
    }
};

/* Sums of some hundred products of eight bits each are exact in fp32 but for a few of their last bits, so one rounding
 * to bf16 is all there is. */
std::vector<float> check_product(nib_ops *ops, int64_t M, int64_t N, int64_t K, bool accumulate)
{
    const operand a(1, M, K, false), b(2, N, K, true);
    const std::vector<float> before = random_bf16(3, M * N);
    const strided_matrix c(before, M, N, 8);
    check_ok(nib_cuda_matmul_e4m3(ops, &a.matrix, &b.matrix, accumulate, c.matrix()));
    const std::vector<float> found = c.download();
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < K; k++) {
                const double x = (double)a.values[(size_t)(m * K + k)] * (double)b.values[(size_t)(n * K + k)];
                sum += x;
                size += std::fabs(x);
            }
            const double base = accumulate ? (double)before[(size_t)(m * N + n)] : 0;
            const double allowed = std::ldexp(std::fabs(base + sum) + std::fabs(sum), -8) + std::ldexp(size, -20);
            if (!(std::fabs((double)found[(size_t)(m * N + n)] - base - sum) <= allowed))
                fail_msg("[%d][%d] is %.9g, expected %.9g", (int)m, (int)n, found[(size_t)(m * N + n)], base + sum);
        }
    assert_int_equal(ops->scratch->used, 0);
    return found;
}

/* A Hopper scales rows within the product, an Ada afterwards: the same bits. */
void products_meet_double_sums(void **)
{
    const int64_t sizes[][3] = {{1, 16, 16}, {33, 48, 112}, {130, 32, 272}};
    for (const auto &s : sizes)
        for (bool accumulate : {false, true}) {
            std::vector<float> hopper;
#ifdef NIB_CUDA_EMULATED
            for (int architecture : {90, 89, 120}) {
                nib_emulator::set_device(architecture / 10, architecture % 10, 4, size_t{1} << 30);
#endif
                const backends on;
                const std::vector<float> found = check_product(on.cuda, s[0], s[1], s[2], accumulate);
                if (hopper.empty()) hopper = found;
                if (!accumulate) assert_true(found == hopper);
                on.cuda->use_plain(on.cuda, 1u << NIB_CUDA_MATMUL);
                check_product(on.cuda, s[0], s[1], s[2], accumulate);
#ifdef NIB_CUDA_EMULATED
            }
#endif
        }
}

void refused(nib_status status, const char *why)
{
    assert_int_equal(status, NIB_ERROR_SHAPE);
    if (strstr(nib_error_message(), why) == nullptr) fail_msg("expected: %s, found: %s", why, nib_error_message());
}

void what_does_not_fit_is_refused(void **)
{
    const backends on;
    const operand a(1, 8, 64, false), b(2, 32, 64, true), narrow(3, 24, 64, true), shallow(4, 32, 48, true);
    const strided_matrix c(8, 32, 8), odd(8, 24, 8), uneven(8, 32, 4), x(8, 40, 8), y(8, 20, 4);
    nib_cuda_e4m3 out;
    refused(nib_cuda_matmul_e4m3(on.cuda, &a.matrix, &shallow.matrix, false, c.matrix()), "[8, 64] x [32, 48]");
    refused(nib_cuda_matmul_e4m3(on.cuda, &a.matrix, &narrow.matrix, false, odd.matrix()), "multiple of 16");
    refused(nib_cuda_matmul_e4m3(on.cuda, &a.matrix, &b.matrix, false, uneven.matrix()), "16-byte aligned");
    refused(nib_cuda_quantize_e4m3(on.cuda, x.matrix(), &out), "quantize_e4m3: x [8, 40]");
    refused(nib_cuda_quantize_e4m3(on.cuda, nib_matrix_columns(c.matrix(), 4, 16), &out), "16-byte aligned");
    linear_case linear(64, {{20, 4, false}}, 77);
    refused(nib_cuda_linear_fp8_forward(on.cuda, &linear.device, strided_matrix(8, 64, 8).matrix(), y.matrix()),
            "linear test in fp8");
}

#ifdef NIB_CUDA_EMULATED
void an_older_card_is_refused(void **)
{
    for (int architecture : {80, 86}) {
        nib_emulator::set_device(8, architecture % 10, 4, size_t{1} << 30);
        const backends on;
        const operand a(1, 8, 64, false), b(2, 32, 64, true);
        const strided_matrix c(8, 32, 8);
        assert_false(on.cuda->fp8);
        refused(nib_cuda_matmul_e4m3(on.cuda, &a.matrix, &b.matrix, false, c.matrix()), "sm_8");
    }
}
#endif

/* W [outputs, K] as e4m3 holds it. Its numbers are far above the format's smallest, so that any power of two will do.
 */
std::vector<float> rounded_weight(nib_ops *ops, const nib_linear &linear)
{
    const device_buffer<float> scale(std::vector<float>{std::ldexp(1.0f, -12)});
    std::vector<float> weight;
    for (int p = 0; p < linear.parts; p++) {
        const int64_t n = linear.part[p].rows * linear.K;
        const device_buffer<uint8_t> data((size_t)n);
        check_ok(nib_cuda_nf4_dequantize_e4m3(ops, &linear.part[p].nf4, linear.part[p].rows, linear.K, scale.data(),
                                              data.data(), linear.K));
        for (uint8_t byte : data.download()) weight.push_back(std::ldexp(e4m3_number(byte), -12));
    }
    return weight;
}

std::vector<float> bf16_weight(const nib_ops *cpu, const nib_linear &linear)
{
    std::vector<float> weight((size_t)(nib_linear_outputs(&linear) * linear.K));
    for (int64_t p = 0, row = 0; p < linear.parts; row += linear.part[p++].rows) {
        const nib_matrix out = {weight.data() + row * linear.K, linear.part[p].rows, linear.K, linear.K, NIB_DTYPE_F32};
        check_ok(cpu->nf4_dequantize(const_cast<nib_ops *>(cpu), &linear.part[p].nf4, out));
    }
    return weight;
}

/* to [T, N] += sign * a [T, K] b, b [N, K] or, transposed, [K, N]. */
void add_product(std::vector<float> &to, float sign, const std::vector<float> &a, const std::vector<float> &b,
                 int64_t T, int64_t N, int64_t K, bool transposed)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += (double)a[(size_t)(t * K + k)] * (double)b[(size_t)(transposed ? k * N + n : n * K + k)];
            to[(size_t)(t * N + n)] += sign * (float)sum;
        }
}

/* The CPU's results in fp32, the base product taken out and that of the rounded operands put in. Tolerance: bf16's, as
 * in test_linear, while e4m3 rounds by up to 1/16. */
void check_linear(const backends &on, int64_t T, float p, bool accumulate)
{
    const std::vector<uint64_t> keys = {7, 8, 9};
    const device_buffer<uint64_t> device_keys(keys);
    const nib_dropout dropout = {p, keys.data()}, device_dropout = {p, device_keys.data()};
    const double tolerance = 1.0 / 32;
    const int64_t K = 128, gap = 8;
    linear_case linear(K, {{48, 4, false}, {32, 0, true}, {16, 8, true}}, 77);
    const int64_t N = linear.outputs(), R = linear.ranks();
    std::vector<float> x = random_bf16(1, T * K), dy = random_bf16(2, T * N), before = random_bf16(3, T * K);
    std::vector<float> u((size_t)(T * R)), y((size_t)(T * N)), dx = before;
    check_ok(on.cpu->linear_forward(on.cpu, &linear.cpu, dense_matrix(x, T, K), dropout, dense_matrix(u, T, R),
                                    dense_matrix(y, T, N)));
    check_ok(on.cpu->linear_backward(on.cpu, &linear.cpu, dense_matrix(x, T, K), dropout, dense_matrix(u, T, R),
                                     dense_matrix(dy, T, N), accumulate, dense_matrix(dx, T, K)));
    const std::vector<float> weight = bf16_weight(on.cpu, linear.cpu), rounded = rounded_weight(on.cuda, linear.device);
    add_product(y, -1, x, weight, T, N, K, false);
    add_product(y, 1, rounded_rows(x, T, K), rounded, T, N, K, false);
    add_product(dx, -1, dy, weight, T, K, N, true);
    add_product(dx, 1, rounded_rows(dy, T, N), rounded, T, K, N, true);

    linear.device.fp8_forward = linear.device.fp8_backward = true;
    const strided_matrix device_x(x, T, K, gap), device_u(T, R, gap), device_y(T, N, gap);
    const strided_matrix device_dy(dy, T, N, gap), device_dx(before, T, K, gap);
    check_ok(nib_cuda_linear_forward(on.cuda, &linear.device, device_x.matrix(), device_dropout, device_u.matrix(),
                                     device_y.matrix()));
    check_ok(nib_cuda_linear_backward(on.cuda, &linear.device, device_x.matrix(), device_dropout, device_u.matrix(),
                                      device_dy.matrix(), accumulate, device_dx.matrix()));
    check_near("u", device_u.download(), u, tolerance);
    check_near("y", device_y.download(), y, tolerance);
    check_near("dx", device_dx.download(), dx, tolerance);
    for (int part : {0, 2}) {
        check_near("da", linear.device_da(part), linear.cpu_da(part), tolerance);
        check_near("db", linear.device_db(part), linear.cpu_db(part), tolerance);
    }
    assert_int_equal(on.cuda->scratch->used, 0);
}

/* Fast and plain; 64 rows and fewer are decoded in registers, in bf16, forward. */
void linears_multiply_rounded_operands(void **)
{
    for (uint32_t plain : {0u, ~0u}) {
        const backends on;
        on.cuda->use_plain(on.cuda, plain & ((1u << NIB_CUDA_CHOICES) - 1));
        check_linear(on, 65, 0, false);
        check_linear(on, 129, 0, true);
        check_linear(on, 65, 0.25f, false);
    }
}

/* A whole group of absmax, restored to fp32 by hand: another bound of the weights, another scale, the same product. */
void weights_quantised_once_give_the_same_product(void **)
{
    const backends on;
    const int64_t T = 2, K = 64, N = 256;
    linear_case linear(K, {{N, 0, false}}, 77);
    const nib_nf4 &twice = linear.cpu.part[0].nf4;
    std::vector<float> absmax;
    for (int64_t i = 0; i < N * K / 64; i++) {
        const float code = twice.nested_map[twice.absmax_codes[i]] * twice.nested_absmax[i / 256];
        absmax.push_back(code + twice.nested_offset);
    }
    const device_buffer<float> device_absmax(absmax);
    const strided_matrix x(random_bf16(1, T * K), T, K, 8), y(T, N, 8), again(T, N, 8);
    check_ok(nib_cuda_linear_fp8_forward(on.cuda, &linear.device, x.matrix(), y.matrix()));
    nib_linear once = linear.device;
    once.part[0].nf4 = {once.part[0].nf4.codes, device_absmax.data(), nullptr, nullptr, nullptr, 0.0f};
    check_ok(nib_cuda_linear_fp8_forward(on.cuda, &once, x.matrix(), again.matrix()));
    assert_true(y.download() == again.download());
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(rows_are_the_nearest_numbers, reset_emulator),
        cmocka_unit_test_setup(a_row_that_is_not_finite_is_none, reset_emulator),
        cmocka_unit_test_setup(products_meet_double_sums, reset_emulator),
        cmocka_unit_test_setup(what_does_not_fit_is_refused, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(an_older_card_is_refused, reset_emulator),
#endif
        cmocka_unit_test_setup(linears_multiply_rounded_operands, reset_emulator),
        cmocka_unit_test_setup(weights_quantised_once_give_the_same_product, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
