/* Both dense products, cublasLt's stand-in and the plain kernel, against sums in double arithmetic: every transpose,
 * with and without what was there before, strided, at sizes that fill no tile. */
#include "cuda_check.h"

extern "C" {
#include "base/random.h"
}

#include "strided_matrix.h"

#include "cuda/backend.h"
#include "cuda/choice.h"

struct size {
    int64_t M, N, K;
};

static double at(const std::vector<float> &m, bool transpose, int64_t rows, int64_t columns, int64_t row,
                 int64_t column)
{
    return (double)(transpose ? m[(size_t)(column * rows + row)] : m[(size_t)(row * columns + column)]);
}

/* Sums of K products of bf16 values in (-1, 1): fp32 is off by K 2^-24 of K at most; bf16 by 2^-8 of the result. */
static void check_product(nib_ops *ops, size s, bool transpose_a, bool transpose_b, bool accumulate, bool wide)
{
    std::vector<float> a = random_bf16(1, s.M * s.K), b = random_bf16(2, s.K * s.N), c = random_bf16(3, s.M * s.N);
    strided_matrix da(a, transpose_a ? s.K : s.M, transpose_a ? s.M : s.K, 3);
    strided_matrix db(b, transpose_b ? s.N : s.K, transpose_b ? s.K : s.N, 5), narrow(c, s.M, s.N, 2);
    device_buffer<float> full(c);
    nib_matrix out = wide ? nib_matrix{full.data(), s.M, s.N, s.N, NIB_DTYPE_F32} : narrow.matrix();
    check_ok(nib_cuda_matmul(ops, da.matrix(), transpose_a, db.matrix(), transpose_b, accumulate, out));
    std::vector<float> found = wide ? full.download() : narrow.download();
    for (int64_t m = 0; m < s.M; m++)
        for (int64_t n = 0; n < s.N; n++) {
            double want = accumulate ? (double)c[(size_t)(m * s.N + n)] : 0;
            for (int64_t k = 0; k < s.K; k++)
                want += at(a, transpose_a, s.M, s.K, m, k) * at(b, transpose_b, s.K, s.N, k, n);
            const double allowed = (double)(s.K * s.K + 1) * 0x1p-24 + (wide ? 0 : fabs(want) / 256);
            if (!(fabs((double)found[(size_t)(m * s.N + n)] - want) <= allowed))
                fail_msg("[%lld][%lld] of %lld x %lld x %lld: %.9g, expected %.9g", (long long)m, (long long)n,
                         (long long)s.M, (long long)s.N, (long long)s.K, (double)found[(size_t)(m * s.N + n)], want);
        }
}

static void check_all(uint32_t plain)
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    ops->use_plain(ops, plain);
    for (size s : {size{1, 1, 1}, size{3, 33, 17}, size{17, 16, 40}})
        for (int bits = 0; bits < 16; bits++)
            check_product(ops, s, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0);
    ops->close(ops);
}

static void cublas_meets_double_sums(void **) { check_all(0); }
static void the_plain_product_meets_double_sums(void **) { check_all(1u << NIB_CUDA_MATMUL); }

#ifdef NIB_CUDA_EMULATED
/* With all plain ones, no product of a warp's matrices is left; with none, there are. */
static void a_choice_switches_the_kernel(void **)
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    strided_matrix q(random_bf16(1, 70 * 32), 70, 32, 0), out(70, 32, 0);
    std::vector<int32_t> position, end(70, 70);
    for (int32_t t = 0; t < 70; t++) position.push_back(t);
    device_buffer<int32_t> device_position(position), device_end(end);
    for (uint32_t mask : {0u, ~0u}) {
        nib_emulator::reset_counters();
        ops->use_plain(ops, mask);
        check_ok(ops->attention_forward(ops, {2, 2, 16, 0.25f, 0, 0}, {70, device_position.data(), device_end.data()},
                                        q.matrix(), q.matrix(), q.matrix(), out.matrix(), nullptr));
        check_ok(ops->synchronize(ops));
        assert_true((nib_emulator::counters().matrix_products == 0) == (mask != 0));
    }
    ops->close(ops);
}
#endif

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(cublas_meets_double_sums, reset_emulator),
        cmocka_unit_test_setup(the_plain_product_meets_double_sums, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(a_choice_switches_the_kernel, reset_emulator),
#endif
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
