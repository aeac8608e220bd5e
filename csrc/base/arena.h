/* An arena: one block of a backend's memory for one class of tensors, given out from the front.
 *
 * The memory report prints from the arenas; `plan` runs the same allocation code on arenas without a block, which only
 * count, so that the plan and the run cannot disagree.
 */
#ifndef NIB_ARENA_H
#define NIB_ARENA_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name; /* "base weights", "activations", ... */
    char *block;      /* NULL: this arena only counts */
    size_t capacity;  /* bytes of block */
    size_t used, peak;
} nib_arena;

#define NIB_ARENA_ALIGNMENT 256

/* count * size bytes, aligned, not cleared. *pointer is NULL from a counting arena (and must not be dereferenced).
 * Fails with NIB_ERROR_MEMORY, naming the arena, when the block is full or the product overflows. */
nib_status nib_arena_take(nib_arena *arena, int64_t count, size_t size, void *pointer_to_pointer);
/* LIFO release: back to a mark taken as arena->used. */
void nib_arena_reset(nib_arena *arena, size_t mark);
bool nib_arena_counts(const nib_arena *arena);

#endif
