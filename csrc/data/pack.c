/* A step is cut three times, always between rows in tree order: into slots, into micro-batches, and each micro-batch is
 * then written token by token. A cut repeats the prefix that the next row shared with the last. */
#include "data/pack.h"

#include "base/memory.h"
#include "data/prefix_order.h"

#include <string.h>

/* Rows of the step in tree order. */
typedef struct {
    const nib_row *rows;
    int64_t count;
    int64_t *order;  /* [count] */
    int32_t *shared; /* [count] tokens in common with the row before */
    int64_t token_keys;
} step_rows;

/* What row i adds to a part that already holds the row before it, or begins with it. */
typedef int64_t (*measure_of_row)(const step_rows *step, int64_t i, bool first);

static int64_t tokens_added(const step_rows *step, int64_t i, bool first)
{
    return step->rows[step->order[i]].length - (first ? 0 : step->shared[i]);
}

/* A token at depth p of the tree sees p + 1 keys. */
static int64_t cost_added(const step_rows *step, int64_t i, bool first)
{
    int64_t tokens = tokens_added(step, i, first), end = step->rows[step->order[i]].length, begin = end - tokens;
    if (step->token_keys == 0) return tokens;
    return tokens * step->token_keys + end * (end + 1) / 2 - begin * (begin + 1) / 2;
}

/* End of the longest run of rows from `begin` that measures at most `capacity`; at least one row. */
static int64_t fill(const step_rows *step, measure_of_row measure, int64_t begin, int64_t limit, int64_t capacity)
{
    int64_t end = begin + 1, used = measure(step, begin, true);
    while (end < limit && used + measure(step, end, false) <= capacity) used += measure(step, end++, false);
    return end;
}

static int64_t parts_needed(const step_rows *step, int64_t capacity)
{
    int64_t parts = 0;
    for (int64_t i = 0; i < step->count; parts++) i = fill(step, cost_added, i, step->count, capacity);
    return parts;
}

/* The least capacity with which the step fits into `slots` parts: they are then as equal as cuts between neighbours
 * allow, since dropping a row from a part never makes it cost more. */
static int64_t slot_capacity(const step_rows *step, int slots)
{
    int64_t low = 1, high = 1;
    for (int64_t i = 0; i < step->count; i++) high += cost_added(step, i, true);
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (parts_needed(step, middle) <= slots)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int64_t count_targets(const nib_row *row)
{
    int64_t n = 0;
    for (int32_t p = 1; p < row->length; p++) n += row->supervised[p] != 0;
    return n;
}

/* Rows [begin, end) in tree order become one micro-batch. path [longest row]: packed index of each token of the row
 * being written. count [T + 1]: scratch. */
static void write_micro_batch(const step_rows *step, int64_t begin, int64_t end, nib_micro_batch *batch, int32_t *path,
                              int64_t *target_begin)
{
    int32_t t = 0, open = 0; /* tokens written; length of the path whose ends are not known yet */
    for (int pass = 0; pass < 2; pass++) {
        /* The first pass writes the tokens and counts the targets of each, the second places the targets: a counting
         * sort, so that target_row ascends and rows stay in tree order within it. */
        t = open = 0;
        for (int64_t i = begin; i < end; i++) {
            int64_t sample = step->order[i];
            const nib_row *row = &step->rows[sample];
            int32_t shared = i == begin ? 0 : step->shared[i];
            for (int32_t p = shared; p < open; p++) batch->end[path[p]] = t;
            for (int32_t p = shared; p < row->length; p++, t++) {
                path[p] = t;
                batch->id[t] = row->ids[p];
                batch->position[t] = p;
            }
            open = row->length;
            for (int32_t p = 1; p < row->length; p++) {
                if (!row->supervised[p]) continue;
                if (pass == 0) {
                    target_begin[path[p - 1] + 1]++;
                    continue;
                }
                int64_t n = target_begin[path[p - 1]]++;
                batch->target_row[n] = path[p - 1];
                batch->target_label[n] = row->ids[p];
                batch->target_weight[n] = row->weight;
                batch->target_sample[n] = (int32_t)sample;
                batch->target_position[n] = p;
            }
        }
        if (pass == 0)
            for (int32_t k = 0; k < t; k++) target_begin[k + 1] += target_begin[k];
    }
    for (int32_t p = 0; p < open; p++) batch->end[path[p]] = t;
}

/* Cuts slots and micro-batches. batch_begin [count + 1] out: first row of each micro-batch; pack->slot_begin is set. */
static void cut(const step_rows *step, nib_pack_options options, nib_pack *pack, int64_t *batch_begin)
{
    int64_t slot_cost = slot_capacity(step, options.slots), begin = 0;
    /* Packed indices are 32 bits wide. */
    int64_t batch_tokens = options.micro_batch_tokens < INT32_MAX ? options.micro_batch_tokens : INT32_MAX;
    for (int slot = 0; slot < options.slots; slot++) {
        pack->slot_begin[slot] = pack->micro_batches;
        if (begin == step->count) continue;
        int64_t slot_end = fill(step, cost_added, begin, step->count, slot_cost);
        while (begin < slot_end) {
            batch_begin[pack->micro_batches++] = begin;
            begin = options.pack ? fill(step, tokens_added, begin, slot_end, batch_tokens) : begin + 1;
        }
    }
    pack->slot_begin[options.slots] = pack->micro_batches;
    batch_begin[pack->micro_batches] = step->count;
}

static void measure(const step_rows *step, const int64_t *batch_begin, nib_pack *pack)
{
    for (int b = 0; b < pack->micro_batches; b++) {
        nib_micro_batch *batch = &pack->micro_batch[b];
        for (int64_t i = batch_begin[b]; i < batch_begin[b + 1]; i++) {
            const nib_row *row = &step->rows[step->order[i]];
            int64_t targets = count_targets(row);
            batch->T += tokens_added(step, i, i == batch_begin[b]);
            batch->N += targets;
            batch->row_tokens += row->length;
            pack->supervised_weight += (double)targets * (double)row->weight;
        }
        pack->supervised_tokens += batch->N;
        pack->row_tokens += batch->row_tokens;
        pack->computed_tokens += batch->T;
    }
}

/* All arrays of all micro-batches from one block of 4-byte words. */
static nib_status place(nib_pack *pack)
{
    int32_t *word = nib_calloc((size_t)(3 * pack->computed_tokens + 5 * pack->supervised_tokens) + 1, sizeof *word);
    if (word == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to pack a step of %lld tokens", (long long)pack->row_tokens);
    pack->memory = word;
    for (int b = 0; b < pack->micro_batches; b++) {
        nib_micro_batch *batch = &pack->micro_batch[b];
        batch->id = word;
        batch->position = batch->id + batch->T;
        batch->end = batch->position + batch->T;
        batch->target_row = batch->end + batch->T;
        batch->target_label = batch->target_row + batch->N;
        batch->target_sample = batch->target_label + batch->N;
        batch->target_position = batch->target_sample + batch->N;
        batch->target_weight = (float *)(batch->target_position + batch->N);
        word = batch->target_position + 2 * batch->N;
    }
    return NIB_OK;
}

static nib_status write_all(const step_rows *step, const int64_t *batch_begin, nib_pack *pack)
{
    int32_t longest = 0;
    int64_t most = 0;
    for (int64_t i = 0; i < step->count; i++)
        if (step->rows[i].length > longest) longest = step->rows[i].length;
    for (int b = 0; b < pack->micro_batches; b++)
        if (pack->micro_batch[b].T > most) most = pack->micro_batch[b].T;
    int32_t *path = nib_calloc((size_t)longest + 1, sizeof *path);
    int64_t *target_begin = nib_calloc((size_t)most + 1, sizeof *target_begin);
    bool enough = path != NULL && target_begin != NULL;
    for (int b = 0; enough && b < pack->micro_batches; b++) {
        memset(target_begin, 0, ((size_t)pack->micro_batch[b].T + 1) * sizeof *target_begin);
        write_micro_batch(step, batch_begin[b], batch_begin[b + 1], &pack->micro_batch[b], path, target_begin);
    }
    nib_free(path);
    nib_free(target_begin);
    return enough ? NIB_OK : NIB_FAIL(NIB_ERROR_MEMORY, "no memory to pack a row of %d tokens", longest);
}

nib_status nib_pack_step(const nib_row *rows, int64_t count, nib_pack_options options, nib_pack *pack)
{
    memset(pack, 0, sizeof *pack);
    if (options.slots < 1 || options.micro_batch_tokens < 1 || options.token_keys < 0 || count < 0 || count > INT32_MAX)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "pack: %d slots, %lld tokens a micro-batch, %lld rows", options.slots,
                        (long long)options.micro_batch_tokens, (long long)count);
    nib_status status = NIB_OK;
    step_rows step = {.rows = rows, .count = count, .token_keys = options.token_keys};
    int64_t *batch_begin = nib_calloc((size_t)count + 1, sizeof *batch_begin);
    step.order = nib_calloc((size_t)count, sizeof *step.order);
    step.shared = nib_calloc((size_t)count, sizeof *step.shared);
    pack->slots = options.slots;
    pack->slot_begin = nib_calloc((size_t)options.slots + 1, sizeof *pack->slot_begin);
    pack->micro_batch = nib_calloc((size_t)count, sizeof *pack->micro_batch);
    if (batch_begin == NULL || step.order == NULL || step.shared == NULL || pack->slot_begin == NULL ||
        pack->micro_batch == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to pack a step of %lld rows", (long long)count);
        goto done;
    }
    if (options.share_prefixes && options.pack) {
        NIB_TRY_GOTO(nib_prefix_order(rows, count, step.order, step.shared), done);
    } else {
        for (int64_t i = 0; i < count; i++) step.order[i] = i;
    }
    cut(&step, options, pack, batch_begin);
    measure(&step, batch_begin, pack);
    NIB_TRY_GOTO(place(pack), done);
    status = write_all(&step, batch_begin, pack);
done:
    nib_free(batch_begin);
    nib_free(step.order);
    nib_free(step.shared);
    if (status != NIB_OK) nib_pack_free(pack);
    return status;
}

void nib_pack_free(nib_pack *pack)
{
    if (pack == NULL) return;
    nib_free(pack->slot_begin);
    nib_free(pack->micro_batch);
    nib_free(pack->memory);
    memset(pack, 0, sizeof *pack);
}
