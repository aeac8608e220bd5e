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

typedef struct nib_arena nib_arena;
struct nib_arena {
    const char *name; /* "base weights", "activations", ... */
    char *block;      /* NULL: this arena only counts, or has not grown yet */
    size_t capacity;  /* bytes of block */
    size_t used, peak;
    /* NULL, or: finds room for a piece of `bytes` bytes from arena->used on. If nothing is in use it may replace the
     * block by one of at least arena->peak bytes; else it leaves the block, since pieces of it are in use, and finds
     * the room elsewhere. */
    nib_status (*grow)(nib_arena *arena, size_t bytes, void **piece);
    /* A backend that watches over the ends of pieces: bytes left behind each of the block, and who hears of each. */
    size_t gap;
    void (*given)(nib_arena *arena, void *piece, size_t bytes);
};

#define NIB_ARENA_ALIGNMENT 256

/* count * size bytes, aligned, not cleared. *pointer is NULL from a counting arena (and must not be dereferenced).
 * Fails with NIB_ERROR_MEMORY, naming the arena, when the block is full and cannot grow, or the product overflows. */
nib_status nib_arena_take(nib_arena *arena, int64_t count, size_t size, void *pointer_to_pointer);
/* LIFO release: back to a mark taken as arena->used. */
void nib_arena_reset(nib_arena *arena, size_t mark);
bool nib_arena_counts(const nib_arena *arena);

#endif
