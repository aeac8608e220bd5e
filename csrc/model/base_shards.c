#include "model/model_internal.h"

#include <stdio.h>
#include <string.h>

#define ALIGNMENT ((size_t)NIB_ARENA_ALIGNMENT)

nib_status nib_base_place(nib_model *model)
{
    nib_base_shards *b = &model->shards;
    nib_arena *base = &model->arena[NIB_ARENA_BASE], *windows = &model->arena[NIB_ARENA_WINDOWS];
    if (b->among == NULL) return NIB_OK;
    const size_t size = (size_t)b->among->size, longest = b->record.peak;
    const size_t part = ((longest + size - 1) / size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (b->offset == NULL) b->offset = nib_pool_alloc(&model->pool, (size + 1) * sizeof *b->offset);
    if (b->offset == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the parts of %zu ranks", size);
    for (size_t r = 0; r <= size; r++) b->offset[r] = r * part;
    NIB_TRY(nib_arena_take(base, model->config.layers, part, &b->parts));
    for (int w = 0; w < 2; w++) {
        b->held[w] = -1;
        NIB_TRY(nib_arena_take(windows, (int64_t)size, part, &b->window[w]));
    }
    b->record =
        (nib_arena){.name = "a layer's record", .block = b->window[0], .capacity = size * part, .peak = longest};
    return NIB_OK;
}

nib_base_piece nib_base_piece_of(const nib_model *model, int64_t l, const void *to, size_t bytes)
{
    const nib_base_shards *b = &model->shards;
    if (b->among == NULL) return (nib_base_piece){.place = (char *)(uintptr_t)to, .count = bytes};
    const size_t begin = b->offset[b->among->rank], end = b->offset[b->among->rank + 1];
    const size_t at = (size_t)((const char *)to - model->layers[l].record); /* of the bytes in their record */
    const size_t first = at > begin ? at : begin, last = at + bytes < end ? at + bytes : end;
    if (first >= last) return (nib_base_piece){.place = b->parts};
    return (nib_base_piece){b->parts + (size_t)l * b->offset[1] + (first - begin), first - at, last - first};
}

/* Same place in another window. NULL stays. */
static void move_pointer(void *pointer_to_pointer, const char *from, char *to)
{
    const char *pointer;
    memcpy(&pointer, pointer_to_pointer, sizeof pointer);
    if (pointer != NULL) pointer = to + (pointer - from);
    memcpy(pointer_to_pointer, &pointer, sizeof pointer);
}

static void point_at_window(nib_model *model, int64_t l, char *window)
{
    nib_layer *layer = &model->layers[l];
    for (int i = 0; i < NIB_MODULES; i++) {
        nib_module module = nib_model_module(&model->config, i);
        nib_nf4 *nf4 = &nib_layer_part(layer, &module)->nf4;
        move_pointer(&nf4->codes, layer->record, window);
        move_pointer(&nf4->absmax, layer->record, window);
        move_pointer(&nf4->absmax_codes, layer->record, window);
        move_pointer(&nf4->nested_absmax, layer->record, window);
    }
    layer->record = window;
}

static nib_status begin(nib_model *model, int64_t l, int window)
{
    nib_base_shards *b = &model->shards;
    char what[64];
    b->held[window] = l;
    if (model->ops->rehearsal) return NIB_OK;
    snprintf(what, sizeof what, "layer %lld of the base", (long long)l);
    NIB_TRY(
        b->among->begin(b->among->context, what, b->parts + (size_t)l * b->offset[1], b->window[window], b->offset));
    b->coming = true;
    return NIB_OK;
}

nib_status nib_base_settle(nib_model *model)
{
    nib_base_shards *b = &model->shards;
    if (!b->coming) return NIB_OK;
    b->coming = false;
    return b->among->end(b->among->context);
}

static int window_of(const nib_base_shards *b, int64_t l) { return b->held[0] == l ? 0 : b->held[1] == l ? 1 : -1; }

nib_status nib_base_use_layer(nib_model *model, int64_t l, int64_t ahead)
{
    nib_base_shards *b = &model->shards;
    if (model->options.stream_layers) return nib_model_load_streamed(model, l);
    if (b->among == NULL) return NIB_OK;
    NIB_TRY(nib_base_settle(model));
    if (window_of(b, l) < 0) {
        NIB_TRY(begin(model, l, 0));
        NIB_TRY(nib_base_settle(model));
    }
    const int window = window_of(b, l);
    point_at_window(model, l, b->window[window]);
    if (ahead < 0 || ahead >= model->config.layers || window_of(b, ahead) >= 0) return NIB_OK;
    return begin(model, ahead, 1 - window);
}
