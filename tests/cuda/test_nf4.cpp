/* NF4 on the GPU against bitsandbytes, bit for bit: codes, absmax, nested absmax, dequantised weights in every form. */
#include "strided_matrix.h"

#include "cuda/backend.h"
#include "cuda/nf4_dequantize.h"
#include "cuda/nf4_quantize.h"

extern "C" {
#include "cpu/backend.h"
}

namespace
{

const char *const matrices[] = {"gauss_256x128",    "heavy_tail_96x192", "large_512x512", "odd_rows_50x96",
                                "odd_rows_576x100", "odd_rows_64x80",    "ties_64x64",    "zero_blocks_64x64"};

const nib_tensor_view *find(const nib_tensor_set *set, const std::string &name)
{
    const nib_tensor_view *view = nib_tensor_set_find(set, name.c_str());
    if (view == nullptr) fail_msg("no %s", name.c_str());
    return view;
}

template <class T> std::vector<T> values_of(const nib_tensor_set *set, const std::string &name)
{
    const nib_tensor_view *view = find(set, name);
    const T *data = (const T *)view->data;
    return std::vector<T>(data, data + view->count);
}

std::vector<float> widened(const std::vector<uint16_t> &bits)
{
    std::vector<float> values;
    for (uint16_t x : bits) values.push_back(nib_bf16_to_float({x}));
    return values;
}

template <class T> void assert_same(const std::vector<T> &found, const std::vector<T> &expected)
{
    assert_int_equal(found.size(), expected.size());
    assert_memory_equal(found.data(), expected.data(), expected.size() * sizeof(T));
}

/* One weight on the device, quantised twice, and what bitsandbytes makes of it. */
struct golden_weight {
    std::string name;
    int64_t rows, columns;
    std::vector<float> single, twice; /* dequantised */
    device_buffer<uint8_t> codes, absmax_codes;
    device_buffer<float> absmax, nested_absmax, map;
    float offset;

    golden_weight(const nib_tensor_set *set, const std::string &matrix)
        : name(matrix), rows(find(set, matrix + ".weight")->shape[0]), columns(find(set, matrix + ".weight")->shape[1]),
          single(widened(values_of<uint16_t>(set, matrix + ".single.dequantized"))),
          twice(widened(values_of<uint16_t>(set, matrix + ".double.dequantized"))),
          codes(values_of<uint8_t>(set, matrix + ".single.packed")),
          absmax_codes(values_of<uint8_t>(set, matrix + ".double.absmax")),
          absmax(values_of<float>(set, matrix + ".single.absmax")),
          nested_absmax(values_of<float>(set, matrix + ".double.nested_absmax")),
          map(std::vector<float>(nib_nf4_dynamic_map, nib_nf4_dynamic_map + 256)),
          offset(values_of<float>(set, matrix + ".double.offset")[0])
    {
    }
    nib_nf4 single_nf4() const { return {codes.data(), absmax.data(), nullptr, nullptr, nullptr, 0.0f}; }
    nib_nf4 double_nf4() const
    {
        return {codes.data(), nullptr, absmax_codes.data(), nested_absmax.data(), map.data(), offset};
    }
};

void quantize(nib_ops *ops, const nib_tensor_set *set, const std::string &matrix)
{
    const std::vector<float> values = widened(values_of<uint16_t>(set, matrix + ".weight"));
    const int64_t n = (int64_t)values.size(), blocks = (n + 63) / 64;
    device_buffer<float> weight(values), absmax((size_t)blocks), nested((size_t)(blocks + 255) / 256);
    device_buffer<float> map(std::vector<float>(nib_nf4_dynamic_map, nib_nf4_dynamic_map + 256));
    device_buffer<uint8_t> codes((size_t)(n + 1) / 2), absmax_codes((size_t)blocks);
    check_ok(nib_cuda_nf4_quantize(ops, weight.data(), n, codes.data(), absmax.data()));
    assert_same(codes.download(), values_of<uint8_t>(set, matrix + ".single.packed"));
    assert_same(absmax.download(), values_of<float>(set, matrix + ".single.absmax"));
    float offset;
    check_ok(nib_cuda_nf4_quantize_absmax(ops, absmax.data(), blocks, map.data(), absmax_codes.data(), nested.data(),
                                          &offset));
    assert_same(absmax_codes.download(), values_of<uint8_t>(set, matrix + ".double.absmax"));
    assert_same(nested.download(), values_of<float>(set, matrix + ".double.nested_absmax"));
    assert_same({offset}, values_of<float>(set, matrix + ".double.offset"));
}

std::vector<float> transposed(const std::vector<float> &values, int64_t rows, int64_t columns)
{
    std::vector<float> out;
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++) out.push_back(values[(size_t)(r * columns + c)]);
    return out;
}

/* gap 8: vectorised where the shape allows; gap 3: one element a thread. */
void dequantize(nib_ops *ops, const golden_weight &w, int64_t gap)
{
    const nib_nf4 single = w.single_nf4();
    strided_matrix out(w.rows, w.columns, gap), turned(w.columns, w.rows, gap);
    check_ok(nib_cuda_nf4_dequantize(ops, &single, out.matrix()));
    assert_same(out.download(), w.single);
    const nib_nf4 nf4 = w.double_nf4();
    check_ok(nib_cuda_nf4_dequantize(ops, &nf4, out.matrix()));
    assert_same(out.download(), w.twice);
    check_ok(nib_cuda_nf4_dequantize_transposed(ops, &nf4, turned.matrix()));
    assert_same(turned.download(), transposed(w.twice, w.rows, w.columns));
    device_buffer<float> wide((size_t)(w.rows * w.columns));
    check_ok(nib_cuda_nf4_dequantize(ops, &nf4, {wide.data(), w.rows, w.columns, w.columns, NIB_DTYPE_F32}));
    assert_same(wide.download(), w.twice);
}

struct backend_and_golden {
    nib_ops *ops;
    nib_tensor_set *set;
    backend_and_golden()
    {
        check_ok(nib_cuda_backend_create(0, &ops));
        check_ok(nib_tensor_set_open(NIB_TEST_DATA "/nf4/expected.safetensors", &set));
    }
    ~backend_and_golden()
    {
        ops->close(ops);
        nib_tensor_set_close(set);
    }
};

void quantizing_is_bit_exact(void **)
{
    backend_and_golden with;
    for (const char *matrix : matrices) quantize(with.ops, with.set, matrix);
}

void dequantizing_is_bit_exact(void **)
{
    backend_and_golden with;
    for (const char *matrix : matrices)
        for (int64_t gap : {8, 3}) dequantize(with.ops, golden_weight(with.set, matrix), gap);
}

/* Lengths that end inside a byte, a word, a block, a leaf of the sum; values that are not finite. The CPU's ops are
 * held against bitsandbytes in tests/golden. */
void odd_lengths_meet_the_cpu(void **)
{
    backend_and_golden with;
    nib_ops *cpu;
    check_ok(nib_cpu_backend_create(1 << 20, &cpu));
    for (int64_t n : {1, 7, 8, 63, 64, 65, 129, 511, 64 * 9 + 5, 64 * 300 + 17}) {
        std::vector<float> values((size_t)n);
        for (int64_t i = 0; i < n; i++) values[(size_t)i] = uniform_value(7, (uint64_t)(1000 * n + i));
        if (n == 511) values[70] = INFINITY, values[200] = NAN;
        const size_t blocks = (size_t)(n + 63) / 64;
        std::vector<uint8_t> codes((size_t)(n + 1) / 2), absmax_codes(blocks);
        std::vector<float> absmax(blocks), nested((blocks + 255) / 256);
        check_ok(cpu->nf4_quantize(cpu, values.data(), n, codes.data(), absmax.data()));
        device_buffer<float> weight(values), found_absmax(blocks), found_nested(nested.size());
        device_buffer<float> map(std::vector<float>(nib_nf4_dynamic_map, nib_nf4_dynamic_map + 256));
        device_buffer<uint8_t> found(codes.size()), found_codes(blocks);
        check_ok(nib_cuda_nf4_quantize(with.ops, weight.data(), n, found.data(), found_absmax.data()));
        assert_same(found.download(), codes);
        assert_same(found_absmax.download(), absmax);
        if (n == 511) continue;
        float offset, found_offset;
        check_ok(cpu->nf4_quantize_absmax(cpu, absmax.data(), (int64_t)blocks, nib_nf4_dynamic_map, absmax_codes.data(),
                                          nested.data(), &offset));
        check_ok(nib_cuda_nf4_quantize_absmax(with.ops, found_absmax.data(), (int64_t)blocks, map.data(),
                                              found_codes.data(), found_nested.data(), &found_offset));
        assert_same(found_codes.download(), absmax_codes);
        assert_same(found_nested.download(), nested);
        assert_true(found_offset == offset);
    }
    nib_cpu_backend_free(cpu);
}

/* Half way between two values is the lower one; 1 makes the block's absmax 1, so that the others are not rounded. */
void ties_are_the_cpus(void **)
{
    backend_and_golden with;
    nib_ops *cpu;
    check_ok(nib_cpu_backend_create(1 << 20, &cpu));
    std::vector<float> values(64, 1.0f), absmax(1);
    for (size_t i = 0; i < 15; i++)
        values[i] = (float)(((double)nib_nf4_values[i] + (double)nib_nf4_values[i + 1]) / 2);
    std::vector<uint8_t> codes(32);
    check_ok(cpu->nf4_quantize(cpu, values.data(), 64, codes.data(), absmax.data()));
    device_buffer<float> weight(values), found_absmax(1);
    device_buffer<uint8_t> found(codes.size());
    check_ok(nib_cuda_nf4_quantize(with.ops, weight.data(), 64, found.data(), found_absmax.data()));
    assert_same(found.download(), codes);
    for (size_t i = 0; i < 15; i++) assert_int_equal(codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15, i);
    nib_cpu_backend_free(cpu);
}

/* The pairwise sum of every size around its splits: leaves of several depths, in the order of the CPU's. The first has
 * 64 leaves, which fill the scratch of a new backend to its last byte: what is written behind it is found. */
void offsets_have_the_cpus_bits(void **)
{
    backend_and_golden with;
    nib_ops *cpu;
    check_ok(nib_cpu_backend_create(1 << 20, &cpu));
    device_buffer<float> map(std::vector<float>(nib_nf4_dynamic_map, nib_nf4_dynamic_map + 256));
    for (int64_t blocks : {4999, 1, 5, 8, 127, 128, 129, 136, 255, 256, 257, 263, 264, 519, 1031}) {
        std::vector<float> absmax((size_t)blocks), nested((size_t)(blocks + 255) / 256);
        std::vector<uint8_t> codes((size_t)blocks);
        for (int64_t i = 0; i < blocks; i++) absmax[(size_t)i] = 1.0f + uniform_value(9, (uint64_t)(blocks + i));
        if (blocks == 8) absmax = {1.0f, 0, 0x1p-24f, 0x1p-24f, 0, 0, 0, 0}; /* in order: 1; by pairs: more */
        device_buffer<float> on_device(absmax), found_nested(nested.size());
        device_buffer<uint8_t> found((size_t)blocks);
        float offset, found_offset;
        check_ok(cpu->nf4_quantize_absmax(cpu, absmax.data(), blocks, nib_nf4_dynamic_map, codes.data(), nested.data(),
                                          &offset));
        check_ok(nib_cuda_nf4_quantize_absmax(with.ops, on_device.data(), blocks, map.data(), found.data(),
                                              found_nested.data(), &found_offset));
        assert_true(found_offset == offset);
        assert_same(found.download(), codes);
        assert_same(found_nested.download(), nested);
    }
    nib_cpu_backend_free(cpu);
}

void what_is_not_supported_is_refused(void **)
{
    backend_and_golden with;
    device_buffer<float> values(64), absmax(1);
    device_buffer<uint8_t> codes(32);
    assert_int_equal(nib_cuda_nf4_quantize(with.ops, values.data() + 1, 63, codes.data(), absmax.data()),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "nf4_quantize"));
    golden_weight w(with.set, "ties_64x64");
    const nib_nf4 nf4 = w.single_nf4();
    assert_int_equal(nib_cuda_nf4_dequantize(with.ops, &nf4, {values.data(), 64, 64, 64, NIB_DTYPE_U8}),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "U8"));
    assert_int_equal(nib_cuda_nf4_dequantize_transposed(with.ops, &nf4, {values.data(), 64, 64, 64, NIB_DTYPE_F32}),
                     NIB_ERROR_SHAPE);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(quantizing_is_bit_exact, reset_emulator),
        cmocka_unit_test_setup(dequantizing_is_bit_exact, reset_emulator),
        cmocka_unit_test_setup(odd_lengths_meet_the_cpu, reset_emulator),
        cmocka_unit_test_setup(ties_are_the_cpus, reset_emulator),
        cmocka_unit_test_setup(offsets_have_the_cpus_bits, reset_emulator),
        cmocka_unit_test_setup(what_is_not_supported_is_refused, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
