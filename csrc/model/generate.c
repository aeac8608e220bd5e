/* The prompts of a batch are laid out as a prefix tree, whose tokens stand in the cache in packed order; a sequence
 * sees its path through the tree, as a list of ranges of cache rows, and the rows of its own that follow the tree. */
#include "model/generate.h"
#include "base/memory.h"
#include "model/model_internal.h"

#include <string.h>

#define PREFILL_TOKENS 1024 /* most tokens of a forward pass over prompts, unless one prompt alone is longer */

typedef struct {
    int64_t length;           /* tokens so far: the position of the next */
    int64_t produced;         /* of which generated */
    int32_t next;             /* sampled, not yet in the cache */
    int32_t first_row, rows;  /* its own rows of the cache */
    size_t path, path_ranges; /* what it sees besides, in generator->path */
} sequence;

struct nib_generator {
    nib_model *model;
    nib_key_value_cache cache;
    nib_activations activations; /* exchanged with the model's during a forward pass, as is its arena */
    nib_arena activation_arena, output_arena;
    nib_pool pool;   /* holds activations.layer */
    nib_matrix last; /* [max_batch, C] normed residual of the tokens whose logits are wanted */
    float *logits;   /* [max_batch, V] */
    int32_t *chosen; /* [max_batch] of each row of logits */
    int64_t max_batch;

    sequence *sequences; /* [max_batch] */
    int *active;         /* [max_batch] sequences that go on; logits row i is that of active[i] */
    int active_count;
    int32_t *next;   /* [max_batch] chosen, and */
    int64_t *length; /* [max_batch] of active[i]: what sampling is told */
    nib_cache_range *path, *ranges;
    size_t path_count, path_capacity, range_count, range_capacity;
    int32_t *row_id;      /* [capacity] token in each row of the cache */
    int64_t conversation; /* rows from the first on that hold one sequence, for nib_generate_continue */

    /* The forward pass in work: [max(max_batch, PREFILL_TOKENS)], range_begin one more. */
    int32_t *token, *position, *end, *row, *range_begin;
};

static nib_status create_output(nib_generator *g)
{
    nib_ops *ops = g->model->ops;
    const nib_model_config *c = &g->model->config;
    nib_dtype dtype = g->model->options.compute;
    g->output_arena.name = "logits";
    for (int pass = 0; pass < 2; pass++) { /* counts, then places */
        g->last = (nib_matrix){NULL, g->max_batch, c->hidden, c->hidden, dtype};
        NIB_TRY(nib_arena_take(&g->output_arena, g->max_batch * c->hidden, (size_t)nib_dtype_block_bytes(dtype),
                               &g->last.data));
        NIB_TRY(nib_arena_take(&g->output_arena, g->max_batch * c->vocabulary, sizeof(float), &g->logits));
        NIB_TRY(nib_arena_take(&g->output_arena, g->max_batch, sizeof *g->chosen, &g->chosen));
        if (pass == 1) break;
        size_t bytes = g->output_arena.used;
        void *block;
        NIB_TRY(ops->allocate(ops, g->output_arena.name, bytes, &block));
        g->output_arena = (nib_arena){.name = g->output_arena.name, .block = block, .capacity = bytes};
    }
    return NIB_OK;
}

static nib_status create_host(nib_generator *g, int64_t capacity)
{
    size_t batch = (size_t)g->max_batch;
    size_t tokens = batch > PREFILL_TOKENS ? batch : PREFILL_TOKENS;
    g->sequences = nib_calloc(batch, sizeof *g->sequences);
    g->active = nib_calloc(batch, sizeof *g->active);
    g->next = nib_calloc(batch, sizeof *g->next);
    g->length = nib_calloc(batch, sizeof *g->length);
    g->row_id = nib_calloc((size_t)capacity, sizeof *g->row_id);
    g->token = nib_calloc(5 * tokens + 1, sizeof *g->token);
    g->activations.layer = nib_pool_alloc(&g->pool, ((size_t)g->model->config.layers + 1) * sizeof(nib_layer_saves));
    if (g->sequences == NULL || g->active == NULL || g->next == NULL || g->length == NULL || g->row_id == NULL ||
        g->token == NULL || g->activations.layer == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to generate %zu sequences at once", batch);
    g->position = g->token + tokens;
    g->end = g->position + tokens;
    g->row = g->end + tokens;
    g->range_begin = g->row + tokens;
    return NIB_OK;
}

nib_status nib_generator_create(nib_model *model, int64_t capacity, int64_t max_batch, nib_generator **generator)
{
    nib_status status;
    nib_generator *g = nib_calloc(1, sizeof *g);
    *generator = NULL;
    if (g == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a generator");
    g->model = model;
    g->max_batch = max_batch;
    g->activation_arena.name = "activations of generation";
    NIB_TRY_GOTO(nib_key_value_cache_create(model->ops, &model->config, model->options.compute, capacity, &g->cache),
                 done);
    NIB_TRY_GOTO(create_output(g), done);
    NIB_TRY_GOTO(create_host(g, capacity), done);
    *generator = g;
    g = NULL;
done:
    nib_generator_free(g);
    return status;
}

static void release(nib_ops *ops, const nib_arena *arena)
{
    if (arena->block != NULL) ops->release(ops, arena->block, arena->capacity);
}

void nib_generator_free(nib_generator *g)
{
    if (g == NULL) return;
    nib_key_value_cache_free(g->model->ops, &g->cache);
    release(g->model->ops, &g->activation_arena);
    release(g->model->ops, &g->output_arena);
    nib_free(g->sequences);
    nib_free(g->active);
    nib_free(g->next);
    nib_free(g->length);
    nib_free(g->row_id);
    nib_free(g->token);
    nib_free(g->path);
    nib_free(g->ranges);
    nib_pool_free(&g->pool);
    nib_free(g);
}

size_t nib_generator_bytes(const nib_generator *g)
{
    return g->cache.arena.capacity + g->activation_arena.capacity + g->output_arena.capacity;
}

void nib_generator_forget(nib_generator *g) { g->conversation = 0; }

static void exchange_activations(nib_generator *g)
{
    nib_activations activations = g->model->activations;
    nib_arena arena = g->model->arena[NIB_ARENA_ACTIVATIONS];
    g->model->activations = g->activations;
    g->model->arena[NIB_ARENA_ACTIVATIONS] = g->activation_arena;
    g->activations = activations;
    g->activation_arena = arena;
}

/* The model's forward pass over the batch, with the generator's own activations. Afterwards g->activations.normed holds
 * its rows. */
static nib_status forward(nib_generator *g, const nib_micro_batch *batch, const nib_cache_access *access)
{
    nib_status status = NIB_OK;
    exchange_activations(g);
    if (batch->T > g->model->activations.T)
        status = nib_model_reserve(g->model, batch->T, 0, NIB_RECOMPUTE_NONE, false);
    g->model->activations.cache = access;
    if (status != NIB_OK) g->model->activations.T = 0; /* nothing is reserved */
    if (status == NIB_OK) status = nib_forward_upload(g->model, batch);
    if (status == NIB_OK) status = nib_forward(g->model);
    g->model->activations.cache = NULL;
    exchange_activations(g);
    return status;
}

static nib_status compute_logits(nib_generator *g, nib_matrix rows)
{
    return g->model->ops->logits(g->model->ops, rows, g->model->head, 0.0f, g->logits);
}

static nib_status add_range(nib_cache_range **ranges, size_t *count, size_t *capacity, size_t first,
                            nib_cache_range range)
{
    nib_cache_range *last = *count > first ? *ranges + *count - 1 : NULL;
    if (last != NULL && last->first + last->count == range.first) {
        last->count += range.count;
        return NIB_OK;
    }
    if (!nib_grow(ranges, capacity, *count + 1, sizeof range))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu ranges of a key/value cache", *count);
    (*ranges)[(*count)++] = range;
    return NIB_OK;
}

/* Follows a prompt's ids through a packed tree whose tokens stand in the cache from `base` on. *last: packed index of
 * its last token, -1 if the tree does not hold it. */
static nib_status find_path(nib_generator *g, const nib_micro_batch *batch, int32_t base, nib_prompt prompt,
                            sequence *s, int64_t *last)
{
    int64_t t = 0, limit = batch->T;
    s->path = g->path_count;
    *last = -1;
    for (int32_t i = 0; i < prompt.length; i++) {
        while (t < limit && batch->id[t] != prompt.ids[i]) t = batch->end[t]; /* to the next child */
        if (t >= limit) {
            g->path_count = s->path;
            return NIB_OK;
        }
        nib_cache_range range = {base + (int32_t)t, 1};
        NIB_TRY(add_range(&g->path, &g->path_count, &g->path_capacity, s->path, range));
        *last = t;
        limit = batch->end[t++];
    }
    s->path_ranges = g->path_count - s->path;
    return NIB_OK;
}

/* Prefills one packed tree, and takes the outputs of the prompts that end in it. */
static nib_status prefill_tree(nib_generator *g, const nib_micro_batch *batch, int32_t base, const nib_prompt *prompts,
                               int count)
{
    nib_ops *ops = g->model->ops;
    nib_status status;
    int32_t *row = nib_calloc((size_t)batch->T, sizeof *row);
    if (row == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for prompts of %lld tokens", (long long)batch->T);
    for (int64_t t = 0; t < batch->T; t++) row[t] = base + (int32_t)t;
    NIB_TRY_GOTO(forward(g, batch, &(nib_cache_access){.cache = &g->cache, .row = row}), done);
    for (int i = 0; i < count; i++) {
        sequence *s = &g->sequences[i];
        int64_t last;
        if (s->path_ranges > 0) continue;
        NIB_TRY_GOTO(find_path(g, batch, base, prompts[i], s, &last), done);
        if (last < 0) continue;
        NIB_TRY_GOTO(ops->convert(ops, nib_matrix_rows(g->activations.normed, last, 1), nib_matrix_rows(g->last, i, 1)),
                     done);
    }
done:
    nib_free(row);
    return status;
}

static nib_status pack_prompts(const nib_prompt *prompts, int count, nib_pack *pack)
{
    int32_t longest = 0;
    for (int i = 0; i < count; i++) longest = prompts[i].length > longest ? prompts[i].length : longest;
    nib_row *rows = nib_calloc((size_t)count, sizeof *rows);
    uint8_t *unsupervised = nib_calloc((size_t)longest, 1);
    nib_status status;
    if (rows == NULL || unsupervised == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d prompts", count);
        goto done;
    }
    for (int i = 0; i < count; i++) rows[i] = (nib_row){prompts[i].ids, unsupervised, prompts[i].length, 1.0f};
    nib_pack_options options = {.slots = 1, .micro_batch_tokens = PREFILL_TOKENS, .share_prefixes = true, .pack = true};
    status = nib_pack_step(rows, count, options, pack);
done:
    nib_free(rows);
    nib_free(unsupervised);
    return status;
}

/* Gives every sequence its rows behind the trees. */
static nib_status place_sequences(nib_generator *g, int64_t used, const nib_prompt *prompts, int count,
                                  int64_t max_new_tokens)
{
    int64_t each = max_new_tokens - 1; /* the last token is never seen */
    if (each > g->cache.capacity || used + count * each > g->cache.capacity)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%d prompts take %lld rows of the key/value cache and %lld new tokens each; it has %lld rows",
                        count, (long long)used, (long long)max_new_tokens, (long long)g->cache.capacity);
    for (int i = 0; i < count; i++) {
        g->sequences[i] = (sequence){.length = prompts[i].length, .first_row = (int32_t)(used + i * each)};
        g->active[i] = i;
    }
    g->active_count = count;
    return NIB_OK;
}

static nib_status prefill(nib_generator *g, const nib_prompt *prompts, int count, int64_t max_new_tokens)
{
    nib_pack pack = {0};
    nib_status status;
    int64_t base = 0;
    g->conversation = 0;
    g->path_count = 0;
    NIB_TRY_GOTO(pack_prompts(prompts, count, &pack), done);
    NIB_TRY_GOTO(place_sequences(g, pack.computed_tokens, prompts, count, max_new_tokens), done);
    for (int m = 0; m < pack.micro_batches; m++) {
        NIB_TRY_GOTO(prefill_tree(g, &pack.micro_batch[m], (int32_t)base, prompts, count), done);
        base += pack.micro_batch[m].T;
    }
    for (int i = 0; i < count; i++)
        if (g->sequences[i].path_ranges == 0) {
            status = NIB_FAIL(NIB_ERROR_INTERNAL, "prompt %d is not in the tree of its batch", i);
            goto done;
        }
    status = compute_logits(g, nib_matrix_rows(g->last, 0, count));
done:
    nib_pack_free(&pack);
    return status;
}

static bool is_stop(const nib_generate_options *options, int32_t id)
{
    for (int i = 0; i < options->stop_count; i++)
        if (options->stop[i] == id) return true;
    return false;
}

/* A token of every active sequence: its id is all that comes from the device. */
static nib_status sample(nib_generator *g, const nib_generate_options *options)
{
    nib_ops *ops = g->model->ops;
    const nib_sampling sampling = {options->temperature, options->top_p, options->top_k, options->seed};
    for (int i = 0; i < g->active_count; i++) g->length[i] = g->sequences[g->active[i]].length;
    NIB_TRY(ops->sample(ops, sampling, g->logits, g->active_count, g->model->config.vocabulary, g->length, g->chosen));
    NIB_TRY(ops->download(ops, g->next, g->chosen, (size_t)g->active_count * sizeof *g->next));
    for (int i = 0; i < g->active_count; i++)
        if (g->next[i] < 0)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "the model's logits after %lld tokens are NaN or infinite; the weights or the adapter are "
                            "damaged",
                            (long long)g->length[i]);
    return NIB_OK;
}

/* Chooses a token of every active sequence, and keeps those that go on. */
static nib_status take_tokens(nib_generator *g, const nib_generate_options *options, nib_generate_token on_token,
                              void *user)
{
    int kept = 0;
    NIB_TRY(sample(g, options));
    for (int i = 0; i < g->active_count; i++) {
        sequence *s = &g->sequences[g->active[i]];
        s->next = g->next[i];
        if (is_stop(options, s->next)) continue;
        s->produced++;
        if (on_token(user, g->active[i], s->next) && s->produced < options->max_new_tokens)
            g->active[kept++] = g->active[i];
    }
    g->active_count = kept;
    return NIB_OK;
}

/* One token of every active sequence through the model. */
static nib_status decode(nib_generator *g)
{
    g->range_count = 0;
    g->range_begin[0] = 0;
    for (int i = 0; i < g->active_count; i++) {
        sequence *s = &g->sequences[g->active[i]];
        size_t first = g->range_count;
        g->token[i] = s->next;
        g->position[i] = (int32_t)s->length++;
        g->end[i] = i + 1;
        g->row[i] = s->first_row + s->rows++;
        g->row_id[g->row[i]] = s->next;
        for (size_t r = 0; r < s->path_ranges; r++)
            NIB_TRY(add_range(&g->ranges, &g->range_count, &g->range_capacity, first, g->path[s->path + r]));
        nib_cache_range own = {s->first_row, s->rows};
        NIB_TRY(add_range(&g->ranges, &g->range_count, &g->range_capacity, first, own));
        g->range_begin[i + 1] = (int32_t)g->range_count;
    }
    nib_micro_batch batch = {.T = g->active_count, .id = g->token, .position = g->position, .end = g->end};
    nib_cache_access access = {&g->cache, g->row, g->range_begin, g->ranges};
    NIB_TRY(forward(g, &batch, &access));
    return compute_logits(g, nib_matrix_rows(g->activations.normed, 0, g->active_count));
}

static nib_status check_prompts(const nib_generator *g, const nib_prompt *prompts, int count)
{
    int64_t V = g->model->config.vocabulary;
    if (count > g->max_batch)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%d prompts at once, expected at most %lld", count,
                        (long long)g->max_batch);
    for (int p = 0; p < count; p++) {
        if (prompts[p].length <= 0) return NIB_FAIL(NIB_ERROR_DATA, "prompt %d of the batch is empty", p);
        for (int32_t i = 0; i < prompts[p].length; i++)
            if (prompts[p].ids[i] < 0 || prompts[p].ids[i] >= V)
                return NIB_FAIL(NIB_ERROR_DATA, "token %d of prompt %d is %d; the model has %lld ids", i, p,
                                prompts[p].ids[i], (long long)V);
    }
    return NIB_OK;
}

nib_status nib_generate(nib_generator *g, const nib_prompt *prompts, int count, const nib_generate_options *options,
                        nib_generate_token on_token, void *user)
{
    if (count == 0) return NIB_OK;
    NIB_TRY(check_prompts(g, prompts, count));
    NIB_TRY(prefill(g, prompts, count, options->max_new_tokens));
    NIB_TRY(take_tokens(g, options, on_token, user));
    while (g->active_count > 0) {
        NIB_TRY(decode(g));
        NIB_TRY(take_tokens(g, options, on_token, user));
    }
    return NIB_OK;
}

/* Prefills n tokens of a conversation whose first `seen` tokens are cached. */
static nib_status extend(nib_generator *g, const int32_t *ids, int32_t seen, int32_t n)
{
    g->range_count = 0;
    g->range_begin[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        g->position[i] = g->row[i] = seen + i;
        g->end[i] = n;
        NIB_TRY(add_range(&g->ranges, &g->range_count, &g->range_capacity, g->range_count,
                          (nib_cache_range){0, seen + i + 1}));
        g->range_begin[i + 1] = i + 1;
    }
    memcpy(g->token, ids + seen, (size_t)n * sizeof *ids);
    memcpy(g->row_id + seen, ids + seen, (size_t)n * sizeof *ids);
    nib_micro_batch batch = {.T = n, .id = g->token, .position = g->position, .end = g->end};
    nib_cache_access access = {.cache = &g->cache, .row = g->row};
    if (seen > 0) {
        access.range_begin = g->range_begin;
        access.range = g->ranges;
    }
    return forward(g, &batch, &access);
}

static nib_status prefill_conversation(nib_generator *g, nib_prompt prompt)
{
    int32_t n = 0, seen = 0;
    while (seen < g->conversation && seen < prompt.length - 1 && g->row_id[seen] == prompt.ids[seen]) seen++;
    for (; seen < prompt.length; seen += n) {
        n = prompt.length - seen < PREFILL_TOKENS ? prompt.length - seen : PREFILL_TOKENS;
        g->conversation = seen;
        NIB_TRY(extend(g, prompt.ids, seen, n));
    }
    g->conversation = prompt.length;
    g->path_count = 0;
    NIB_TRY(add_range(&g->path, &g->path_count, &g->path_capacity, 0, (nib_cache_range){0, prompt.length}));
    g->sequences[0] = (sequence){.length = prompt.length, .first_row = prompt.length, .path_ranges = 1};
    g->active[0] = 0;
    g->active_count = 1;
    return compute_logits(g, nib_matrix_rows(g->activations.normed, n - 1, 1));
}

nib_status nib_generate_continue(nib_generator *g, nib_prompt prompt, const nib_generate_options *options,
                                 nib_generate_token on_token, void *user)
{
    NIB_TRY(check_prompts(g, &prompt, 1));
    if (prompt.length > g->cache.capacity)
        return NIB_FAIL(
            NIB_ERROR_DATA,
            "a conversation of %d tokens does not fit the context of %lld; begin anew, or give a larger one",
            prompt.length, (long long)g->cache.capacity);
    NIB_TRY(prefill_conversation(g, prompt));
    NIB_TRY(take_tokens(g, options, on_token, user));
    while (g->active_count > 0 && g->sequences[0].length < g->cache.capacity) {
        NIB_TRY(decode(g));
        g->conversation++;
        NIB_TRY(take_tokens(g, options, on_token, user));
    }
    return NIB_OK;
}
