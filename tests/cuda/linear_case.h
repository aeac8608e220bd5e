/* A linear of several NF4 parts with adapters and biases, on the CPU and on the device, with the same values: weights
 * in NF4 by the CPU's quantiser, everything else random and held by bf16. */
#ifndef NIB_CUDA_LINEAR_CASE_H
#define NIB_CUDA_LINEAR_CASE_H

#include "strided_matrix.h"

extern "C" {
#include "cpu/backend.h"
}

#include <memory>

struct part_shape {
    int64_t rows, rank;
    bool bias;
    bool dora = false;
};

class linear_case
{
  public:
    nib_linear cpu = {}, device = {}; /* cpu: fp32, for the CPU's fp32 ops */
    linear_case(int64_t K, const std::vector<part_shape> &shapes, uint64_t seed)
    {
        for (nib_linear *linear : {&cpu, &device}) {
            linear->name = "test";
            linear->K = K;
            linear->parts = (int)shapes.size();
        }
        parts_.reserve(shapes.size());
        for (size_t p = 0; p < shapes.size(); p++) add((int)p, shapes[p], seed + 10 * p);
    }
    int64_t outputs() const { return nib_linear_outputs(&cpu); }
    int64_t ranks() const { return nib_linear_ranks(&cpu); }
    /* Gradients of part p so far. */
    const std::vector<float> &cpu_da(int p) const { return parts_[(size_t)p]->da; }
    const std::vector<float> &cpu_db(int p) const { return parts_[(size_t)p]->db; }
    std::vector<float> device_da(int p) const { return parts_[(size_t)p]->device_da.download(); }
    std::vector<float> device_db(int p) const { return parts_[(size_t)p]->device_db.download(); }
    const std::vector<float> &cpu_dbias(int p) const { return parts_[(size_t)p]->dbias; }
    std::vector<float> device_dbias(int p) const { return parts_[(size_t)p]->device_dbias.download(); }
    const std::vector<float> &cpu_dmagnitude(int p) const { return parts_[(size_t)p]->dmagnitude; }
    const std::vector<float> &cpu_norm(int p) const { return parts_[(size_t)p]->norm; }
    const std::vector<float> &cpu_gain(int p) const { return parts_[(size_t)p]->gain; }
    std::vector<float> device_dmagnitude(int p) const { return parts_[(size_t)p]->device_dmagnitude.download(); }
    std::vector<float> device_norm(int p) const { return parts_[(size_t)p]->device_norm.download(); }
    std::vector<float> device_gain(int p) const { return parts_[(size_t)p]->device_gain.download(); }

  private:
    static constexpr float SCALE = 1.5f, OFFSET = 0.0625f;
    struct part {
        std::vector<uint8_t> codes, absmax_codes;
        std::vector<float> nested, bias, a, b, da, db, dbias, magnitude, norm, gain, dmagnitude;
        device_buffer<uint8_t> device_codes, device_absmax_codes;
        device_buffer<float> device_nested, device_map, device_bias, device_da, device_db, device_dbias;
        device_buffer<float> device_magnitude, device_norm, device_gain, device_dmagnitude;
        strided_matrix device_a, device_b;
        part(int64_t K, part_shape shape, uint64_t seed)
            : codes((size_t)(shape.rows * K / 2)), absmax_codes((size_t)(shape.rows * K + 63) / 64),
              nested((absmax_codes.size() + 255) / 256), bias(random_bf16(seed + 1, shape.rows)),
              a(random_bf16(seed + 2, shape.rank * K)), b(random_bf16(seed + 3, shape.rows * shape.rank)),
              da(random_bf16(seed + 4, shape.rank * K)), db(random_bf16(seed + 5, shape.rows * shape.rank)),
              dbias(random_bf16(seed + 9, shape.rows)), magnitude(random_magnitudes(seed + 9, shape.rows, K)),
              norm((size_t)shape.rows), gain((size_t)shape.rows), dmagnitude(random_bf16(seed + 4, shape.rows)),
              device_codes(random_codes(codes, seed + 6)), device_absmax_codes(random_codes(absmax_codes, seed + 7)),
              device_nested(random_scales(nested, seed + 8)),
              device_map(std::vector<float>(nib_nf4_dynamic_map, nib_nf4_dynamic_map + 256)), device_bias(bias),
              device_da(da), device_db(db), device_dbias(dbias), device_magnitude(magnitude),
              device_norm((size_t)shape.rows), device_gain((size_t)shape.rows), device_dmagnitude(dmagnitude),
              device_a(a, shape.rank, K, K % 8 == 0 ? 8 : 0), device_b(b, shape.rows, shape.rank, 0)
        {
        }
        static std::vector<float> random_magnitudes(uint64_t seed, int64_t rows, int64_t K)
        {
            std::vector<float> values((size_t)rows);
            for (size_t i = 0; i < values.size(); i++)
                values[i] = std::sqrt((float)K) * (1.0f + 0.5f * uniform_value(seed, i));
            return values;
        }
        static const std::vector<uint8_t> &random_codes(std::vector<uint8_t> &values, uint64_t seed)
        {
            for (size_t i = 0; i < values.size(); i++) values[i] = (uint8_t)(128.0f * (1.0f + uniform_value(seed, i)));
            return values;
        }
        static const std::vector<float> &random_scales(std::vector<float> &values, uint64_t seed)
        {
            for (size_t i = 0; i < values.size(); i++) values[i] = 0.02f + 0.01f * uniform_value(seed, i);
            return values;
        }
    };

    void add(int p, part_shape shape, uint64_t seed)
    {
        parts_.push_back(std::make_unique<part>(cpu.K, shape, seed));
        part &x = *parts_.back();
        nib_linear_part &on_cpu = cpu.part[p], &on_device = device.part[p];
        on_cpu.rows = on_device.rows = shape.rows;
        on_cpu.nf4 = {x.codes.data(), nullptr, x.absmax_codes.data(), x.nested.data(), nib_nf4_dynamic_map, OFFSET};
        on_device.nf4 = {x.device_codes.data(), nullptr, x.device_absmax_codes.data(), x.device_nested.data(),
                         x.device_map.data(),   OFFSET};
        on_cpu.bias = shape.bias ? x.bias.data() : nullptr;
        on_device.bias = shape.bias ? x.device_bias.data() : nullptr;
        on_cpu.dbias = shape.bias ? x.dbias.data() : nullptr;
        on_device.dbias = shape.bias ? x.device_dbias.data() : nullptr;
        on_cpu.lora = {shape.rank,
                       SCALE,
                       {x.a.data(), shape.rank, cpu.K, cpu.K, NIB_DTYPE_F32},
                       {x.b.data(), shape.rows, shape.rank, shape.rank, NIB_DTYPE_F32},
                       x.da.data(),
                       x.db.data(),
                       {}};
        on_device.lora = {shape.rank,         SCALE, x.device_a.matrix(), x.device_b.matrix(), x.device_da.data(),
                          x.device_db.data(), {}};
        if (!shape.dora) return;
        on_cpu.lora.dora = {x.magnitude.data(), x.norm.data(), x.gain.data(), x.dmagnitude.data()};
        on_device.lora.dora = {x.device_magnitude.data(), x.device_norm.data(), x.device_gain.data(),
                               x.device_dmagnitude.data()};
    }
    std::vector<std::unique_ptr<part>> parts_;
};

inline nib_matrix dense_matrix(std::vector<float> &values, int64_t rows, int64_t columns)
{
    return {values.data(), rows, columns, columns, NIB_DTYPE_F32};
}

/* Fails if any element is off by more than `tolerance` of the expected values' root mean square. */
inline void check_near(const char *what, const std::vector<float> &found, const std::vector<float> &expected,
                       double tolerance)
{
    double squares = 0.0;
    for (float x : expected) squares += (double)x * x;
    const double scale = std::sqrt(squares / (double)expected.size());
    assert_int_equal(found.size(), expected.size());
    for (size_t i = 0; i < expected.size(); i++)
        if (!(std::fabs((double)found[i] - expected[i]) <= tolerance * (scale + std::fabs(expected[i]))))
            fail_msg("%s[%zu] is %.9g, expected %.9g (root mean square %.3g)", what, i, found[i], expected[i], scale);
}

#endif
