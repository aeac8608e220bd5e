/* Linears with LoRA, forward and backward, against the CPU backend in fp32 on the same bf16 values: one row (a matvec),
 * a few (products that decode in registers), many (dequantised weights through cuBLASLt); parts with and without
 * adapter and bias; dropout, whose masks have to be the CPU's.
 *
 * Tolerance 1/64 of root mean square and element: u, du and y are rounded to bf16 (2^-9) where fp32 keeps them, y and
 * dx twice, and what they are made of is up to three times their size. A mask or scale that is off shows as a whole
 * term.
 */
#include "cuda_check.h"

extern "C" {
#include "base/random.h"
}

#include "linear_case.h"

#include "cuda/backend.h"

static const double TOLERANCE = 1.0 / 64;

static void check_case(nib_ops *ops, nib_ops *cpu, int64_t T, nib_dropout dropout)
{
    const int64_t K = 128, gap = 8;
    linear_case linear(K, {{48, 4, false}, {24, 0, true}, {16, 8, true}}, 77);
    const int64_t outputs = linear.outputs(), ranks = linear.ranks();
    std::vector<float> x = random_bf16(1, T * K), dy = random_bf16(2, T * outputs), before = random_bf16(3, T * K);
    std::vector<float> u((size_t)(T * ranks)), y((size_t)(T * outputs)), dx = before;
    nib_matrix wide_u = dense_matrix(u, T, ranks);
    check_ok(
        cpu->linear_forward(cpu, &linear.cpu, dense_matrix(x, T, K), dropout, wide_u, dense_matrix(y, T, outputs)));
    check_ok(cpu->linear_backward(cpu, &linear.cpu, dense_matrix(x, T, K), dropout, wide_u,
                                  dense_matrix(dy, T, outputs), true, dense_matrix(dx, T, K)));

    strided_matrix device_x(x, T, K, gap), device_u(T, ranks, gap), device_y(T, outputs, gap);
    strided_matrix device_dy(dy, T, outputs, gap), device_dx(before, T, K, gap);
    check_ok(
        ops->linear_forward(ops, &linear.device, device_x.matrix(), dropout, device_u.matrix(), device_y.matrix()));
    check_ok(ops->linear_backward(ops, &linear.device, device_x.matrix(), dropout, device_u.matrix(),
                                  device_dy.matrix(), true, device_dx.matrix()));
    check_near("u", device_u.download(), u, TOLERANCE);
    check_near("y", device_y.download(), y, TOLERANCE);
    check_near("dx", device_dx.download(), dx, TOLERANCE);
    for (int part : {0, 2}) {
        check_near("da", linear.device_da(part), linear.cpu_da(part), TOLERANCE);
        check_near("db", linear.device_db(part), linear.cpu_db(part), TOLERANCE);
    }
    assert_int_equal(ops->scratch->used, 0);
}

static void check_rows(nib_dropout dropout)
{
    nib_ops *ops, *cpu;
    check_ok(nib_cuda_backend_create(0, &ops));
    check_ok(nib_cpu_backend_create(size_t{64} << 20, &cpu));
    for (int64_t T : {1, 3, 9, 63, 65, 129}) check_case(ops, cpu, T, dropout);
    ops->close(ops);
    nib_cpu_backend_free(cpu);
}

static void forward_and_backward_are_the_cpu_backends(void **) { check_rows({}); }

static void dropout_has_the_cpu_backends_masks(void **) { check_rows({0.25f, 0x1234567}); }

static void a_shape_that_does_not_fit_is_named(void **)
{
    nib_ops *ops;
    linear_case linear(128, {{48, 4, false}}, 77);
    strided_matrix x(3, 64, 0), u(3, 4, 0), y(3, 48, 0);
    check_ok(nib_cuda_backend_create(0, &ops));
    assert_int_equal(ops->linear_forward(ops, &linear.device, x.matrix(), {}, u.matrix(), y.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "test"));
    ops->close(ops);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(forward_and_backward_are_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(dropout_has_the_cpu_backends_masks, reset_emulator),
        cmocka_unit_test_setup(a_shape_that_does_not_fit_is_named, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
