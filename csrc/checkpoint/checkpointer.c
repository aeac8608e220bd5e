#include "base/file.h"
#include "base/memory.h"
#include "checkpoint/checkpoint.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct nib_checkpointer {
    char *folder;
    int64_t keep;
    pthread_t thread;
    bool running;
    /* Owned by the writing thread from its start until it is joined. */
    nib_checkpoint_state state;
    nib_checkpoint_tensor *tensors;
    int count;
    char *values;    /* copies of all tensors, one after another */
    size_t capacity; /* bytes */
    nib_status status;
    char message[2048];
};

nib_status nib_checkpointer_create(const char *folder, int64_t keep, nib_checkpointer **out)
{
    nib_checkpointer *c = nib_calloc(1, sizeof *c);
    *out = c;
    if (c != NULL) c->folder = nib_path_join(folder, "");
    if (c == NULL || c->folder == NULL) {
        nib_checkpointer_free(c);
        *out = NULL;
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the checkpoint writer", folder);
    }
    c->keep = keep;
    nib_status status = nib_file_make_folders(folder);
    if (status != NIB_OK) {
        nib_checkpointer_free(c);
        *out = NULL;
    }
    return status;
}

static void *write_checkpoint(void *argument)
{
    nib_checkpointer *c = argument;
    c->status = nib_checkpoint_write(c->folder, &c->state, c->tensors, c->count);
    if (c->status == NIB_OK) c->status = nib_checkpoint_prune(c->folder, c->keep);
    if (c->status != NIB_OK) snprintf(c->message, sizeof c->message, "%s", nib_error_message());
    return NULL;
}

nib_status nib_checkpointer_wait(nib_checkpointer *c)
{
    if (!c->running) return NIB_OK;
    pthread_join(c->thread, NULL);
    c->running = false;
    return c->status == NIB_OK ? NIB_OK : NIB_FAIL(c->status, "%s", c->message);
}

/* Of a tensor's kind, so that what follows is aligned. */
static size_t room(const nib_checkpoint_tensor *tensor, int kind)
{
    const size_t bytes =
        nib_checkpoint_bytes(tensor->moments_8bit, (nib_checkpoint_kind)kind, tensor->rows * tensor->columns);
    return (bytes + sizeof(float) - 1) / sizeof(float) * sizeof(float);
}

nib_status nib_checkpointer_submit(nib_checkpointer *c, nib_checkpoint_carrier carrier,
                                   const nib_checkpoint_state *state, const nib_checkpoint_tensor *tensors, int count)
{
    NIB_TRY(nib_checkpointer_wait(c));
    size_t total = 0;
    for (int i = 0; i < count; i++)
        for (int kind = 0; kind < NIB_CHECKPOINT_KINDS; kind++) total += room(&tensors[i], kind);
    if (total > c->capacity || count > c->count) {
        nib_free(c->values);
        nib_free(c->tensors);
        c->capacity = 0;
        c->count = 0;
        c->values = nib_calloc(total, 1);
        c->tensors = nib_calloc((size_t)count, sizeof *c->tensors);
        if (c->values == NULL || c->tensors == NULL)
            return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to copy the %zu bytes of a checkpoint", c->folder, total);
        c->capacity = total;
    }
    char *at = c->values;
    for (int i = 0; i < count; i++) {
        c->tensors[i] = tensors[i];
        for (int kind = 0; kind < NIB_CHECKPOINT_KINDS; at += room(&tensors[i], kind), kind++) {
            c->tensors[i].values[kind] = at;
            if (room(&tensors[i], kind) > 0) NIB_TRY(carrier.fetch(carrier.context, i, (nib_checkpoint_kind)kind, at));
        }
    }
    c->count = count;
    c->state = *state;
    if (pthread_create(&c->thread, NULL, write_checkpoint, c) != 0)
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the thread that writes a checkpoint", c->folder);
    c->running = true;
    return NIB_OK;
}

void nib_checkpointer_free(nib_checkpointer *c)
{
    if (c == NULL) return;
    if (c->running) pthread_join(c->thread, NULL);
    nib_free(c->folder);
    nib_free(c->tensors);
    nib_free(c->values);
    nib_free(c);
}
