/* The choice of a token against the probabilities that its definition gives. */
#include "check.h"

#include "cpu/backend.h"

#include <math.h>

enum { V = 5, DRAWS = 40000 };
static const double probability[V] = {0.1, 0.5, 0.05, 0.2, 0.15};

static void logits_of(float *logits)
{
    for (int v = 0; v < V; v++) logits[v] = (float)(log(probability[v]) + 3.0); /* a constant must not matter */
}

static nib_ops *ops;

static int open_backend(void **state)
{
    (void)state;
    return nib_cpu_backend_create((size_t)16 << 20, &ops) == NIB_OK ? 0 : -1;
}

static int close_backend(void **state)
{
    (void)state;
    nib_cpu_backend_free(ops);
    return 0;
}

static int32_t sample(nib_sampling sampling, const float *logits, int64_t position)
{
    int32_t id;
    assert_int_equal(ops->sample(ops, sampling, logits, 1, V, &position, &id), NIB_OK);
    return id;
}

/* Draws DRAWS times; every id's frequency is within five standard deviations of what is expected, an id that is
 * excluded never comes, and chi-square over all is below what one draw in a million exceeds (4 degrees of freedom). */
static void expect(nib_sampling sampling, const double *expected)
{
    float logits[V];
    int count[V] = {0};
    double chi_square = 0.0;
    logits_of(logits);
    for (int64_t position = 0; position < DRAWS; position++) count[sample(sampling, logits, position)]++;
    for (int v = 0; v < V; v++) {
        double off = count[v] - DRAWS * expected[v];
        assert_true(fabs(off) <= 5.0 * sqrt(DRAWS * expected[v] * (1.0 - expected[v])));
        if (expected[v] > 0.0) chi_square += off * off / (DRAWS * expected[v]);
    }
    assert_true(chi_square < 33.4);
}

static void frequencies_are_the_probabilities(void **state)
{
    (void)state;
    expect((nib_sampling){.temperature = 1.0, .top_p = 1.0, .seed = 3}, probability);
    /* temperature 0.5 squares the probabilities: 0.01 0.25 0.0025 0.04 0.0225, sum 0.325 */
    expect((nib_sampling){.temperature = 0.5, .top_p = 1.0},
           (const double[]){0.01 / 0.325, 0.25 / 0.325, 0.0025 / 0.325, 0.04 / 0.325, 0.0225 / 0.325});
}

static void only_the_likeliest_are_drawn(void **state)
{
    (void)state;
    expect((nib_sampling){.temperature = 1.0, .top_p = 1.0, .top_k = 2},
           (const double[]){0, 0.5 / 0.7, 0, 0.2 / 0.7, 0});
    /* 0.5 + 0.2 is short of 0.8, so the third is in */
    expect((nib_sampling){.temperature = 1.0, .top_p = 0.8},
           (const double[]){0, 0.5 / 0.85, 0, 0.2 / 0.85, 0.15 / 0.85});
    /* of the three largest, with 0.588, 0.235 and 0.176 of their sum, two make up 0.6 */
    expect((nib_sampling){.temperature = 1.0, .top_p = 0.6, .top_k = 3},
           (const double[]){0, 0.5 / 0.7, 0, 0.2 / 0.7, 0});
    expect((nib_sampling){.temperature = 1.0, .top_p = 0.01}, (const double[]){0, 1, 0, 0, 0});
}

static void greedy_takes_the_first_of_equals(void **state)
{
    (void)state;
    const float logits[V] = {-1, 2, 0, 2, 2};
    assert_int_equal(sample((nib_sampling){.top_p = 1.0}, logits, 0), 1);
    assert_int_equal(sample((nib_sampling){.temperature = 1.0, .top_p = 1.0, .top_k = 1}, logits, 0), 1);
    assert_int_equal(sample((nib_sampling){.temperature = 1.0, .top_p = 1e-9}, logits, 0), 1);
}

/* Logits that a temperature spreads beyond every exponent, or brings together. */
static void any_temperature_will_do(void **state)
{
    (void)state;
    const float logits[V] = {-3e38f, 3e38f, 0, 1, -3e38f};
    assert_int_equal(sample((nib_sampling){.temperature = 1e-300, .top_p = 1.0}, logits, 3), 1);
    assert_int_equal(sample((nib_sampling){.temperature = 1.0, .top_p = 0.999}, logits, 3), 1);
    expect((nib_sampling){.temperature = 1e9, .top_p = 1.0}, (const double[]){0.2, 0.2, 0.2, 0.2, 0.2});
}

static void damaged_logits_are_refused(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float logits[V];
        logits_of(logits);
        logits[3] = bad[i];
        assert_int_equal(sample((nib_sampling){.top_p = 1.0}, logits, 17), -1);
        assert_int_equal(sample((nib_sampling){.temperature = 1.0, .top_p = 1.0}, logits, 17), -1);
    }
}

/* Every id of a vocabulary that is not whole vectors can be the largest, or damaged. */
static void every_id_is_looked_at(void **state)
{
    (void)state;
    enum { MANY = 37 };
    for (int32_t v = 0; v < MANY; v++) {
        float logits[MANY];
        const int64_t position = 0;
        int32_t id;
        for (int32_t i = 0; i < MANY; i++) logits[i] = i < v ? -2.0f : -1.0f; /* v is the first of the largest */
        assert_int_equal(ops->sample(ops, (nib_sampling){.top_p = 1.0}, logits, 1, MANY, &position, &id), NIB_OK);
        assert_int_equal(id, v);
        logits[v] = v % 2 == 0 ? -INFINITY : NAN;
        assert_int_equal(ops->sample(ops, (nib_sampling){.top_p = 1.0}, logits, 1, MANY, &position, &id), NIB_OK);
        assert_int_equal(id, -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frequencies_are_the_probabilities),
        cmocka_unit_test(only_the_likeliest_are_drawn),
        cmocka_unit_test(every_id_is_looked_at),
        cmocka_unit_test(greedy_takes_the_first_of_equals),
        cmocka_unit_test(any_temperature_will_do),
        cmocka_unit_test(damaged_logits_are_refused),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
