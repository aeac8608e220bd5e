/* The sampler against the probabilities that its definition gives. */
#include "check.h"

#include "model/sampler.h"

#include <math.h>
#include <string.h>

enum { V = 5, DRAWS = 40000 };
static const double probability[V] = {0.1, 0.5, 0.05, 0.2, 0.15};

static void logits_of(float *logits)
{
    for (int v = 0; v < V; v++) logits[v] = (float)(log(probability[v]) + 3.0); /* a constant must not matter */
}

/* Draws DRAWS times; every id's frequency is within five standard deviations of what is expected, and an id that is
 * excluded never comes. */
static void expect(nib_generate_options options, const double *expected)
{
    float logits[V];
    nib_candidate work[V];
    int count[V] = {0};
    logits_of(logits);
    for (int64_t position = 0; position < DRAWS; position++) {
        int32_t id;
        assert_int_equal(nib_sample(logits, V, &options, position, work, &id), NIB_OK);
        count[id]++;
    }
    for (int v = 0; v < V; v++) {
        double deviation = sqrt(DRAWS * expected[v] * (1.0 - expected[v]));
        assert_true(fabs(count[v] - DRAWS * expected[v]) <= 5.0 * deviation);
    }
}

static void frequencies_are_the_probabilities(void **state)
{
    (void)state;
    expect((nib_generate_options){.temperature = 1.0, .top_p = 1.0, .seed = 3}, probability);
    /* temperature 0.5 squares the probabilities: 0.01 0.25 0.0025 0.04 0.0225, sum 0.325 */
    expect((nib_generate_options){.temperature = 0.5, .top_p = 1.0},
           (const double[]){0.01 / 0.325, 0.25 / 0.325, 0.0025 / 0.325, 0.04 / 0.325, 0.0225 / 0.325});
}

static void only_the_likeliest_are_drawn(void **state)
{
    (void)state;
    expect((nib_generate_options){.temperature = 1.0, .top_p = 1.0, .top_k = 2},
           (const double[]){0, 0.5 / 0.7, 0, 0.2 / 0.7, 0});
    /* 0.5 + 0.2 is short of 0.8, so the third is in */
    expect((nib_generate_options){.temperature = 1.0, .top_p = 0.8},
           (const double[]){0, 0.5 / 0.85, 0, 0.2 / 0.85, 0.15 / 0.85});
    /* of the three largest, with 0.588, 0.235 and 0.176 of their sum, two make up 0.6 */
    expect((nib_generate_options){.temperature = 1.0, .top_p = 0.6, .top_k = 3},
           (const double[]){0, 0.5 / 0.7, 0, 0.2 / 0.7, 0});
    expect((nib_generate_options){.temperature = 1.0, .top_p = 0.01}, (const double[]){0, 1, 0, 0, 0});
}

static void greedy_takes_the_first_of_equals(void **state)
{
    (void)state;
    const float logits[V] = {-1, 2, 0, 2, 2};
    nib_candidate work[V];
    int32_t id;
    assert_int_equal(nib_sample(logits, V, &(nib_generate_options){.top_p = 1.0}, 0, work, &id), NIB_OK);
    assert_int_equal(id, 1);
    assert_int_equal(
        nib_sample(logits, V, &(nib_generate_options){.temperature = 1.0, .top_p = 1.0, .top_k = 1}, 0, work, &id),
        NIB_OK);
    assert_int_equal(id, 1);
}

static void damaged_logits_are_refused(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float logits[V];
        nib_candidate work[V];
        int32_t id;
        logits_of(logits);
        logits[3] = bad[i];
        assert_int_equal(nib_sample(logits, V, &(nib_generate_options){.top_p = 1.0}, 17, work, &id), NIB_ERROR_DATA);
        assert_non_null(strstr(nib_error_message(), "after 17 tokens"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frequencies_are_the_probabilities),
        cmocka_unit_test(only_the_likeliest_are_drawn),
        cmocka_unit_test(greedy_takes_the_first_of_equals),
        cmocka_unit_test(damaged_logits_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
