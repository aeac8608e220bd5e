/* Schedules, the tree of gradient slots, checkpoints: each against values that this code did not make. */
#include "check.h"
#include "checkpoint_memory.h"

#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "cpu/backend.h"
#include "optim/gradient_tree.h"
#include "optim/schedule.h"
#include "tensorboard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void schedules_meet_their_formulas(void **state)
{
    (void)state;
    /* W = 2, S = 8: cos(pi k / 6) is 1, sqrt(3)/2, 1/2, 0, ... by geometry. Tolerance: a few roundings of a double. */
    static const double cosine[] = {0.5, 1, 1, 0.93301270189221941, 0.75, 0.5, 0.25, 0.066987298107780677};
    static const double linear[] = {0.5, 1, 1, 5.0 / 6, 4.0 / 6, 0.5, 2.0 / 6, 1.0 / 6};
    nib_schedule c = {NIB_SCHEDULER_COSINE, 1, 2, 8}, l = {NIB_SCHEDULER_LINEAR, 1, 2, 8};
    nib_schedule flat = {NIB_SCHEDULER_CONSTANT, 3, 0, 8};
    for (int s = 0; s < 8; s++) {
        assert_true(fabs(nib_schedule_rate(&c, s) - cosine[s]) < 1e-15);
        assert_true(fabs(nib_schedule_rate(&l, s) - linear[s]) < 1e-15);
        assert_true(nib_schedule_rate(&flat, s) == 3);
    }
}

/* Sum of slots first .. first + count of the tree over an aligned power-of-two block, by recursion. */
static float tree_sum(const float *slot, int first, int count, int slots)
{
    if (first >= slots) return 0;
    if (count == 1) return slot[first];
    float left = tree_sum(slot, first, count / 2, slots);
    return first + count / 2 >= slots ? left : left + tree_sum(slot, first + count / 2, count / 2, slots);
}

static void slots_are_summed_as_a_balanced_tree(void **state)
{
    (void)state;
    nib_ops *ops;
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    for (int slots = 1; slots <= 17; slots++) {
        float value[17], gradient[3];
        nib_gradient_tree tree;
        assert_int_equal(nib_gradient_tree_create(ops, 3, slots, (nib_slot_range){0, slots}, &tree), NIB_OK);
        for (int s = 0; s < slots; s++) value[s] = (float)sin(s + 1) * powf(10, (float)(s % 5)); /* order matters */
        memset(gradient, 0, sizeof gradient);
        for (int s = 0; s < slots; s++) {
            for (int i = 0; i < 3; i++) {
                assert_true(gradient[i] == 0);
                gradient[i] += value[s];
            }
            assert_int_equal(nib_gradient_tree_add(&tree, s, gradient), NIB_OK);
        }
        float want = tree_sum(value, 0, 32, slots);
        for (int i = 0; i < 3; i++) assert_true(gradient[i] == want);
        nib_gradient_tree_free(&tree);
    }
    nib_cpu_backend_free(ops);
}

/* However slots are spread over ranks, pushing every rank's nodes gives the additions of the tree. */
static void ranks_leave_nodes_of_one_tree(void **state)
{
    (void)state;
    float slot[37];
    for (int slots = 1; slots <= 37; slots++) {
        for (int s = 0; s < slots; s++) slot[s] = (float)sin(s + 1) * powf(10, (float)(s % 5));
        float want = tree_sum(slot, 0, 64, slots);
        for (int ranks = 1; ranks <= slots; ranks++) {
            nib_slot_order all = nib_slot_order_begin(slots);
            float held[NIB_SLOT_NODES];
            int most, next = 0;
            for (int r = 0; r < ranks; r++) {
                nib_slot_range range = nib_slot_range_of_rank(slots, ranks, r);
                nib_slot_order own = nib_slot_order_of_range(slots, range, &most);
                assert_true(range.first == next && range.end > range.first);
                next = range.end;
                for (int i = 0; i < own.depth; i++) {
                    nib_slot_node node = own.node[i];
                    float sum = tree_sum(slot, node.index << node.level, 1 << node.level, slots);
                    int before = all.depth, joined = nib_slot_order_push(&all, node);
                    for (int k = 1; k <= joined; k++) sum += held[before - k];
                    held[all.depth - 1] = sum;
                }
            }
            assert_int_equal(next, slots);
            assert_int_equal(all.depth, 1);
            assert_true(held[0] == want);
        }
    }
}

typedef struct {
    char folder[64];
    float master[6], first[6], second[6];
    nib_checkpoint_tensor tensor;
    nib_checkpoint_state state;
} fixture;

static void begin(fixture *f)
{
    *f = (fixture){.folder = "/tmp/nibble-checkpoint-XXXXXX"};
    assert_non_null(mkdtemp(f->folder));
    f->tensor = (nib_checkpoint_tensor){"w", 2, 3, false, {f->master, f->first, f->second}};
    f->state = (nib_checkpoint_state){.step = 7, .cursor = 1LL << 40, .seed = 9007199254740991, .best_step = -1};
    f->state.best_loss = 0.1;
    strcpy(f->state.data_hash, "abc");
    strcpy(f->state.evaluation_hash, "def");
    for (int i = 0; i < 6; i++) f->master[i] = (float)i + 0.1f, f->first[i] = -0.0f, f->second[i] = 1e-42f;
}

static void end(fixture *f) { assert_int_equal(nib_file_remove_tree(f->folder), NIB_OK); }

static void what_is_written_is_read_and_old_ones_are_pruned(void **unused)
{
    (void)unused;
    fixture f;
    nib_checkpointer *writer;
    nib_checkpoint_state read;
    int64_t step;
    begin(&f);
    float want[6];
    memcpy(want, f.master, sizeof want);
    assert_int_equal(nib_checkpointer_create(f.folder, 2, &writer), NIB_OK);
    for (f.state.step = 7; f.state.step <= 10; f.state.step++) {
        assert_int_equal(nib_checkpointer_submit(writer, carrier_of(&f.tensor), &f.state, &f.tensor, 1), NIB_OK);
        f.master[0] = 99; /* the copy was made at the boundary: later changes are not in it */
        if (f.state.step == 10) break;
        assert_int_equal(nib_checkpointer_wait(writer), NIB_OK);
        f.master[0] = want[0];
    }
    assert_int_equal(nib_checkpointer_wait(writer), NIB_OK);
    nib_checkpointer_free(writer);
    memset(f.master, 0, sizeof f.master);
    assert_int_equal(nib_checkpoint_latest(f.folder, &step, &read), NIB_OK);
    assert_int_equal(step, 10);
    assert_true(read.cursor == 1LL << 40 && read.seed == 9007199254740991 && read.best_step == -1);
    assert_true(read.best_loss == 0.1 && !read.finished);
    assert_string_equal(read.data_hash, "abc");
    assert_string_equal(read.evaluation_hash, "def");
    assert_int_equal(nib_checkpoint_read(f.folder, step, carrier_of(&f.tensor), &f.tensor, 1), NIB_OK);
    assert_memory_equal(f.master, want, sizeof want);
    assert_true(signbit(f.first[0]) && f.second[0] == 1e-42f);
    char old[128];
    snprintf(old, sizeof old, "%s/step-8", f.folder);
    assert_false(nib_file_exists(old));
    f.tensor.rows = 3, f.tensor.columns = 2;
    assert_int_equal(nib_checkpoint_read(f.folder, step, carrier_of(&f.tensor), &f.tensor, 1), NIB_ERROR_DATA);
    end(&f);
}

/* Moments of 8 bits, of a block and a part, with their absmax; read as 32 bits, or the other way, they are refused
 * before anything is stored. */
static void moments_of_8_bits_are_kept(void **unused)
{
    (void)unused;
    enum { N = 300, BLOCKS = 2 };
    fixture f;
    float master[N], absmax[2][BLOCKS] = {{1.5f, -0.0f}, {1e-42f, 3.0f}}, absmax_before[2][BLOCKS];
    uint8_t code[2][N], code_before[2][N];
    begin(&f);
    for (int i = 0; i < N; i++) master[i] = (float)i, code[0][i] = (uint8_t)i, code[1][i] = (uint8_t)(255 - i % 256);
    memcpy(code_before, code, sizeof code);
    memcpy(absmax_before, absmax, sizeof absmax);
    nib_checkpoint_tensor both[] = {f.tensor, {"v", 3, 100, true, {master, code[0], code[1], absmax[0], absmax[1]}}};
    nib_checkpointer *writer;
    assert_int_equal(nib_checkpointer_create(f.folder, 2, &writer), NIB_OK);
    assert_int_equal(nib_checkpointer_submit(writer, carrier_of(both), &f.state, both, 2), NIB_OK);
    assert_int_equal(nib_checkpointer_wait(writer), NIB_OK);
    nib_checkpointer_free(writer);
    memset(code, 0, sizeof code);
    memset(absmax, 0, sizeof absmax);
    both[0].moments_8bit = true;
    assert_int_equal(nib_checkpoint_read(f.folder, 7, carrier_of(both), both, 2), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "\"first_moment.w\" is F32, expected U8"));
    both[0].moments_8bit = both[1].moments_8bit = false;
    assert_int_equal(nib_checkpoint_read(f.folder, 7, carrier_of(both), both, 2), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "\"first_moment.v\" is U8, expected F32"));
    assert_int_equal(code[0][5] + code[1][5], 0);
    both[1].moments_8bit = true;
    assert_int_equal(nib_checkpoint_read(f.folder, 7, carrier_of(both), both, 2), NIB_OK);
    assert_memory_equal(code, code_before, sizeof code);
    assert_memory_equal(absmax, absmax_before, sizeof absmax);
    end(&f);
}

/* With these bytes as a file of the newest checkpoint, step 8, the one before it is taken. */
static void expect_older(const fixture *f, const char *path, const char *bytes, size_t length, size_t damaged)
{
    nib_checkpoint_state read;
    int64_t step;
    unlink(path); /* some file systems flush a file that is truncated and written again, never a new one */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(nib_checkpoint_latest(f->folder, &step, &read), NIB_OK);
    if (step != 7) fail_msg("%s, %zu bytes, bit %zu: step %lld was taken", path, length, damaged, (long long)step);
}

/* Every file of the newest checkpoint at every length, and 10,000 of its bits flipped. */
static void damage_is_never_accepted(void **unused)
{
    (void)unused;
    fixture f;
    begin(&f);
    assert_int_equal(nib_checkpoint_write(f.folder, &f.state, &f.tensor, 1), NIB_OK);
    f.state.step = 8;
    assert_int_equal(nib_checkpoint_write(f.folder, &f.state, &f.tensor, 1), NIB_OK);
    static const char *const names[] = {"state.json", "tensors.safetensors", "manifest.json"};
    for (int k = 0; k < 3; k++) {
        char path[128], *text;
        size_t length;
        snprintf(path, sizeof path, "%s/step-8/%s", f.folder, names[k]);
        assert_int_equal(nib_file_read(path, 1 << 20, &text, &length), NIB_OK);
        for (size_t n = 0; n < length - (k == 2); n++) /* the manifest's last newline means nothing */
            expect_older(&f, path, text, n, 0);
        for (size_t i = 0; i < 3334; i++) {
            const size_t bit = i * 7919 % (length * 8);
            text[bit / 8] ^= (char)(1 << bit % 8);
            expect_older(&f, path, text, length, bit);
            text[bit / 8] ^= (char)(1 << bit % 8);
        }
        assert_int_equal(nib_file_replace(path, text, length), NIB_OK);
        nib_free(text);
    }
    end(&f);
}

static void failure_of_the_writing_thread_surfaces(void **unused)
{
    (void)unused;
    fixture f;
    nib_checkpointer *writer;
    begin(&f);
    char inner[128];
    snprintf(inner, sizeof inner, "%s/checkpoints", f.folder);
    assert_int_equal(nib_checkpointer_create(inner, 2, &writer), NIB_OK);
    assert_int_equal(nib_file_remove_tree(inner), NIB_OK);
    FILE *file = fopen(inner, "wb"); /* a file where the folder was */
    assert_non_null(file);
    fclose(file);
    assert_int_equal(nib_checkpointer_submit(writer, carrier_of(&f.tensor), &f.state, &f.tensor, 1), NIB_OK);
    assert_int_equal(nib_checkpointer_submit(writer, carrier_of(&f.tensor), &f.state, &f.tensor, 1), NIB_ERROR_IO);
    assert_non_null(strstr(nib_error_message(), "older ones are intact"));
    nib_checkpointer_free(writer);
    end(&f);
}

static void events_have_the_bytes_that_tensorboard_writes(void **unused)
{
    (void)unused;
    /* RFC 3720, B.4: CRC-32C of 32 zero bytes and of 0, 1, ... 31. */
    uint8_t zeros[32] = {0}, counting[32];
    for (int i = 0; i < 32; i++) counting[i] = (uint8_t)i;
    assert_int_equal(nib_crc32c(zeros, 32), 0x8a9136aau);
    assert_int_equal(nib_crc32c(counting, 32), 0x46dd794eu);
    /* Written by the tensorboard package (2.x, RecordWriter and Event.SerializeToString). */
    static const uint8_t want[] = {0x21, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x7b, 0xec, 0xf6, 0x09,
                                   0x00, 0x00, 0x20, 0x40, 0xfc, 0x54, 0xd9, 0x41, 0x10, 0xac, 0x02, 0x2a, 0x13,
                                   0x0a, 0x11, 0x0a, 0x0a, 0x74, 0x72, 0x61, 0x69, 0x6e, 0x2f, 0x6c, 0x6f, 0x73,
                                   0x73, 0x15, 0x00, 0x00, 0x80, 0x3e, 0x0d, 0xa1, 0x2f, 0x0e};
    nib_buffer out = {0};
    nib_tensorboard_scalar(&out, 1700000000.5, 300, "train/loss", 0.25f);
    assert_int_equal(out.length, sizeof want);
    assert_memory_equal(out.data, want, sizeof want);
    nib_buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules_meet_their_formulas),
        cmocka_unit_test(slots_are_summed_as_a_balanced_tree),
        cmocka_unit_test(ranks_leave_nodes_of_one_tree),
        cmocka_unit_test(what_is_written_is_read_and_old_ones_are_pruned),
        cmocka_unit_test(moments_of_8_bits_are_kept),
        cmocka_unit_test(damage_is_never_accepted),
        cmocka_unit_test(events_have_the_bytes_that_tensorboard_writes),
        cmocka_unit_test(failure_of_the_writing_thread_surfaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
