/* Which steps are made, recorded and replayed, by a backend that only counts. */
#include "check.h"

#include "base/memory.h"
#include "model/recording.h"

#include <string.h>

struct nib_recording {
    int64_t shape;
};

static struct {
    int made, recorded, replayed, alive;
    bool recording, waits; /* waits: a step cannot be recorded */
    int64_t shape;
} did;

static nib_status begin(nib_ops *ops)
{
    (void)ops;
    did.recording = true;
    return NIB_OK;
}

static nib_status end(nib_ops *ops, nib_recording **recording)
{
    (void)ops;
    did.recording = false;
    *recording = NULL;
    if (did.waits) return NIB_OK;
    *recording = nib_calloc(1, sizeof **recording);
    (*recording)->shape = did.shape;
    did.recorded++;
    did.alive++;
    return NIB_OK;
}

static nib_status replay(nib_ops *ops, nib_recording *recording)
{
    (void)ops;
    assert_int_equal(recording->shape, did.shape);
    did.replayed++;
    return NIB_OK;
}

static void release(nib_ops *ops, nib_recording *recording)
{
    (void)ops;
    nib_free(recording);
    did.alive--;
}

static nib_status step(void *user)
{
    assert_null(user);
    if (!did.recording) did.made++;
    return NIB_OK;
}

static nib_arena scratch;
static nib_ops ops = {
    .record_begin = begin, .record_end = end, .replay = replay, .recording_free = release, .scratch = &scratch};
static nib_recordings recordings;

static void run(int64_t T, int64_t N)
{
    did.shape = 1000 * T + N;
    assert_int_equal(nib_recordings_run(&recordings, &ops, (nib_step_shape){.T = T, .N = N}, step, NULL), NIB_OK);
}

static void run_update(double max_norm)
{
    did.shape = -(int64_t)(1000 * max_norm);
    assert_int_equal(nib_recordings_run(&recordings, &ops, (nib_step_shape){.max_norm = max_norm}, step, NULL), NIB_OK);
}

static void expect(int made, int recorded, int replayed)
{
    assert_int_equal(did.made, made);
    assert_int_equal(did.recorded, recorded);
    assert_int_equal(did.replayed, replayed);
}

static int fresh(void **state)
{
    (void)state;
    nib_recordings_clear(&recordings, &ops);
    assert_int_equal(did.alive, 0);
    memset(&did, 0, sizeof did);
    return 0;
}

static void a_shape_is_made_then_recorded_then_replayed(void **state)
{
    (void)state;
    run(128, 64);
    expect(1, 0, 0);
    run(128, 64);
    expect(1, 1, 1);
    run(128, 64);
    expect(1, 1, 2);
    run(128, 128); /* another number of targets */
    expect(2, 1, 2);
    run(128, 64);
    expect(2, 1, 3);
}

static void an_update_is_recorded_for_its_norm(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) run_update(0);
    expect(1, 1, 2);
    for (int i = 0; i < 3; i++) run_update(0.5);
    expect(2, 2, 4);
    run(128, 64);
    run_update(0);
    expect(3, 2, 5);
}

static void scratch_that_moved_is_recorded_again(void **state)
{
    char blocks[2];
    (void)state;
    scratch.block = &blocks[0];
    for (int i = 0; i < 3; i++) run(128, 64);
    expect(1, 1, 2);
    scratch.block = &blocks[1];
    run(128, 64);
    expect(2, 1, 2);
    assert_int_equal(did.alive, 0);
    run(128, 64);
    expect(2, 2, 3);
    scratch.block = NULL;
}

static void the_shape_of_longest_ago_makes_room(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++)
        for (int64_t T = 1; T <= NIB_RECORDINGS; T++) run(T, 1);
    assert_int_equal(did.alive, NIB_RECORDINGS);
    run(1, 1); /* now 2 is the oldest */
    run(NIB_RECORDINGS + 1, 1);
    assert_int_equal(did.alive, NIB_RECORDINGS - 1);
    int made = did.made;
    run(1, 1);
    assert_int_equal(did.made, made);
    run(2, 1);
    assert_int_equal(did.made, made + 1);
}

static void a_step_that_waits_is_made(void **state)
{
    (void)state;
    did.waits = true;
    for (int i = 0; i < 3; i++) run(128, 64);
    expect(3, 0, 0);
    did.waits = false; /* it is not tried again */
    run(128, 64);
    expect(4, 0, 0);
}

static void a_backend_without_recordings_makes_every_step(void **state)
{
    (void)state;
    ops.record_begin = NULL;
    for (int i = 0; i < 3; i++) run(128, 64);
    expect(3, 0, 0);
    ops.record_begin = begin;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_shape_is_made_then_recorded_then_replayed, fresh),
        cmocka_unit_test_setup(an_update_is_recorded_for_its_norm, fresh),
        cmocka_unit_test_setup(scratch_that_moved_is_recorded_again, fresh),
        cmocka_unit_test_setup(the_shape_of_longest_ago_makes_room, fresh),
        cmocka_unit_test_setup(a_step_that_waits_is_made, fresh),
        cmocka_unit_test_setup(a_backend_without_recordings_makes_every_step, fresh),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fresh(NULL);
    return failed;
}
