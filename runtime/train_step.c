#include "train_step.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "gradient_sum.h"
#include "optim/optimizer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

nib_step_plan nib_train_step_plan(const nib_training *t)
{
    return (nib_step_plan){.data = t->train,
                           .mixture = &t->mixture,
                           .pack = {.slots = (int)t->config->train.slots,
                                    .micro_batch_tokens = t->config->train.micro_batch_tokens,
                                    .share_prefixes = t->config->data.share_prefixes,
                                    .pack = t->config->data.pack,
                                    .token_keys = t->token_keys},
                           .samples = t->samples,
                           .batch_size = t->config->train.batch_size};
}

/* Room for the losses of so many targets. */
static nib_status reserve_losses(float **nll, int64_t *capacity, int64_t count)
{
    if (count <= *capacity) return NIB_OK;
    float *larger = nib_recalloc(*nll, (size_t)*capacity, (size_t)count, sizeof *larger);
    if (larger == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld losses", (long long)count);
    *nll = larger;
    *capacity = count;
    return NIB_OK;
}

nib_status nib_train_reserve(nib_training *t, const nib_micro_batch *batch)
{
    NIB_TRY(reserve_losses(&t->nll, &t->nll_capacity, batch->N));
    if (batch->T <= t->reserved_tokens && batch->N <= t->reserved_targets) return NIB_OK;
    if (batch->T > t->reserved_tokens) t->reserved_tokens = batch->T;
    if (batch->N > t->reserved_targets) t->reserved_targets = batch->N;
    return nib_model_reserve(t->model, t->reserved_tokens, t->reserved_targets, t->recompute, true);
}

static bool divides_base(const nib_training *t) { return t->shards != NULL && t->config->parallel.shard_base; }

/* All gradients as one array (model.h). */
static float *gradients(const nib_training *t) { return t->parameters[0].gradient; }

nib_slot_range nib_train_slots(const nib_training *t)
{
    int slots = (int)t->config->train.slots;
    if (t->collectives == NULL) return nib_slot_range_of_rank(slots, 1, 0);
    return nib_slot_range_of_rank(slots, t->collectives->size, t->collectives->rank);
}

size_t nib_train_slot_bytes(const nib_training *t, int64_t n)
{
    const int slots = (int)t->config->train.slots;
    const size_t tree = nib_gradient_tree_bytes(n, slots, nib_train_slots(t));
    return t->exchange == NULL ? tree : tree + nib_gradient_stream_bytes(n, slots, t->collectives->size);
}

/* Targets of all slots before this one. */
static int64_t targets_before(const nib_pack *pack, int slot)
{
    int64_t targets = 0;
    for (int m = 0; m < pack->slot_begin[slot]; m++) targets += pack->micro_batch[m].N;
    return targets;
}

static int micro_batches_of(const nib_pack *pack, nib_slot_range range)
{
    return pack->slot_begin[range.end] - pack->slot_begin[range.first];
}

static nib_slot_range slots_of_rank(const nib_training *t, const nib_pack *pack, int rank)
{
    return nib_slot_range_of_rank(pack->slots, t->collectives->size, rank);
}

/* Of a divided base every rank goes through the layers as often as the one with the most micro-batches: parts of them
 * are here. *told_of: each rank's last slot is complete when the last of those passes is, so that gradients can go
 * layer by layer during it, in the same place among the gathers on every rank. */
static int passes_of_all(const nib_training *t, const nib_pack *pack, bool *told_of)
{
    int most = 0;
    for (int r = 0; r < t->collectives->size; r++) {
        const int theirs = micro_batches_of(pack, slots_of_rank(t, pack, r));
        if (theirs > most) most = theirs;
    }
    *told_of = true;
    for (int r = 0; r < t->collectives->size; r++) {
        const nib_slot_range range = slots_of_rank(t, pack, r);
        const bool last_is_empty =
            range.first < range.end && pack->slot_begin[range.end - 1] == pack->slot_begin[range.end];
        if (micro_batches_of(pack, range) == most && last_is_empty) *told_of = false;
    }
    return most;
}

static void note_micro_batch(const nib_training *t, int64_t step, int m)
{
    char text[64];
    snprintf(text, sizeof text, "step %lld, micro-batch %d", (long long)step, m);
    t->collectives->note(t->collectives, text);
}

/* What a step tells of its gradients. */
typedef struct {
    nib_gradient_watch watch;
    int passes; /* of a divided base: of all ranks; else 0 */
    int made;   /* of them, by this rank */
    bool told;  /* all layers have been told of */
} telling;

/* Before a pass: whom it tells. last: it completes this rank's last slot. Ranks that gather layers have to tell in the
 * same pass; others tell when they can, since a layer's moves are the same in all of their passes. */
static nib_gradient_watch told_in_pass(telling *x, bool last)
{
    x->made++;
    if (x->watch.done == NULL || !last || (x->passes > 0 && x->made < x->passes)) return (nib_gradient_watch){0};
    x->told = true;
    return x->watch;
}

/* The passes of other ranks' micro-batches, and the layers that no pass has told of. */
static nib_status accompany(const nib_training *t, telling *x)
{
    while (x->made < x->passes) NIB_TRY(nib_model_accompany(t->model, true, told_in_pass(x, true)));
    if (x->told || x->passes > 0) return NIB_OK;
    return nib_model_accompany(t->model, true, x->watch);
}

/* Gradients of this rank's slots, then of all; the losses of its micro-batches are where they lie among those of all,
 * one after the other, in asked->nll when the step ends. Between devices a layer's gradients go as soon as the last
 * micro-batch has passed it. */
static nib_status run_slots(nib_training *t, int64_t step, nib_train_step_asked *asked)
{
    const nib_pack *pack = &asked->data.pack;
    uint64_t step_key = nib_random_key((uint64_t)t->config->train.seed, (uint64_t)step);
    nib_slot_range range = nib_train_slots(t);
    int64_t first = targets_before(pack, range.first);
    bool together = true;
    telling x = {.passes = divides_base(t) ? passes_of_all(t, pack, &together) : 0};
    if (t->stream != NULL && together) x.watch = (nib_gradient_watch){nib_gradient_stream_add, t->stream};
    NIB_TRY(reserve_losses(&asked->nll, &asked->nll_capacity, pack->supervised_tokens));
    for (int slot = range.first; slot < range.end; slot++) {
        const bool streamed = t->stream != NULL && slot + 1 == range.end;
        if (streamed) nib_gradient_tree_last(&t->tree);
        for (int m = pack->slot_begin[slot]; m < pack->slot_begin[slot + 1]; m++) {
            const nib_micro_batch *batch = &pack->micro_batch[m];
            note_micro_batch(t, step, m);
            NIB_TRY(nib_train_reserve(t, batch));
            nib_step_options options = {.gradient_scale = (float)(1.0 / pack->supervised_weight),
                                        .dropout_key = nib_random_key(step_key, (uint64_t)m),
                                        .watch = told_in_pass(&x, streamed && m + 1 == pack->slot_begin[slot + 1])};
            NIB_TRY(nib_model_train_batch(t->model, batch, options, asked->nll + first));
            first += batch->N;
        }
        if (!streamed) NIB_TRY(nib_gradient_tree_add(&t->tree, slot, gradients(t)));
    }
    NIB_TRY(accompany(t, &x));
    return t->stream != NULL ? nib_gradient_stream_end(t->stream)
                             : nib_gradient_sum(t->collectives, &t->tree, gradients(t));
}

/* The losses of all ranks' targets to each, so that they are added in one order everywhere. */
static nib_status gather_losses(nib_training *t, const nib_train_step_asked *asked)
{
    const nib_pack *pack = &asked->data.pack;
    nib_collectives *c = t->collectives;
    nib_part *part = nib_calloc((size_t)c->size, sizeof *part);
    if (part == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the losses of %d ranks", c->size);
    for (int r = 0; r < c->size; r++) {
        nib_slot_range range = nib_slot_range_of_rank(pack->slots, c->size, r);
        int64_t first = targets_before(pack, range.first), end = targets_before(pack, range.end);
        part[r] = (nib_part){asked->nll + first, (size_t)(end - first) * sizeof *asked->nll};
    }
    nib_status status = c->all_gather(c, part);
    nib_free(part);
    return status;
}

static double mean_loss(const nib_train_step_asked *asked)
{
    const nib_pack *pack = &asked->data.pack;
    double sum = 0;
    const float *nll = asked->nll;
    for (int m = 0; m < pack->micro_batches; m++) {
        const nib_micro_batch *batch = &pack->micro_batch[m];
        for (int64_t i = 0; i < batch->N; i++) sum += (double)nll[i] * batch->target_weight[i];
        nll += batch->N;
    }
    return sum / pack->supervised_weight;
}

static nib_status save_rows(const nib_training *t, const int64_t *samples, int64_t count)
{
    char name[64];
    nib_buffer text = {0};
    nib_rows rows;
    NIB_TRY(nib_dataset_rows(t->train, samples, count, &rows));
    snprintf(name, sizeof name, "nonfinite-step-%lld.jsonl", (long long)t->state.step);
    for (int64_t i = 0; i < count; i++) {
        int64_t line;
        const char *file = nib_dataset_file(t->train, samples[i], &line);
        nib_row row = rows.row[i];
        nib_buffer_text(&text, "{\"file\":");
        nib_buffer_json_string(&text, file, strlen(file), false);
        nib_buffer_format(&text, ",\"line\":%lld,\"input_ids\":[", (long long)line);
        for (int32_t k = 0; k < row.length; k++) nib_buffer_format(&text, k == 0 ? "%d" : ",%d", row.ids[k]);
        nib_buffer_text(&text, "]}\n");
        nib_warn("step %lld had row %s:%lld", (long long)t->state.step, file, (long long)line);
    }
    nib_rows_free(&rows);
    nib_status status = nib_file_replace_text(t->folder.path, name, &text);
    nib_buffer_free(&text);
    return status;
}

/* Where nothing of a step goes through the host's memory but what is read at its end. */
int nib_train_steps_ahead(const nib_training *t)
{
    return t->ops->queue != NULL && (t->collectives->size == 1 || t->stream != NULL) ? 1 : 0;
}

/* All that a step asks of the device. Whether the one before it was applied may not be known. */
static nib_status ask(nib_training *t, int64_t step, nib_train_step_asked *asked)
{
    const nib_config *c = t->config;
    const nib_optimizer_options options = {
        .adamw = {.learning_rate = asked->learning_rate,
                  .beta1 = c->train.beta1,
                  .beta2 = c->train.beta2,
                  .epsilon = c->train.epsilon,
                  .weight_decay = c->train.weight_decay,
                  .step = t->state.updates + t->under_way + 1},
        .max_norm = c->train.max_grad_norm,
        .ahead = t->under_way > 0,
    };
    NIB_TRY(nib_optimizer_zero(t->ops, t->model));
    NIB_TRY(run_slots(t, step, asked));
    NIB_TRY(nib_optimizer_step(t->ops, t->model, &options, &asked->norm));
    asked->mark = t->ops->mark(t->ops);
    return NIB_OK;
}

/* The device's failure may show later than it happens: in the call of a step that came after it. */
static nib_status name_step(const nib_training *t, nib_status status, int64_t step)
{
    if (status != NIB_ERROR_DEVICE) return status;
    if (step == t->state.step) return nib_error_context(status, "step %lld", (long long)step);
    return nib_error_context(status, "step %lld or %lld", (long long)t->state.step, (long long)step);
}

nib_status nib_train_step_begin(nib_training *t)
{
    const int64_t step = t->state.step + t->under_way;
    const int64_t cursor = t->state.cursor + (t->under_way > 0 ? t->asked[t->state.step % 2].data.count : 0);
    nib_train_step_asked *asked = &t->asked[step % 2];
    char note[32];
    snprintf(note, sizeof note, "step %lld", (long long)step);
    t->collectives->note(t->collectives, note);
    nib_node_shards_at(t->shards, note);
    asked->begun = nib_train_clock();
    asked->learning_rate = nib_schedule_rate(&t->schedule, step);
    NIB_TRY(nib_prefetch_take(t->prefetch, cursor, &asked->data, &asked->data_wait));
    NIB_TRY(name_step(t, ask(t, step, asked), step));
    t->under_way++;
    return NIB_OK;
}

/* What is read of a step; on all ranks the same. */
static nib_status read_figures(nib_training *t, nib_train_step_asked *asked, nib_step_result *result)
{
    const nib_pack *pack = &asked->data.pack;
    const double begun = asked->begun > t->ended ? asked->begun : t->ended;
    NIB_TRY(t->ops->await(t->ops, asked->mark)); /* the only time that a step waits for the device */
    NIB_TRY(gather_losses(t, asked));
    t->ended = nib_train_clock();
    *result = (nib_step_result){
        .loss = mean_loss(asked),
        .gradient_norm = asked->norm,
        .learning_rate = asked->learning_rate,
        .seconds = t->ended - begun,
        .data_wait = asked->data_wait,
        .supervised_tokens = pack->supervised_tokens,
        .tokens = pack->row_tokens,
        .computed_tokens = pack->computed_tokens,
        .applied = isfinite(asked->norm), /* a loss that is not finite makes the gradient so */
    };
    return NIB_OK;
}

nib_status nib_train_step_end(nib_training *t, nib_step_result *result)
{
    nib_train_step_asked *asked = &t->asked[t->state.step % 2];
    NIB_TRY(name_step(t, read_figures(t, asked, result), t->state.step));
    if (result->applied) {
        t->state.updates++;
    } else {
        t->state.nonfinite_steps++;
        nib_warn("step %lld: loss %g, gradient norm %g; the step is not applied", (long long)t->state.step,
                 result->loss, result->gradient_norm);
        if (nib_train_leads(t)) NIB_TRY(save_rows(t, asked->data.samples, asked->data.count));
    }
    t->state.step++;
    t->state.cursor += asked->data.count;
    t->under_way--;
    nib_step_data_free(&asked->data);
    return NIB_OK;
}

void nib_train_steps_free(nib_training *t)
{
    for (int i = 0; i < 2; i++) {
        nib_step_data_free(&t->asked[i].data);
        nib_free(t->asked[i].nll);
    }
}
