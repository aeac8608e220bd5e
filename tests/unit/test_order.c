/* Orders are permutations at any size, differ by epoch and seed, and a mixture meets its shares. */
#include "check.h"

#include "data/order.h"

#include <stdlib.h>
#include <string.h>

static void every_size_is_permuted(void **state)
{
    (void)state;
    bool seen[300];
    for (int64_t size = 1; size < 300; size++) {
        memset(seen, 0, sizeof seen);
        for (int64_t i = 0; i < size; i++) {
            int64_t image = nib_permutation(5, size, i);
            assert_true(image >= 0 && image < size && !seen[image]);
            seen[image] = true;
        }
    }
}

/* Chi-square of where index 0 lands over 6,400 keys: 63 degrees of freedom, 99.99 % below 112. */
static void images_are_uniform(void **state)
{
    (void)state;
    int hits[64] = {0};
    double chi = 0;
    for (uint64_t key = 0; key < 6400; key++) hits[nib_permutation(key * 77 + 1, 64, 0)]++;
    for (int i = 0; i < 64; i++) chi += (hits[i] - 100.0) * (hits[i] - 100.0) / 100.0;
    assert_true(chi < 112);
}

static void epochs_and_seeds_differ(void **state)
{
    (void)state;
    int equal_epochs = 0, equal_seeds = 0;
    for (int64_t i = 0; i < 1000; i++) {
        equal_epochs += nib_order_sample(1, true, 1000, i) == nib_order_sample(1, true, 1000, 1000 + i);
        equal_seeds += nib_order_sample(1, true, 1000, i) == nib_order_sample(2, true, 1000, i);
        assert_int_equal(nib_order_sample(1, false, 1000, 3000 + i), i);
    }
    /* One fixed point is expected of two random permutations; ten have a probability of 1e-7. */
    assert_true(equal_epochs < 10 && equal_seeds < 10);
}

/* 30:70 of the supervised tokens from sources of different sizes and lengths. */
static void weights_are_shares_of_supervised_tokens(void **state)
{
    (void)state;
    const nib_mixture_source sources[] = {{100, 4000, 0.3}, {50, 500, 0}, {1000, 10000, 0.7}};
    nib_mixture mixture;
    int draws[3] = {0}, uses[1150] = {0};
    assert_int_equal(nib_mixture_build(sources, 3, 9, true, &mixture), NIB_OK);
    assert_int_equal(mixture.epoch_size, 1150);
    for (int64_t cursor = 0; cursor < 10 * mixture.epoch_size; cursor++) {
        int64_t index = nib_mixture_sample(&mixture, cursor);
        assert_true(index >= 0 && index < 1150);
        uses[index]++;
        draws[index < 100 ? 0 : index < 150 ? 1 : 2]++;
    }
    double first = draws[0] * 40.0, third = draws[2] * 10.0;
    assert_true(first / (first + third) > 0.297 && first / (first + third) < 0.303); /* one draw in 106 */
    assert_int_equal(draws[1], 500);
    /* Within a source no sample is used twice before all are used once. */
    for (int i = 0; i < 100; i++) assert_in_range(uses[i], draws[0] / 100, draws[0] / 100 + 1);
    for (int i = 100; i < 150; i++) assert_int_equal(uses[i], 10);
    for (int i = 150; i < 1150; i++) assert_in_range(uses[i], draws[2] / 1000, draws[2] / 1000 + 1);
    nib_mixture_free(&mixture);
}

static void without_shuffle_rows_come_in_file_order(void **state)
{
    (void)state;
    const nib_mixture_source sources[] = {{3, 3, 0}, {0, 0, 0}, {4, 9, 0}};
    nib_mixture mixture;
    assert_int_equal(nib_mixture_build(sources, 3, 1, false, &mixture), NIB_OK);
    for (int64_t cursor = 0; cursor < 21; cursor++) assert_int_equal(nib_mixture_sample(&mixture, cursor), cursor % 7);
    nib_mixture_free(&mixture);
}

static void a_mixture_of_nothing_is_refused(void **state)
{
    (void)state;
    nib_mixture mixture;
    assert_int_equal(nib_mixture_build((nib_mixture_source[]){{0, 0, 0}}, 1, 1, true, &mixture), NIB_ERROR_DATA);
    assert_int_equal(nib_mixture_build((nib_mixture_source[]){{5, 5, 1}, {0, 0, 1}}, 2, 1, true, &mixture),
                     NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "source 1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size_is_permuted),
        cmocka_unit_test(images_are_uniform),
        cmocka_unit_test(epochs_and_seeds_differ),
        cmocka_unit_test(weights_are_shares_of_supervised_tokens),
        cmocka_unit_test(without_shuffle_rows_come_in_file_order),
        cmocka_unit_test(a_mixture_of_nothing_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
