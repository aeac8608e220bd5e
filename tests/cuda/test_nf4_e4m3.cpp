/* NF4 weights to 8-bit floating point: every value is the e4m3 nearest to nf4_value * (absmax / scale), where the
 * expectation is a search through the numbers of the format. */
#include "cuda_check.h"

extern "C" {
#include "base/random.h"
}

#include "e4m3_numbers.h"
#include "strided_matrix.h"

#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/nf4_dequantize.h"

namespace
{

struct weight {
    int64_t n, K;
    std::vector<uint8_t> codes;
    std::vector<float> absmax;
    device_buffer<uint8_t> device_codes;
    device_buffer<float> device_absmax;
    weight(int64_t n_, int64_t K_, float size)
        : n(n_), K(K_), codes(random_codes(n_ * K_ / 2)), absmax(random_absmax((n_ * K_ + 63) / 64, size)),
          device_codes(codes), device_absmax(absmax)
    {
    }
    nib_nf4 nf4() const { return {device_codes.data(), device_absmax.data(), nullptr, nullptr, nullptr, 0.0f}; }
    static std::vector<uint8_t> random_codes(int64_t bytes)
    {
        std::vector<uint8_t> values;
        for (int64_t i = 0; i < bytes; i++) values.push_back((uint8_t)(127.9f * (1 + uniform_value(3, (uint64_t)i))));
        return values;
    }
    /* Of several orders of magnitude, so that small numbers of the format are met; every fifth block is empty. */
    static std::vector<float> random_absmax(int64_t blocks, float size)
    {
        std::vector<float> values;
        for (int64_t i = 0; i < blocks; i++)
            values.push_back(i % 5 == 4 ? 0.0f : size * std::exp2(6 * uniform_value(4, (uint64_t)i)));
        return values;
    }
    uint8_t expected(int64_t row, int64_t column, float scale) const
    {
        const int64_t element = row * K + column;
        const int code = codes[(size_t)(element / 2)] >> (element % 2 == 0 ? 4 : 0) & 15;
        return nearest_e4m3(nib_nf4_values[code] * (absmax[(size_t)(element / 64)] / scale));
    }
};

constexpr uint8_t GAP = 0x7f; /* not a number */

void check_rows(nib_ops *ops, const weight &w, const device_buffer<float> &scale, float value)
{
    const int64_t stride = w.K + 8;
    const nib_nf4 nf4 = w.nf4();
    device_buffer<uint8_t> out(std::vector<uint8_t>((size_t)(w.n * stride), GAP));
    check_ok(nib_cuda_nf4_dequantize_e4m3(ops, &nf4, w.n, w.K, scale.data(), out.data(), stride));
    const std::vector<uint8_t> found = out.download();
    for (int64_t r = 0; r < w.n; r++)
        for (int64_t c = 0; c < stride; c++)
            assert_int_equal(found[(size_t)(r * stride + c)], c < w.K ? w.expected(r, c, value) : GAP);
}

void check_columns(nib_ops *ops, const weight &w, const device_buffer<float> &scale, float value)
{
    const int64_t stride = w.n + 16;
    const nib_nf4 nf4 = w.nf4();
    device_buffer<uint8_t> out(std::vector<uint8_t>((size_t)(w.K * stride), GAP));
    check_ok(nib_cuda_nf4_dequantize_e4m3_transposed(ops, &nf4, w.n, w.K, scale.data(), out.data(), stride));
    const std::vector<uint8_t> found = out.download();
    for (int64_t c = 0; c < w.K; c++)
        for (int64_t r = 0; r < stride; r++)
            assert_int_equal(found[(size_t)(c * stride + r)], r < w.n ? w.expected(r, c, value) : GAP);
}

/* At the scale where the largest weight is the format's largest, and at one that is a power of two. */
void weights_are_the_nearest_numbers(void **)
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    const int64_t shapes[][2] = {{1, 64}, {48, 64}, {16, 8}, {144, 200}, {272, 72}};
    for (const auto &shape : shapes)
        for (float size : {1e-3f, 1.0f, 300.0f}) {
            const weight w(shape[0], shape[1], size);
            float largest = 0;
            for (float x : w.absmax) largest = std::fmax(largest, x);
            for (float value : {largest / 448.0f, e4m3_scale(largest)}) {
                device_buffer<float> scale(std::vector<float>{value});
                for (uint32_t plain : {0u, 1u << NIB_CUDA_NF4_DEQUANTIZE}) {
                    ops->use_plain(ops, plain);
                    check_rows(ops, w, scale, value);
                    if (w.n % 16 == 0) check_columns(ops, w, scale, value);
                }
            }
        }
    ops->close(ops);
}

void what_does_not_fit_is_refused(void **)
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    const weight w(16, 64, 1.0f);
    const nib_nf4 nf4 = w.nf4();
    device_buffer<float> scale(std::vector<float>{1.0f});
    device_buffer<uint8_t> out((size_t)(w.n * w.K + 8));
    const struct {
        int64_t n, K, stride;
        size_t offset;
    } rows[] = {{16, 60, 64, 0}, {16, 64, 56, 0}, {16, 64, 68, 0}, {16, 64, 64, 4}},
      columns[] = {{24, 64, 24, 0}, {16, 60, 16, 0}, {16, 64, 8, 0}, {16, 64, 24, 0}, {16, 64, 16, 8}};
    for (const auto &x : rows) {
        assert_int_equal(
            nib_cuda_nf4_dequantize_e4m3(ops, &nf4, x.n, x.K, scale.data(), out.data() + x.offset, x.stride),
            NIB_ERROR_SHAPE);
        assert_non_null(strstr(nib_error_message(), "nf4_dequantize_e4m3"));
    }
    for (const auto &x : columns)
        assert_int_equal(
            nib_cuda_nf4_dequantize_e4m3_transposed(ops, &nf4, x.n, x.K, scale.data(), out.data() + x.offset, x.stride),
            NIB_ERROR_SHAPE);
    ops->close(ops);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(weights_are_the_nearest_numbers, reset_emulator),
        cmocka_unit_test_setup(what_does_not_fit_is_refused, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
