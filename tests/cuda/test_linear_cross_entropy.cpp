/* Head and cross-entropy against the CPU backend in fp32 on the same bf16 values: rows with several labels, rows
 * without any, soft-cap, more rows than a chunk, strided matrices, and vocabularies that are no whole vectors.
 *
 * Tolerances: a loss is fp32 on both sides, sums of up to 64 products in another order: 2e-5. The gradient of a logit
 * is rounded to bf16 before the product, by up to 2^-9 of itself, and dx once more; the magnitudes that such a product
 * adds up come to a few times its largest result, so 2^-7 of that. A missing label or weight is off by the element. */
#include "cuda_check.h"

extern "C" {
#include "base/random.h"
}

#include "strided_matrix.h"

#include "backends.h"

struct loss_case {
    int64_t T, C, V, gap;
    float softcap;
    bool full = false; /* every row has a target */
};

static nib_matrix wide(const std::vector<float> &m, int64_t rows, int64_t columns)
{
    return {(void *)m.data(), rows, columns, columns, NIB_DTYPE_F32};
}

static double largest(const std::vector<float> &values)
{
    double most = 0;
    for (float v : values) most = fmax(most, fabs((double)v));
    return most;
}

static void check_near(const std::vector<float> &found, const std::vector<float> &want, double tolerance,
                       const char *what, loss_case s)
{
    assert_int_equal(found.size(), want.size());
    for (size_t i = 0; i < want.size(); i++)
        if (!(fabs((double)found[i] - (double)want[i]) <= tolerance))
            fail_msg("%s[%zu] at T %lld, C %lld, V %lld, soft-cap %g: %g, expected %g", what, i, (long long)s.T,
                     (long long)s.C, (long long)s.V, (double)s.softcap, (double)found[i], (double)want[i]);
}

static void check_case(nib_ops *ops, nib_ops *cpu, loss_case s)
{
    const std::vector<float> x = random_bf16(1, s.T * s.C), head = random_bf16(2, s.V * s.C);
    std::vector<int32_t> row, label;
    std::vector<float> weight;
    for (int64_t t = 0; t < s.T; t++)
        for (int64_t k = 0; k < (s.full ? 1 : (t * 7 + 1) % 4);
             k++) { /* 0 to 3 labels, two of them sometimes the same */
            row.push_back((int32_t)t);
            label.push_back((int32_t)((t * 5 + k / 2 * 3) % s.V));
            weight.push_back(0.5f + 0.25f * (float)k);
        }
    const int64_t N = (int64_t)row.size();
    std::vector<float> nll((size_t)N), dx(x.size()), dhead(head.size(), 0.125f);
    device_buffer<float> device_dhead(dhead), device_nll((size_t)N), device_weight(weight);
    const float scale = 1.0f / (float)N;
    check_ok(cpu->linear_cross_entropy(cpu, wide(x, s.T, s.C), wide(head, s.V, s.C), s.softcap,
                                       {N, row.data(), label.data(), weight.data()}, scale, nll.data(),
                                       wide(dx, s.T, s.C), dhead.data()));
    device_buffer<int32_t> device_row(row), device_label(label);
    strided_matrix device_x(x, s.T, s.C, s.gap), device_head(head, s.V, s.C, 0), device_dx(s.T, s.C, s.gap);
    check_ok(ops->linear_cross_entropy(ops, device_x.matrix(), device_head.matrix(), s.softcap,
                                       {N, device_row.data(), device_label.data(), device_weight.data()}, scale,
                                       device_nll.data(), device_dx.matrix(), device_dhead.data()));
    check_near(device_nll.download(), nll, 2e-5, "nll", s);
    check_near(device_dx.download(), dx, largest(dx) / 128, "dx", s);
    check_near(device_dhead.download(), dhead, largest(dhead) / 128, "dhead", s);
    assert_int_equal(ops->scratch->used, 0);
}

static void losses_and_gradients_are_the_cpu_backends(void **)
{
    nib_ops *ops, *cpu;
    check_ok(nib_cuda_backend_create(0, &ops));
    check_ok(nib_cpu_backend_create(size_t{64} << 20, &cpu));
    for (loss_case s : {loss_case{2, 8, 17, 0, 0},
                        {3, 64, 300, 8, 0},
                        {65, 24, 97, 3, 5},
                        {129, 16, 5001, 8, 0},
                        {2900, 8, 9, 0, 0},
                        {3, 8, 4100, 0, 0},
                        {64, 8, 40, 0, 0, true}})
        check_case(ops, cpu, s);
    ops->close(ops);
    nib_cpu_backend_free(cpu);
}

/* Rows that are labels and rows that are none, among more targets than a run has. fp32 on both sides: sums of N
 * products in another order, 1e-4 of the largest. */
static void check_selected(const backends &b, loss_case s, int64_t n)
{
    const std::vector<float> x = random_bf16(1, s.T * s.C), head = random_bf16(2, s.V * s.C);
    std::vector<int32_t> row, label, selected;
    std::vector<float> weight;
    for (int64_t t = 0; t < s.T; t++)
        for (int64_t k = 0; k < (t * 7 + 1) % 4; k++) {
            row.push_back((int32_t)t);
            label.push_back((int32_t)((t * 5 + k / 2 * 3) % s.V));
            weight.push_back(0.5f + 0.25f * (float)k);
        }
    for (int64_t k = 0; k < n; k++) selected.push_back((int32_t)(s.V - 1 - k * (s.V / n)));
    const int64_t N = (int64_t)row.size();
    std::vector<float> nll((size_t)N), drows((size_t)(n * s.C), 0.125f);
    const nib_targets targets = {N, row.data(), label.data(), weight.data()};
    check_ok(b.cpu->linear_cross_entropy(b.cpu, wide(x, s.T, s.C), wide(head, s.V, s.C), 0, targets, 1, nll.data(), {},
                                         nullptr));
    check_ok(b.cpu->head_rows_backward(b.cpu, wide(x, s.T, s.C), wide(head, s.V, s.C), targets, 0.5f, nll.data(), n,
                                       selected.data(), drows.data()));
    strided_matrix device_x(x, s.T, s.C, s.gap), device_head(head, s.V, s.C, 0);
    device_buffer<int32_t> device_row(row), device_label(label), device_selected(selected);
    device_buffer<float> device_weight(weight), device_nll(nll), found(std::vector<float>(drows.size(), 0.125f));
    check_ok(b.cuda->head_rows_backward(b.cuda, device_x.matrix(), device_head.matrix(),
                                        {N, device_row.data(), device_label.data(), device_weight.data()}, 0.5f,
                                        device_nll.data(), n, device_selected.data(), found.data()));
    check_near(found.download(), drows, largest(drows) * 1e-4, "drows", s);
    assert_int_equal(b.cuda->scratch->used, 0);
}

static void selected_rows_are_the_cpu_backends(void **)
{
    backends b;
    check_selected(b, {2, 8, 17, 0, 0}, 1);
    check_selected(b, {65, 24, 97, 3, 0}, 11);
    check_selected(b, {129, 264, 300, 8, 0}, 5);
    check_selected(b, {300, 33, 50, 0, 0}, 50);
    const nib_matrix x = {nullptr, 1, 8, 8, NIB_DTYPE_BF16}, narrow = {nullptr, 9, 16, 16, NIB_DTYPE_BF16};
    assert_int_equal(b.cuda->head_rows_backward(b.cuda, x, narrow, {}, 1, nullptr, 1, nullptr, nullptr),
                     NIB_ERROR_SHAPE);
}

/* A row or a label that there is not: the loss is NaN, and nothing beside x, the logits or dx is touched. */
static void targets_outside_are_no_numbers(void **)
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    const int64_t T = 3, V = 16;
    for (int64_t C : {8, 9}) {
        strided_matrix x(random_bf16(1, T * C), T, C, 0), head(random_bf16(2, V * C), V, C, 0), dx(T, C, 0);
        device_buffer<int32_t> row(std::vector<int32_t>{0, 0, 1, 1, 1, T});
        device_buffer<int32_t> label(std::vector<int32_t>{V - 1, V, V + 40, -1, 0, 2});
        device_buffer<float> weight(std::vector<float>(6, 1.0f)), nll(6);
        check_ok(ops->linear_cross_entropy(ops, x.matrix(), head.matrix(), 0,
                                           {6, row.data(), label.data(), weight.data()}, 1.0f, nll.data(), dx.matrix(),
                                           nullptr));
        const std::vector<float> found = nll.download();
        for (size_t n = 0; n < 6; n++) assert_int_equal(std::isnan(found[n]), n != 0 && n != 4);
        for (float v : dx.download()) assert_false(std::isnan(v));
    }
    ops->close(ops);
}

/* The same where one of a target's row, its label and a selected row is not there: the gradients that it is part of are
 * no numbers, and nothing beside x and the head is read. */
static void selected_rows_of_what_is_not_there_are_no_numbers(void **)
{
    backends b;
    const int32_t T = 3, V = 16;
    for (int64_t C : {8, 9})
        for (int what = 0; what < 6; what++) {
            const int32_t outside = what % 2 == 0 ? -1 : what / 2 == 0 ? T : V;
            const int32_t at = what / 2 == 0 ? outside : T - 1, label = what / 2 == 1 ? outside : V - 1,
                          selected = what / 2 == 2 ? outside : 0;
            strided_matrix x(random_bf16(1, T * C), T, C, 0), head(random_bf16(2, V * C), V, C, 0);
            device_buffer<int32_t> row(std::vector<int32_t>{0, at}), labels(std::vector<int32_t>{2, label});
            device_buffer<int32_t> rows(std::vector<int32_t>{V - 1, selected});
            device_buffer<float> weight(std::vector<float>(2, 1.0f)), nll(std::vector<float>(2, 2.5f));
            device_buffer<float> drows(std::vector<float>((size_t)(2 * C), 0.0f));
            check_ok(b.cuda->head_rows_backward(b.cuda, x.matrix(), head.matrix(),
                                                {2, row.data(), labels.data(), weight.data()}, 1.0f, nll.data(), 2,
                                                rows.data(), drows.data()));
            const std::vector<float> found = drows.download();
            for (int64_t i = 0; i < 2 * C; i++) assert_int_equal(std::isnan(found[(size_t)i]), what / 2 < 2 || i >= C);
        }
}

static void logits_are_the_cpu_backends(void **)
{
    nib_ops *ops, *cpu;
    check_ok(nib_cuda_backend_create(0, &ops));
    check_ok(nib_cpu_backend_create(size_t{64} << 20, &cpu));
    for (float softcap : {0.0f, 2.0f}) {
        const int64_t T = 5, C = 24, V = 301;
        std::vector<float> x = random_bf16(1, T * C), head = random_bf16(2, V * C), want((size_t)(T * V));
        check_ok(cpu->logits(cpu, {x.data(), T, C, C, NIB_DTYPE_F32}, {head.data(), V, C, C, NIB_DTYPE_F32}, softcap,
                             want.data()));
        strided_matrix device_x(x, T, C, 8), device_head(head, V, C, 0);
        device_buffer<float> found(want.size());
        check_ok(ops->logits(ops, device_x.matrix(), device_head.matrix(), softcap, found.data()));
        check_near(found.download(), want, 2e-5, "logits", {T, C, V, 8, softcap});
    }
    ops->close(ops);
    nib_cpu_backend_free(cpu);
}

static void rows_without_targets_get_zeros(void **)
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    strided_matrix x(random_bf16(1, 5 * 16), 5, 16, 8), head(random_bf16(2, 20 * 16), 20, 16, 0), dx(5, 16, 8);
    check_ok(ops->linear_cross_entropy(ops, x.matrix(), head.matrix(), 0, {}, 1, nullptr, dx.matrix(), nullptr));
    for (float v : dx.download()) assert_true(v == 0.0f);
    ops->close(ops);
}

/* Rows that descend, that alternate more often than x has rows, that begin and end outside of x: every loss is NaN,
 * none is left as it was, and no row of dx either. The first has as many rows as fill the scratch of a new backend to
 * its last byte, so that a write behind them is found. */
static void a_list_that_is_none_has_no_losses(void **)
{
    std::vector<int32_t> alternating;
    for (int i = 0; i < 35; i++) alternating.insert(alternating.end(), {0, 1});
    const struct {
        int64_t T;
        std::vector<int32_t> rows;
    } lists[] = {
        {64, alternating}, {4, {3, 1}}, {4, {0, 1, 0, 1, 0, 1, 0, 1}}, {4, {-1, 0, 1, 2, 3, 4}}, {4, {0, 2, 2, 1}}};
    const int64_t C = 16, V = 20;
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    for (const auto &list : lists) {
        const int64_t T = list.T, N = (int64_t)list.rows.size();
        strided_matrix x(random_bf16(1, T * C), T, C, 8), head(random_bf16(2, V * C), V, C, 0), dx(T, C, 8);
        device_buffer<int32_t> row(list.rows), label(std::vector<int32_t>((size_t)N, 3));
        device_buffer<float> weight(std::vector<float>((size_t)N, 1.0f)), nll(std::vector<float>((size_t)N, 7.0f));
        check_ok(ops->linear_cross_entropy(ops, x.matrix(), head.matrix(), 0,
                                           {N, row.data(), label.data(), weight.data()}, 1, nll.data(), dx.matrix(),
                                           nullptr));
        for (float loss : nll.download()) assert_true(std::isnan(loss));
        for (float v : dx.download()) assert_true(v == 0.0f);
    }
    ops->close(ops);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(losses_and_gradients_are_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(selected_rows_are_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(selected_rows_of_what_is_not_there_are_no_numbers, reset_emulator),
        cmocka_unit_test_setup(targets_outside_are_no_numbers, reset_emulator),
        cmocka_unit_test_setup(logits_are_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(rows_without_targets_get_zeros, reset_emulator),
        cmocka_unit_test_setup(a_list_that_is_none_has_no_losses, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
