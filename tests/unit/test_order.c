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

/* A data set for mixtures: supervised tokens of each sample. */
typedef struct {
    int sources;
    nib_mixture_source source[6];
    int64_t first[7];
    int64_t tokens[2000];
    int64_t longest; /* of the weighted sources */
} world;

static nib_status count_tokens(const void *data, int64_t index, int64_t *supervised)
{
    *supervised = ((const world *)data)->tokens[index];
    return NIB_OK;
}

static int64_t draw(unsigned *state, int64_t below)
{
    *state = *state * 1103515245u + 12345u;
    return (int64_t)(*state >> 8) % below;
}

/* Adds a source whose samples have 1 .. most tokens; a few are as long as can be. */
static void add_source(world *w, unsigned *random, int64_t samples, int64_t most, double weight)
{
    int s = w->sources++;
    w->source[s] = (nib_mixture_source){.samples = samples, .weight = weight};
    w->first[s + 1] = w->first[s] + samples;
    for (int64_t i = w->first[s]; i < w->first[s + 1]; i++) {
        w->tokens[i] = draw(random, 8) == 0 ? most : 1 + draw(random, most);
        w->source[s].supervised_tokens += w->tokens[i];
        if (weight > 0 && w->tokens[i] > w->longest) w->longest = w->tokens[i];
    }
}

static nib_mixture build(const world *w, uint64_t seed, bool shuffle)
{
    nib_mixture mixture;
    if (nib_mixture_build(w->source, w->sources, seed, shuffle, count_tokens, w, &mixture) != NIB_OK)
        fail_msg("%s", nib_error_message());
    return mixture;
}

static int64_t sample_at(const nib_mixture *mixture, int64_t cursor)
{
    int64_t index = -1;
    assert_int_equal(nib_mixture_sample(mixture, cursor, &index), NIB_OK);
    return index;
}

/* Every prefix of several epochs: no weighted source is a sample off its share, and none gives a sample twice before it
 * has given all. */
static void check_every_prefix(const world *w, uint64_t seed, bool shuffle)
{
    nib_mixture mixture = build(w, seed, shuffle);
    int uses[2000] = {0};
    int64_t given[6] = {0};
    double tokens[6] = {0}, all = 0, weights = 0;
    for (int s = 0; s < w->sources; s++) weights += w->source[s].weight;
    for (int64_t cursor = 0; cursor < 4 * mixture.epoch_size; cursor++) {
        int64_t index = sample_at(&mixture, cursor);
        int s = 0;
        assert_true(index >= 0 && index < w->first[w->sources]);
        while (index >= w->first[s + 1]) s++;
        assert_int_equal(uses[index]++, given[s]++ / w->source[s].samples);
        if (w->source[s].weight > 0) {
            tokens[s] += (double)w->tokens[index];
            all += (double)w->tokens[index];
        }
        for (int k = 0; k < w->sources; k++) {
            double off = tokens[k] - all * w->source[k].weight / weights;
            if (w->source[k].weight > 0 && (off > (double)w->longest || off < -(double)w->longest))
                fail_msg("after %lld draws source %d is %g tokens off its share, a sample has %lld at most",
                         (long long)cursor + 1, k, off, (long long)w->longest);
        }
    }
    /* Sources without a weight: every sample once an epoch. */
    for (int s = 0; s < w->sources; s++)
        if (w->source[s].weight <= 0) assert_int_equal(given[s], 4 * w->source[s].samples);
    nib_mixture_free(&mixture);
}

static void every_prefix_has_the_shares(void **state)
{
    (void)state;
    unsigned random = 1;
    for (int i = 0; i < 60; i++) {
        world w = {0};
        int sources = 2 + (int)draw(&random, 4);
        for (int s = 0; s < sources; s++)
            add_source(&w, &random, 1 + draw(&random, 300), 1 + draw(&random, 500),
                       s > 1 && draw(&random, 4) == 0 ? 0 : (double)(1 + draw(&random, 99)) / 10);
        check_every_prefix(&w, (uint64_t)i, i % 2 == 0);
    }
}

/* General and domain data, 30:70, of different sizes and lengths. */
static void thirty_to_seventy(void **state)
{
    (void)state;
    unsigned random = 5;
    world w = {0};
    add_source(&w, &random, 900, 20, 0.3);
    add_source(&w, &random, 40, 400, 0.7);
    check_every_prefix(&w, 42, true);
    check_every_prefix(&w, 43, false);
}

/* Nothing but the cursor matters: not where one begins, nor what was asked before. */
static void any_cursor_is_asked_alone(void **state)
{
    (void)state;
    unsigned random = 9;
    world w = {0};
    add_source(&w, &random, 70, 30, 2);
    add_source(&w, &random, 50, 90, 0);
    add_source(&w, &random, 200, 7, 1);
    nib_mixture whole = build(&w, 3, true);
    static int64_t want[30000];
    for (int64_t i = 0; i < 30000; i++) want[i] = sample_at(&whole, i);
    for (int i = 0; i < 200; i++) {
        int64_t cursor = draw(&random, 30000);
        assert_int_equal(sample_at(&whole, cursor), want[cursor]);
    }
    for (int i = 0; i < 20; i++) {
        nib_mixture fresh = build(&w, 3, true);
        int64_t cursor = draw(&random, 30000);
        assert_int_equal(sample_at(&fresh, cursor), want[cursor]);
        nib_mixture_free(&fresh);
    }
    nib_mixture_free(&whole);
}

static void without_shuffle_rows_come_in_file_order(void **state)
{
    (void)state;
    unsigned random = 2;
    world w = {0};
    add_source(&w, &random, 3, 1, 0);
    add_source(&w, &random, 4, 9, 0);
    nib_mixture mixture = build(&w, 1, false);
    for (int64_t cursor = 0; cursor < 21; cursor++) assert_int_equal(sample_at(&mixture, cursor), cursor % 7);
    nib_mixture_free(&mixture);
}

static void a_mixture_of_nothing_is_refused(void **state)
{
    (void)state;
    nib_mixture mixture;
    assert_int_equal(nib_mixture_build((nib_mixture_source[]){{0, 0, 0}}, 1, 1, true, count_tokens, NULL, &mixture),
                     NIB_ERROR_DATA);
    assert_int_equal(
        nib_mixture_build((nib_mixture_source[]){{5, 5, 1}, {0, 0, 1}}, 2, 1, true, count_tokens, NULL, &mixture),
        NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "source 1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size_is_permuted),
        cmocka_unit_test(images_are_uniform),
        cmocka_unit_test(epochs_and_seeds_differ),
        cmocka_unit_test(every_prefix_has_the_shares),
        cmocka_unit_test(thirty_to_seventy),
        cmocka_unit_test(any_cursor_is_asked_alone),
        cmocka_unit_test(without_shuffle_rows_come_in_file_order),
        cmocka_unit_test(a_mixture_of_nothing_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
