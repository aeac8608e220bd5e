/* Packing against a checker that knows only the visibility rule of the layout, k <= q && q < end[k]. It rebuilds what
 * each target sees and compares that with the row, and counts every supervised token once. */
#include "check.h"

#include "base/random.h"
#include "data/pack.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 64, MAX_LENGTH = 64 };

typedef struct {
    int32_t ids[MAX_ROWS][MAX_LENGTH];
    uint8_t supervised[MAX_ROWS][MAX_LENGTH];
    nib_row row[MAX_ROWS];
    int count;
} row_set;

static void add_row(row_set *set, const int32_t *ids, int length, int supervised_from)
{
    int r = set->count++;
    for (int p = 0; p < length; p++) {
        set->ids[r][p] = ids[p];
        set->supervised[r][p] = p >= supervised_from;
    }
    set->row[r] = (nib_row){set->ids[r], set->supervised[r], length, (float)(r % 3) * 0.5f + 0.5f};
}

static void check_micro_batch(const row_set *set, const nib_micro_batch *b, bool seen[MAX_ROWS][MAX_LENGTH])
{
    for (int64_t t = 0; t < b->T; t++) assert_true(b->end[t] > t && b->end[t] <= b->T);
    for (int64_t n = 0; n < b->N; n++) {
        int32_t q = b->target_row[n], sample = b->target_sample[n], p = b->target_position[n];
        assert_in_range(sample, 0, set->count - 1);
        const nib_row *row = &set->row[sample];
        assert_true(p > 0 && p < row->length && row->supervised[p]);
        assert_false(seen[sample][p]);
        seen[sample][p] = true;
        if (n > 0) assert_true(b->target_row[n - 1] <= q);
        assert_int_equal(b->target_label[n], row->ids[p]);
        assert_true(b->target_weight[n] == row->weight);
        int32_t visible = 0;
        for (int32_t k = 0; k < b->T; k++) {
            if (!(k <= q && q < b->end[k])) continue;
            assert_true(visible < p);
            assert_int_equal(b->id[k], row->ids[visible]);
            assert_int_equal(b->position[k], visible);
            visible++;
        }
        assert_int_equal(visible, p);
    }
}

/* Packs, checks everything that must hold for any options, and returns the computed tokens. */
static int64_t check_pack(const row_set *set, nib_pack_options options)
{
    static bool seen[MAX_ROWS][MAX_LENGTH];
    nib_pack pack;
    int64_t supervised = 0, tokens = 0, computed = 0;
    double weight = 0;
    assert_int_equal(nib_pack_step(set->row, set->count, options, &pack), NIB_OK);
    memset(seen, 0, sizeof seen);
    assert_int_equal(pack.slots, options.slots);
    assert_int_equal(pack.slot_begin[0], 0);
    assert_int_equal(pack.slot_begin[options.slots], pack.micro_batches);
    for (int s = 0; s < options.slots; s++) assert_true(pack.slot_begin[s] <= pack.slot_begin[s + 1]);
    int longest = 0;
    for (int r = 0; r < set->count; r++)
        if (set->row[r].length > longest) longest = set->row[r].length;
    for (int b = 0; b < pack.micro_batches; b++) {
        check_micro_batch(set, &pack.micro_batch[b], seen);
        assert_true(pack.micro_batch[b].T <= options.micro_batch_tokens || pack.micro_batch[b].T <= longest);
        computed += pack.micro_batch[b].T;
    }
    for (int r = 0; r < set->count; r++) {
        tokens += set->row[r].length;
        for (int p = 1; p < set->row[r].length; p++) {
            assert_int_equal(seen[r][p], set->row[r].supervised[p]);
            supervised += set->row[r].supervised[p];
            weight += set->row[r].supervised[p] * (double)set->row[r].weight;
        }
    }
    assert_int_equal(pack.supervised_tokens, supervised);
    assert_true(pack.supervised_weight == weight); /* halves: exact in any order */
    assert_int_equal(pack.row_tokens, tokens);
    assert_int_equal(pack.computed_tokens, computed);
    nib_pack_free(&pack);
    return computed;
}

/* Distinct prefixes of all rows, counted pair by pair: the size of the tree by its definition. */
static int64_t distinct_prefixes(const row_set *set)
{
    int64_t n = 0;
    for (int r = 0; r < set->count; r++)
        for (int length = 1; length <= set->row[r].length; length++) {
            bool found = false;
            for (int s = 0; s < r && !found; s++)
                found = set->row[s].length >= length &&
                        memcmp(set->ids[s], set->ids[r], (size_t)length * sizeof(int32_t)) == 0;
            n += !found;
        }
    return n;
}

static const nib_pack_options one_tree = {
    .slots = 1, .micro_batch_tokens = 1 << 20, .share_prefixes = true, .pack = true};

static void check_all_options(const row_set *set)
{
    int64_t tokens = 0;
    for (int r = 0; r < set->count; r++) tokens += set->row[r].length;
    assert_int_equal(check_pack(set, one_tree), distinct_prefixes(set));
    for (int slots = 1; slots <= 5; slots++)
        for (int limit = 1; limit <= 300; limit = limit * 3 + 1)
            for (int mode = 0; mode < 4; mode++) {
                nib_pack_options o = {slots, limit, (mode & 1) != 0, (mode & 2) != 0, mode * 7};
                int64_t computed = check_pack(set, o);
                assert_true(computed <= tokens);
                if (!o.share_prefixes || !o.pack) assert_int_equal(computed, tokens);
            }
}

static void a_known_tree_is_laid_out_as_by_hand(void **state)
{
    (void)state;
    row_set set = {0};
    add_row(&set, (int32_t[]){7, 8, 9}, 3, 1);
    add_row(&set, (int32_t[]){1, 2}, 2, 1);
    add_row(&set, (int32_t[]){7, 8, 5, 6}, 4, 2);
    add_row(&set, (int32_t[]){7, 8}, 2, 1);
    static const int32_t id[] = {7, 8, 9, 5, 6, 1, 2}, position[] = {0, 1, 2, 2, 3, 0, 1},
                         end[] = {5, 5, 3, 5, 5, 7, 7};
    static const int32_t target_row[] = {0, 0, 1, 1, 3, 5}, target_label[] = {8, 8, 9, 5, 6, 2};
    nib_pack pack;
    assert_int_equal(nib_pack_step(set.row, set.count, one_tree, &pack), NIB_OK);
    assert_int_equal(pack.micro_batches, 1);
    assert_int_equal(pack.micro_batch[0].T, 7);
    assert_int_equal(pack.micro_batch[0].N, 6);
    assert_memory_equal(pack.micro_batch[0].id, id, sizeof id);
    assert_memory_equal(pack.micro_batch[0].position, position, sizeof position);
    assert_memory_equal(pack.micro_batch[0].end, end, sizeof end);
    assert_memory_equal(pack.micro_batch[0].target_row, target_row, sizeof target_row);
    assert_memory_equal(pack.micro_batch[0].target_label, target_label, sizeof target_label);
    nib_pack_free(&pack);
}

static void prefix_rows_and_equal_rows(void **state)
{
    (void)state;
    row_set set = {0};
    add_row(&set, (int32_t[]){4, 5, 6, 7, 8}, 5, 3);
    add_row(&set, (int32_t[]){4, 5, 6}, 3, 1);
    add_row(&set, (int32_t[]){4, 5, 6}, 3, 2);
    add_row(&set, (int32_t[]){4, 5, 6, 7, 9}, 5, 1); /* branches at the last token */
    add_row(&set, (int32_t[]){3, 5, 6, 7, 9}, 5, 1); /* and at the first */
    add_row(&set, (int32_t[]){4}, 1, 0);
    add_row(&set, NULL, 0, 0);
    check_all_options(&set);
}

/* Rows over a small alphabet share prefixes at every depth by chance. */
static void random_rows(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        row_set set = {0};
        uint32_t random[4];
        nib_philox(11, seed, 0, random);
        int count = 1 + (int)(random[0] % 24), alphabet = 1 + (int)(random[1] % 3);
        for (int r = 0; r < count; r++) {
            int32_t ids[MAX_LENGTH];
            nib_philox(12, seed, (uint64_t)r, random);
            int length = 1 + (int)(random[0] % 20), from = (int)(random[1] % 8);
            for (int p = 0; p < length; p++) {
                nib_philox(13, seed, (uint64_t)(r * MAX_LENGTH + p), random);
                ids[p] = (int32_t)(random[0] % (unsigned)alphabet);
            }
            add_row(&set, ids, length, from);
        }
        check_all_options(&set);
    }
}

/* A document, questions on it, answers to each, variants of each answer: trees of depth 1 to 4. */
static void trees_of_depth_one_to_four(void **state)
{
    (void)state;
    for (int depth = 1; depth <= 4; depth++) {
        row_set set = {0};
        for (int leaf = 0; leaf < 1 << depth; leaf++) {
            int32_t ids[MAX_LENGTH];
            int length = 0;
            for (int p = 0; p < 6; p++) ids[length++] = 100 + p;
            for (int level = depth - 1; level >= 0; level--)
                for (int p = 0; p < 2 + level; p++) ids[length++] = 10 * level + 2 * p + (leaf >> level & 1);
            add_row(&set, ids, length, 4);
        }
        check_all_options(&set);
    }
}

static void slots_have_about_equal_cost(void **state)
{
    (void)state;
    row_set set = {0};
    for (int r = 0; r < 60; r++) {
        int32_t ids[MAX_LENGTH];
        int length = 5 + r * 7 % 13;
        for (int p = 0; p < length; p++) ids[p] = p < 4 ? r / 20 : r;
        add_row(&set, ids, length, 1);
    }
    nib_pack pack;
    nib_pack_options options = {4, 64, true, true, 0};
    assert_int_equal(nib_pack_step(set.row, set.count, options, &pack), NIB_OK);
    int64_t least = INT64_MAX, most = 0;
    for (int s = 0; s < 4; s++) {
        int64_t tokens = 0;
        for (int b = pack.slot_begin[s]; b < pack.slot_begin[s + 1]; b++) tokens += pack.micro_batch[b].T;
        if (tokens < least) least = tokens;
        if (tokens > most) most = tokens;
    }
    /* Cuts fall between rows of at most 17 tokens; the last slot takes what the others leave of up to a row each. */
    assert_true(most - least <= 4 * 17);
    nib_pack_free(&pack);
}

/* The costliest slot in units of a mean one, counted from the packed arrays: `keys` for each token, and each key it
 * sees. */
static double spread(const row_set *set, nib_pack_options options, int64_t keys)
{
    nib_pack pack;
    double all = 0, most = 0;
    assert_int_equal(nib_pack_step(set->row, set->count, options, &pack), NIB_OK);
    for (int s = 0; s < options.slots; s++) {
        double cost = 0;
        for (int b = pack.slot_begin[s]; b < pack.slot_begin[s + 1]; b++) {
            const nib_micro_batch *batch = &pack.micro_batch[b];
            cost += (double)(batch->T * keys);
            for (int32_t k = 0; k < batch->T; k++) cost += batch->end[k] - k; /* queries that see key k */
        }
        all += cost;
        if (cost > most) most = cost;
    }
    nib_pack_free(&pack);
    return most / all * options.slots;
}

/* Where a token's own cost is small beside its attention, as in long documents, slots of equal tokens are not of equal
 * cost: few long rows against many short ones. */
static void slots_are_balanced_by_cost(void **state)
{
    (void)state;
    double by_tokens = 0, by_cost = 0;
    int better = 0;
    for (uint32_t round = 0; round < 200; round++) {
        row_set set = {0};
        for (int r = 0; r < 60; r++) {
            int32_t ids[MAX_LENGTH];
            uint32_t random[4];
            nib_philox(round, 7, (uint64_t)r, random);
            int length = 3 + (int)(random[0] % 62) * (int)(random[2] % 62) / 61;
            for (int p = 0; p < length; p++) ids[p] = p < 2 ? 1 : (int32_t)(random[1] >> 4);
            add_row(&set, ids, length, 1);
        }
        int slots = 2 + (int)(round % 7);
        nib_pack_options options = {
            .slots = slots, .micro_batch_tokens = 1 << 20, .share_prefixes = round % 2 == 0, .pack = true};
        double plain = spread(&set, options, 5);
        options.token_keys = 5;
        double balanced = spread(&set, options, 5);
        assert_true(balanced < plain + 1e-9); /* the most costly slot is as cheap as cuts between rows allow */
        by_tokens += plain / 200;
        by_cost += balanced / 200;
        better += balanced < plain - 1e-9;
    }
    assert_true(better >= 100 && by_cost < by_tokens);
    print_message("costliest slot over the mean: %.3f by tokens, %.3f by cost\n", by_tokens, by_cost);
}

static void an_empty_step_is_an_empty_pack(void **state)
{
    (void)state;
    nib_pack pack;
    assert_int_equal(nib_pack_step(NULL, 0, one_tree, &pack), NIB_OK);
    assert_int_equal(pack.micro_batches, 0);
    assert_int_equal(pack.supervised_tokens, 0);
    nib_pack_free(&pack);
    assert_int_equal(nib_pack_step(NULL, 0, (nib_pack_options){0, 1, true, true, 0}, &pack), NIB_ERROR_INTERNAL);
}

/* 4,096 chained rows, each a prefix of the next: the deepest tree that many rows can make. */
static void a_deep_chain_of_prefixes(void **state)
{
    (void)state;
    enum { ROWS = 4096 };
    int32_t *ids = calloc(ROWS, sizeof *ids);
    uint8_t *supervised = calloc(ROWS, 1);
    nib_row *rows = calloc(ROWS, sizeof *rows);
    nib_pack pack;
    supervised[1] = 1;
    for (int r = 0; r < ROWS; r++) rows[r] = (nib_row){ids, supervised, ROWS - r, 1};
    assert_int_equal(nib_pack_step(rows, ROWS, one_tree, &pack), NIB_OK);
    assert_int_equal(pack.computed_tokens, ROWS);
    assert_int_equal(pack.supervised_tokens, ROWS - 1); /* all but the row of one token */
    nib_pack_free(&pack);
    free(rows);
    free(supervised);
    free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_known_tree_is_laid_out_as_by_hand),
        cmocka_unit_test(prefix_rows_and_equal_rows),
        cmocka_unit_test(random_rows),
        cmocka_unit_test(trees_of_depth_one_to_four),
        cmocka_unit_test(slots_have_about_equal_cost),
        cmocka_unit_test(slots_are_balanced_by_cost),
        cmocka_unit_test(an_empty_step_is_an_empty_pack),
        cmocka_unit_test(a_deep_chain_of_prefixes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
