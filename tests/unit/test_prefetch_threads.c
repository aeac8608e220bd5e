/* Steps that a thread makes ahead are those that are made one by one, in their order; it may be ended at any time, and
 * its errors come out where its steps would. Run under ThreadSanitizer. */
#include "check.h"

#include "base/file.h"
#include "data/prefetch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 200, BATCH = 7, SAMPLES = 450 };

static char folder[] = "/tmp/nib_prefetch_XXXXXX";
static char rows_path[64];
static nib_dataset *data;
static nib_mixture mixture;

static int set_up(void **state)
{
    (void)state;
    nib_buffer text = {0};
    unsigned random = 1;
    if (mkdtemp(folder) == NULL) return -1;
    snprintf(rows_path, sizeof rows_path, "%s/rows.jsonl", folder);
    for (int i = 0; i < ROWS; i++) {
        nib_buffer ids = {0};
        int length = 3 + i % 11;
        for (int k = 0; k < length; k++) {
            random = random * 1103515245u + 12345u;
            nib_buffer_format(&ids, k == 0 ? "%u" : ",%u", (random >> 16) % 90);
        }
        nib_buffer_format(&text, "{\"input_ids\":[%s],\"labels\":[%s]}\n", ids.data, ids.data);
        nib_buffer_free(&ids);
    }
    if (nib_file_replace(rows_path, text.data, text.length) != NIB_OK) return -1;
    nib_buffer_free(&text);
    const nib_data_source source[] = {{rows_path, NULL, 1}, {rows_path, NULL, 3}};
    const nib_data_options options = {.max_length = 64, .bos_token = "", .eos_token = ""};
    if (nib_dataset_load(source, 2, &options, 100, &data) != NIB_OK) return -1;
    return nib_dataset_mixture(data, 5, true, &mixture) == NIB_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    nib_mixture_free(&mixture);
    nib_dataset_free(data);
    return nib_file_remove_tree(folder) == NIB_OK ? 0 : -1;
}

static nib_step_plan make_plan(void)
{
    return (nib_step_plan){.data = data,
                           .mixture = &mixture,
                           .pack = {.slots = 2, .micro_batch_tokens = 32, .share_prefixes = true, .pack = true},
                           .samples = SAMPLES,
                           .batch_size = BATCH};
}

static void assert_same(const nib_step_data *a, const nib_step_data *b)
{
    assert_int_equal(a->cursor, b->cursor);
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->samples, b->samples, (size_t)a->count * sizeof *a->samples);
    assert_int_equal(a->pack.micro_batches, b->pack.micro_batches);
    for (int m = 0; m < a->pack.micro_batches; m++) {
        assert_int_equal(a->pack.micro_batch[m].T, b->pack.micro_batch[m].T);
        assert_memory_equal(a->pack.micro_batch[m].id, b->pack.micro_batch[m].id, (size_t)a->pack.micro_batch[m].T * 4);
    }
}

static void steps_come_in_order(void **state)
{
    (void)state;
    static nib_step_data want[SAMPLES / BATCH + 1];
    nib_step_plan plan = make_plan();
    nib_prefetch *prefetch;
    int steps = 0, from[] = {0, 1, 17};
    for (int64_t cursor = 0; cursor < SAMPLES; cursor += want[steps++].count)
        assert_int_equal(nib_step_data_make(&plan, cursor, &want[steps]), NIB_OK);
    assert_int_equal(steps, SAMPLES / BATCH + 1);
    for (size_t k = 0; k < sizeof from / sizeof *from; k++) {
        assert_int_equal(nib_prefetch_create(&plan, want[from[k]].cursor, &prefetch), NIB_OK);
        for (int i = from[k]; i < steps; i++) {
            nib_step_data got;
            double waited = -1;
            if (nib_prefetch_take(prefetch, want[i].cursor, &got, &waited) != NIB_OK)
                fail_msg("%s", nib_error_message());
            assert_same(&got, &want[i]);
            assert_true(waited >= 0);
            nib_step_data_free(&got);
        }
        nib_prefetch_free(prefetch);
    }
    for (int i = 0; i < steps; i++) nib_step_data_free(&want[i]);
}

static void it_ends_at_any_time(void **state)
{
    (void)state;
    nib_step_plan plan = make_plan();
    for (int taken = 0; taken < 12; taken++) {
        nib_prefetch *prefetch;
        assert_int_equal(nib_prefetch_create(&plan, 0, &prefetch), NIB_OK);
        for (int i = 0; i < taken; i++) {
            nib_step_data got;
            double waited;
            assert_int_equal(nib_prefetch_take(prefetch, (int64_t)i * BATCH, &got, &waited), NIB_OK);
            nib_step_data_free(&got);
        }
        nib_prefetch_free(prefetch);
    }
}

static void another_place_than_the_run_is_refused(void **state)
{
    (void)state;
    nib_step_plan plan = make_plan();
    nib_prefetch *prefetch;
    nib_step_data got;
    double waited;
    assert_int_equal(nib_prefetch_create(&plan, 0, &prefetch), NIB_OK);
    assert_int_equal(nib_prefetch_take(prefetch, BATCH, &got, &waited), NIB_ERROR_INTERNAL);
    assert_int_equal(nib_prefetch_take(prefetch, SAMPLES, &got, &waited), NIB_ERROR_INTERNAL);
    nib_prefetch_free(prefetch);
}

/* A sample whose tokens are not known. */
static nib_status fail_to_count(const void *ignored, int64_t index, int64_t *supervised)
{
    (void)ignored;
    *supervised = 1;
    return index == 20 ? NIB_FAIL(NIB_ERROR_DATA, "sample 20 cannot be read") : NIB_OK;
}

static void an_error_comes_out_in_its_place(void **state)
{
    (void)state;
    nib_step_plan plan = make_plan();
    nib_mixture failing;
    nib_prefetch *prefetch;
    nib_step_data got;
    double waited;
    const nib_mixture_source source[] = {{ROWS, ROWS, 1}};
    assert_int_equal(nib_mixture_build(source, 1, 1, false, fail_to_count, NULL, &failing), NIB_OK);
    plan.mixture = &failing;
    assert_int_equal(nib_prefetch_create(&plan, 0, &prefetch), NIB_OK);
    for (int64_t cursor = 0; cursor < 14; cursor += BATCH) { /* samples 0 to 13 */
        assert_int_equal(nib_prefetch_take(prefetch, cursor, &got, &waited), NIB_OK);
        nib_step_data_free(&got);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nib_prefetch_take(prefetch, 14, &got, &waited), NIB_ERROR_DATA);
        assert_string_equal(nib_error_message(), "sample 20 cannot be read");
    }
    nib_prefetch_free(prefetch);
    nib_mixture_free(&failing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_come_in_order),
        cmocka_unit_test(it_ends_at_any_time),
        cmocka_unit_test(another_place_than_the_run_is_refused),
        cmocka_unit_test(an_error_comes_out_in_its_place),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
