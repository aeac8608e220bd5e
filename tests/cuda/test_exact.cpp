/* Ops whose every operation is rounded as the CPU backend's, so that all bits agree: conversion, sums of gradient
 * slots, AdamW. At lengths and addresses that are no whole vectors; what lies beside an array must stay. */
#include "backends.h"

extern "C" {
#include "base/random.h"
}

#include "linear_case.h"

#include "cuda/backend.h"

#include <cmath>
#include <memory>

static std::vector<float> random_floats(uint64_t key, int64_t n)
{
    std::vector<float> values((size_t)n);
    for (size_t i = 0; i < values.size(); i++) values[i] = uniform_value(key, i);
    return values;
}

/* An array that starts `shift` elements behind a multiple of 256 bytes. */
class shifted
{
  public:
    shifted(const std::vector<float> &values, int64_t shift) : shift_((size_t)shift), buffer_(behind(values, shift)) {}
    float *data() const { return buffer_.data() + shift_; }
    std::vector<float> download() const
    {
        std::vector<float> all = buffer_.download();
        for (size_t i = 0; i < shift_; i++) assert_true(all[i] == BEFORE);
        return {all.begin() + (std::ptrdiff_t)shift_, all.end()};
    }

  private:
    static constexpr float BEFORE = 123.0f;
    static std::vector<float> behind(std::vector<float> values, int64_t shift)
    {
        values.insert(values.begin(), (size_t)shift, BEFORE);
        return values;
    }
    size_t shift_;
    device_buffer<float> buffer_;
};

/* More than a grid of 4096 blocks takes in one step of single elements, fewer than that, and tails. */
static const int64_t lengths[] = {1, 3, 4, 7, 1023, 20001, 4096 * 256 + 5};

static void conversions_are_exact(void **)
{
    backends b;
    const struct {
        int64_t rows, columns, gap;
    } shapes[] = {{1, 1, 0}, {1, 13, 0}, {3, 5, 0}, {4, 16, 0}, {5, 24, 8}, {5, 24, 4}, {7, 33, 3}, {33, 129, 7}};
    for (auto s : shapes)
        for (bool to_wide : {false, true}) {
            const int64_t n = s.rows * s.columns, stride = s.columns + s.gap;
            std::vector<float> wide = random_floats(1, s.rows * stride), want((size_t)n);
            if (to_wide) {
                std::vector<float> values = random_bf16(2, n);
                strided_matrix from(values, s.rows, s.columns, s.gap);
                device_buffer<float> to(wide);
                nib_matrix target = {to.data(), s.rows, s.columns, stride, NIB_DTYPE_F32};
                check_ok(b.cuda->convert(b.cuda, from.matrix(), target));
                std::vector<float> found = to.download();
                for (int64_t r = 0; r < s.rows; r++)
                    for (int64_t c = 0; c < stride; c++)
                        assert_true(
                            found[(size_t)(r * stride + c)] ==
                            (c < s.columns ? values[(size_t)(r * s.columns + c)] : wide[(size_t)(r * stride + c)]));
            } else {
                device_buffer<float> from(wide);
                strided_matrix to(s.rows, s.columns, s.gap);
                check_ok(b.cuda->convert(b.cuda, {from.data(), s.rows, s.columns, stride, NIB_DTYPE_F32}, to.matrix()));
                for (int64_t r = 0; r < s.rows; r++)
                    for (int64_t c = 0; c < s.columns; c++)
                        want[(size_t)(r * s.columns + c)] =
                            nib_bf16_to_float(nib_bf16_from_float(wide[(size_t)(r * stride + c)]));
                assert_true(to.download() == want);
            }
        }
}

/* Values of all magnitudes, so that another order of additions shows. */
static std::vector<float> spread_floats(uint64_t key, int64_t n)
{
    std::vector<float> values = random_floats(key, n);
    for (size_t i = 0; i < values.size(); i++) values[i] = std::ldexp(values[i], (int)((i * 7 + key * 5) % 24));
    return values;
}

static void sums_of_gradient_slots_are_exact(void **)
{
    backends b;
    for (int64_t n : lengths)
        for (int count : {0, 1, 3, NIB_TREE_SUM_LEVELS})
            for (int64_t shift : {0, 1})
                for (bool in_place : {false, true}) {
                    if (count > 3 && n > 2000) continue; /* takes long, shows nothing else */
                    std::vector<float> x = spread_floats(1, n), to((size_t)n, NAN), want = x;
                    shifted device_x(x, shift), device_to(to, 0);
                    std::vector<std::vector<float>> left;
                    std::vector<std::unique_ptr<shifted>> device_left;
                    std::vector<const float *> at, device_at;
                    for (int k = 0; k < count; k++) {
                        left.push_back(spread_floats((uint64_t)k + 2, n));
                        device_left.push_back(std::make_unique<shifted>(left.back(), shift));
                        device_at.push_back(device_left.back()->data());
                        for (size_t i = 0; i < want.size(); i++) want[i] += left.back()[i];
                    }
                    for (const auto &values : left) at.push_back(values.data());
                    check_ok(b.cpu->tree_sum(b.cpu, x.data(), count, at.data(), n, in_place ? x.data() : to.data()));
                    check_ok(b.cuda->tree_sum(b.cuda, device_x.data(), count, device_at.data(), n,
                                              in_place ? device_x.data() : device_to.data()));
                    const std::vector<float> zeros((size_t)n, 0.0f);
                    assert_true((in_place ? x : to) == want && (in_place || x == zeros));
                    assert_true((in_place ? device_x : device_to).download() == want);
                    if (!in_place) assert_true(device_x.download() == zeros);
                }
    const int many = NIB_TREE_SUM_LEVELS + 1;
    assert_int_equal(b.cuda->tree_sum(b.cuda, nullptr, many, nullptr, 1, nullptr), NIB_ERROR_SHAPE);
    assert_int_equal(b.cpu->tree_sum(b.cpu, nullptr, many, nullptr, 1, nullptr), NIB_ERROR_SHAPE);
}

/* Both of a step's factors: those that it takes, and none. */
static std::vector<nib_adamw_factors> factors_of(nib_adamw options, nib_clip clip)
{
    std::vector<nib_adamw_factors> factors(2, {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN});
    factors[(size_t)clip.missed] = nib_adamw_factors_of(options);
    return factors;
}

static void adamw_is_exact(void **)
{
    backends b;
    for (int64_t n : lengths)
        for (int64_t shift : {0, 3}) {
            std::vector<float> p = random_floats(1, n), g = random_floats(2, n), m = random_floats(3, n);
            std::vector<float> v((size_t)n, 0.25f);
            shifted dp(p, 0), dg(g, 0), dm(m, 0), dv(v, shift);
            const nib_clip clip = {2.0, 0.5f, shift > 0};
            device_buffer<nib_clip> device_clip(std::vector<nib_clip>(1, clip));
            const std::vector<nib_adamw_factors> factors = factors_of({1e-3, 0.9, 0.999, 1e-8, 0.01, 3}, clip);
            const device_buffer<nib_adamw_factors> device_factors(factors);
            check_ok(b.cpu->adamw(b.cpu, factors.data(), &clip, n, p.data(), g.data(), m.data(), v.data()));
            check_ok(b.cuda->adamw(b.cuda, device_factors.data(), device_clip.data(), n, dp.data(), dg.data(),
                                   dm.data(), dv.data()));
            assert_true(dp.download() == p && dm.download() == m && dv.download() == v);
        }
}

/* Parameters, gradients, codes and block maxima of the moments, all of n values. */
struct moments_case {
    std::vector<float> p, g, a1, a2;
    std::vector<uint8_t> c1, c2;
    explicit moments_case(int64_t n)
        : p(random_floats(1, n)), g(spread_floats(2, n)), a1((size_t)(n + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK),
          a2(a1.size()), c1(p.size()), c2(p.size())
    {
        for (size_t i = 0; i < c1.size(); i++) {
            c1[i] = (uint8_t)(i * 37);
            c2[i] = (uint8_t)(i * 101 + 7);
        }
        for (size_t i = 0; i < a1.size(); i++) {
            a1[i] = 0.5f + (float)(i % 7);
            a2[i] = i % 3 == 0 ? 0.0f : 1e-3f * (float)i;
        }
    }
};

/* Two steps of both backends, the gradient `shift` elements behind whole vectors. */
static void check_8bit_steps(const backends &b, moments_case x, double beta1, double beta2, int64_t shift)
{
    const int64_t n = (int64_t)x.p.size();
    std::vector<float> maps(nib_nf4_dynamic_map, nib_nf4_dynamic_map + 256);
    maps.insert(maps.end(), nib_dynamic_map_unsigned, nib_dynamic_map_unsigned + 256);
    shifted dp(x.p, 0), dg(x.g, shift), da1(x.a1, 0), da2(x.a2, 0);
    device_buffer<uint8_t> dc1(x.c1), dc2(x.c2);
    device_buffer<float> device_maps(maps);
    for (int64_t step = 3; step <= 4; step++) {
        const nib_clip clip = {2.0, 0.5f, (int32_t)step % 2};
        const device_buffer<nib_clip> device_clip(std::vector<nib_clip>(1, clip));
        const std::vector<nib_adamw_factors> factors = factors_of({1e-3, beta1, beta2, 1e-8, 0.01, step}, clip);
        const device_buffer<nib_adamw_factors> device_factors(factors);
        check_ok(b.cpu->adamw_8bit(b.cpu, factors.data(), &clip, n, x.p.data(), x.g.data(),
                                   {x.c1.data(), x.c2.data(), x.a1.data(), x.a2.data(), maps.data()}));
        check_ok(b.cuda->adamw_8bit(b.cuda, device_factors.data(), device_clip.data(), n, dp.data(), dg.data(),
                                    {dc1.data(), dc2.data(), da1.data(), da2.data(), device_maps.data()}));
        assert_true(dp.download() == x.p && dc1.download() == x.c1 && dc2.download() == x.c2);
        assert_true(da1.download() == x.a1 && da2.download() == x.a2);
    }
}

static void adamw_with_8_bits_is_exact(void **)
{
    backends b;
    for (int64_t n : {1, 7, 256, 1023, 20001, 4096 * 2048 / 8 + 5})
        for (int64_t shift : {0, 3}) check_8bit_steps(b, moments_case(n), 0.9, 0.999, shift);
}

/* Moments that are the gradient alone, and the largest of the block 1: every number half way between two codes, and
 * the codes' own numbers; then a block without gradient or moments. */
static void eight_bits_are_the_nearest_also_at_ties(void **)
{
    backends b;
    moments_case x(4 * NIB_MOMENT_BLOCK);
    for (size_t i = 0; i < x.g.size(); i++) {
        const float *map = nib_nf4_dynamic_map;
        const size_t c = i % NIB_MOMENT_BLOCK;
        x.g[i] = c == 255 ? 1.0f : i < NIB_MOMENT_BLOCK ? (map[c] + map[c + 1]) / 2 : map[c];
        if (i >= 2 * NIB_MOMENT_BLOCK) x.g[i] = c == 255 ? 1.0f : std::sqrt(nib_dynamic_map_unsigned[c]);
        if (i >= 3 * NIB_MOMENT_BLOCK) x.g[i] = 0.0f;
        x.g[i] *= 2.0f; /* the clip halves it */
    }
    x.a1[3] = x.a2[3] = 0.0f;
    check_8bit_steps(b, x, 0.0, 0.0, 0);
}

/* Codes and gradients far below what lanes without a value would have from code 0, which is the map's largest
 * magnitude. */
static void what_lies_behind_the_last_value_is_not_its_blocks_largest(void **)
{
    backends b;
    for (int64_t n : {1, 7, 8, 249, 263})
        for (int64_t shift : {0, 3}) {
            moments_case x(n);
            for (size_t i = 0; i < x.g.size(); i++) {
                x.g[i] = 1e-3f * uniform_value(4, i);
                x.c1[i] = (uint8_t)(120 + i % 16);
            }
            check_8bit_steps(b, x, 0.9, 0.999, shift);
        }
}

#ifdef NIB_CUDA_EMULATED
/* Parameters, gradient and codes are read as whole vectors, which are counted, where all of a lane's are there. */
static void eight_bits_move_as_vectors(void **)
{
    backends b;
    const int64_t n = 2 * NIB_MOMENT_BLOCK;
    check_cuda(cudaDeviceSynchronize());
    nib_emulator::reset_counters();
    check_8bit_steps(b, moments_case(n), 0.9, 0.999, 0);
    assert_int_equal(nib_emulator::counters().global_read, 2 * n * (4 + 4 + 1 + 1));
    assert_int_equal(nib_emulator::counters().global_written, 2 * n * (4 + 1 + 1));
}
#endif

/* The norm is a double's sum in another order than the CPU's. A gradient that is no number changes nothing. */
static void the_global_norm_is_the_cpu_backends(void **)
{
    backends b;
    for (int64_t n : {1, 255, 4097, 20001}) {
        std::vector<float> g = random_floats(2, n), h = random_floats(3, n + 3), m((size_t)n, 0.5f), v = m;
        device_buffer<float> dg(g), dh(h), dm(m), dv(v);
        device_buffer<nib_clip> device_clip(std::vector<nib_clip>(1));
        nib_clip clip = {};
        float *host_array[] = {g.data(), h.data()}, *array[] = {dg.data(), dh.data()};
        const int64_t length[] = {n, n + 3};
        check_ok(b.cpu->global_norm(b.cpu, 2, host_array, length, 1.0, &clip));
        check_ok(b.cuda->global_norm(b.cuda, 2, array, length, 1.0, device_clip.data()));
        nib_clip found = device_clip.download()[0];
        assert_true(fabs(found.norm - clip.norm) <= 1e-12 * clip.norm && found.scale == clip.scale);
        check_ok(b.cuda->global_norm(b.cuda, 2, array, length, 0.0, device_clip.data())); /* 0: no clipping */
        assert_true(device_clip.download()[0].norm == found.norm && device_clip.download()[0].scale == 1.0f);
        std::vector<float> damaged = g;
        damaged[(size_t)(n / 2)] = NAN;
        dg.upload(damaged);
        const device_buffer<nib_adamw_factors> device_factors(factors_of({1e-3, 0.9, 0.999, 1e-8, 0.01, 3}, {}));
        check_ok(b.cuda->global_norm(b.cuda, 1, array, length, 1.0, device_clip.data()));
        check_ok(b.cuda->adamw(b.cuda, device_factors.data(), device_clip.data(), n, dh.data(), dg.data(), dm.data(),
                               dv.data()));
        assert_true(std::isnan(device_clip.download()[0].norm) && dh.download() == h && dm.download() == m);
        dg.upload(g);
        for (int missed = 1; missed >= 0; missed--) { /* the next one knows of it, the one behind that does not */
            check_ok(b.cuda->global_norm(b.cuda, 1, array, length, 1.0, device_clip.data()));
            assert_int_equal(device_clip.download()[0].missed, missed);
        }
    }
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(conversions_are_exact, reset_emulator),
        cmocka_unit_test_setup(sums_of_gradient_slots_are_exact, reset_emulator),
        cmocka_unit_test_setup(adamw_is_exact, reset_emulator),
        cmocka_unit_test_setup(adamw_with_8_bits_is_exact, reset_emulator),
        cmocka_unit_test_setup(eight_bits_are_the_nearest_also_at_ties, reset_emulator),
        cmocka_unit_test_setup(what_lies_behind_the_last_value_is_not_its_blocks_largest, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(eight_bits_move_as_vectors, reset_emulator),
#endif
        cmocka_unit_test_setup(the_global_norm_is_the_cpu_backends, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
