/* The choice of a token: always the CPU backend's, from the same logits and the same random numbers, at vocabularies
 * that fill no warp, no block, and many. What the CPU chooses is held against its definition in
 * tests/unit/test_sample.c. */
#include "backends.h"

extern "C" {
#include "base/random.h"
}

#include "strided_matrix.h"

static const int64_t vocabularies[] = {1, 31, 33, 1000, 49152, 128256};

static const nib_sampling samplings[] = {
    {0.0, 1.0, 0, 3},  {1.0, 1.0, 0, 3},        {0.7, 1.0, 1, 3},    {0.7, 0.95, 50, 3},
    {1.3, 0.9, 0, 3},  {1.0, 1e-6, 0, 3},       {1.0, 1.0, 40, 3},   {0.01, 0.5, 7, 3},
    {50.0, 0.3, 0, 3}, {1.0, 0.999, 100000, 3}, {1e-200, 0.9, 5, 3}, {1e30, 0.999999, 0, 3},
};

/* Rows of logits [rows, V], and what both backends choose. */
static std::vector<int32_t> choose_alike(backends &b, nib_sampling sampling, const std::vector<float> &logits,
                                         int64_t rows, int64_t V, int64_t first_position = 1)
{
    std::vector<int64_t> position;
    std::vector<int32_t> id((size_t)rows);
    for (int64_t i = 0; i < rows; i++) position.push_back(1000 * i + first_position);
    device_buffer<float> device_logits(logits);
    device_buffer<int32_t> device_id((size_t)rows);
    check_ok(b.cpu->sample(b.cpu, sampling, logits.data(), rows, V, position.data(), id.data()));
    check_ok(b.cuda->sample(b.cuda, sampling, device_logits.data(), rows, V, position.data(), device_id.data()));
    assert_true(device_id.download() == id);
    return id;
}

/* Normal logits as a model's, and rows where nearly all or all are equal, with zeros of both signs. */
static std::vector<float> make_logits(int64_t rows, int64_t V)
{
    std::vector<float> logits((size_t)(rows * V));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t v = 0; v < V; v++) {
            const uint64_t at = (uint64_t)(i * V + v);
            float z = 4.0f * (uniform_value(1, at) + uniform_value(2, at) + uniform_value(3, at));
            if (i % 3 == 1) z = std::floor(z / 4) * 0.5f; /* some twenty values */
            if (i % 3 == 2) z = v % 5 < 3 ? 0.0f : -0.0f;
            logits[(size_t)at] = z;
        }
    return logits;
}

static void the_token_is_the_cpu_backends(void **)
{
    backends b;
    for (int64_t V : vocabularies) {
        const int64_t rows = V < 2000 ? 12 : 3;
        const std::vector<float> logits = make_logits(rows, V);
        for (const nib_sampling &sampling : samplings) {
            const std::vector<int32_t> id = choose_alike(b, sampling, logits, rows, V);
            for (int32_t chosen : id) assert_in_range(chosen, 0, V - 1);
        }
    }
}

static void greedy_and_one_candidate_take_the_first_of_the_largest(void **)
{
    backends b;
    for (int64_t V : vocabularies) {
        std::vector<float> logits((size_t)V, -2.5f);
        const int64_t first = V / 3;
        for (int64_t v = first; v < V; v += 2) logits[(size_t)v] = 1.5f;
        for (nib_sampling sampling : {samplings[0], samplings[2], samplings[5]})
            assert_int_equal(choose_alike(b, sampling, logits, 1, V)[0], first);
    }
}

/* Tokens that weigh 1 beside one of 2^44: at this position the random number is one of the few, 2^-27 of all, that
 * reach beyond the heavy one, by 39656. What is a bit further below weighs nothing. */
static void the_least_weight_counts(void **)
{
    backends b;
    const nib_sampling sampling = {1.44269504088896340736, 1.0, 0, 3}; /* weights are powers of 2 */
    std::vector<float> logits(1 << 17, 0.0f);
    logits[0] = NIB_SAMPLE_WEIGHT_BITS;
    assert_int_equal(choose_alike(b, sampling, logits, 1, (int64_t)logits.size(), 28196538)[0], 39657);
    for (size_t v = 1; v < logits.size(); v++) logits[v] = -0x1p-18f;
    assert_int_equal(choose_alike(b, sampling, logits, 1, (int64_t)logits.size(), 28196538)[0], 0);
}

/* Wherever it stands, and in its own row alone. */
static void a_logit_that_is_no_number_is_told(void **)
{
    backends b;
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY})
        for (int64_t V : {1, 31, 49152})
            for (int64_t at : {int64_t{0}, V / 2, V - 1})
                for (nib_sampling sampling : {samplings[0], samplings[3]}) {
                    std::vector<float> logits = make_logits(2, V);
                    logits[(size_t)(V + at)] = bad;
                    const std::vector<int32_t> id = choose_alike(b, sampling, logits, 2, V);
                    assert_true(id[0] >= 0 && id[1] == -1);
                }
}

static void what_is_too_large_is_refused(void **)
{
    backends b;
    const int64_t position = 0;
    device_buffer<int32_t> id(1);
    for (int64_t V : {int64_t{0}, int64_t{NIB_SAMPLE_VOCABULARY} + 1})
        assert_int_equal(b.cuda->sample(b.cuda, samplings[0], nullptr, 1, V, &position, id.data()), NIB_ERROR_SHAPE);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_token_is_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(greedy_and_one_candidate_take_the_first_of_the_largest, reset_emulator),
        cmocka_unit_test_setup(the_least_weight_counts, reset_emulator),
        cmocka_unit_test_setup(a_logit_that_is_no_number_is_told, reset_emulator),
        cmocka_unit_test_setup(what_is_too_large_is_refused, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
