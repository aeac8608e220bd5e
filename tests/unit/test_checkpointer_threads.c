/* The thread that writes checkpoints beside the training thread, for ThreadSanitizer: tensors change, and are read back
 * by the training thread, while a checkpoint is being written, and what is on disk is the state at the boundary. */
#include "check.h"
#include "checkpoint_memory.h"

#include "base/file.h"
#include "checkpoint/checkpoint.h"

#include <stdlib.h>

enum { N = 20000, STEPS = 12 };

static void training_goes_on_while_a_checkpoint_is_written(void **state)
{
    (void)state;
    char folder[] = "/tmp/nibble-checkpointer-XXXXXX";
    static float master[N], first[N], second[N];
    nib_checkpoint_tensor tensors[2] = {{"a", 1, N / 2, false, {master, first, second}},
                                        {"b", N / 2, 1, false, {master + N / 2, first + N / 2, second + N / 2}}};
    nib_checkpoint_state now = {.best_step = -1}, read;
    nib_checkpointer *writer;
    int64_t step;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(nib_checkpointer_create(folder, 1, &writer), NIB_OK);
    for (now.step = 1; now.step <= STEPS; now.step++) {
        for (int i = 0; i < N; i++) master[i] = first[i] = second[i] = (float)now.step;
        now.cursor = 10 * now.step;
        assert_int_equal(nib_checkpointer_submit(writer, carrier_of(tensors), &now, tensors, now.step % 2 + 1), NIB_OK);
    }
    for (int i = 0; i < N; i++) master[i] = -1;
    now.cursor = -1;
    assert_int_equal(nib_checkpointer_wait(writer), NIB_OK);
    nib_checkpointer_free(writer);
    assert_int_equal(nib_checkpoint_latest(folder, &step, &read), NIB_OK);
    assert_int_equal(step, STEPS);
    assert_int_equal(read.cursor, 10 * STEPS);
    assert_int_equal(nib_checkpoint_read(folder, step, carrier_of(tensors), tensors, STEPS % 2 + 1), NIB_OK);
    for (int i = 0; i < N / 2; i++) assert_true(master[i] == STEPS && first[i] == STEPS && second[i] == STEPS);
    assert_int_equal(nib_file_remove_tree(folder), NIB_OK);
}

/* Freeing is waiting: nothing of the writer's is gone before it has written. */
static void a_writer_can_be_freed_at_work(void **state)
{
    (void)state;
    char folder[] = "/tmp/nibble-checkpointer-XXXXXX";
    float value[4] = {1, 2, 3, 4};
    nib_checkpoint_tensor tensor = {"a", 2, 2, false, {value, value, value}};
    nib_checkpoint_state now = {.step = 5, .best_step = -1}, read;
    nib_checkpointer *writer;
    int64_t step;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(nib_checkpointer_create(folder, 1, &writer), NIB_OK);
    assert_int_equal(nib_checkpointer_submit(writer, carrier_of(&tensor), &now, &tensor, 1), NIB_OK);
    nib_checkpointer_free(writer);
    assert_int_equal(nib_checkpoint_latest(folder, &step, &read), NIB_OK);
    assert_int_equal(step, 5);
    assert_int_equal(nib_file_remove_tree(folder), NIB_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_goes_on_while_a_checkpoint_is_written),
        cmocka_unit_test(a_writer_can_be_freed_at_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
