/* Host memory: checked allocation, and a pool for the many small objects of a parser.
 *
 * Tensors do not live here: they come from a backend's named, accounted arenas (model/ops.h).
 */
#ifndef NIB_MEMORY_H
#define NIB_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* count * size bytes, zeroed, 64-byte aligned; NULL on overflow or when there is none (never exits). Free with
 * nib_free. count * size = 0 gives a unique pointer. */
void *nib_calloc(size_t count, size_t size);
/* As realloc for blocks of nib_calloc: contents kept, growth zeroed. On failure NULL, and the old block is intact. */
void *nib_recalloc(void *block, size_t old_count, size_t new_count, size_t size);
void nib_free(void *block);

/* Grows an array geometrically so that it holds at least `needed` items. items is a pointer to the array's pointer.
 * false: no memory, nothing changed. */
bool nib_grow(void *items, size_t *capacity, size_t needed, size_t item_size);

/* A pool gives out small blocks and frees all of them at once. Zero-initialise it. */
typedef struct nib_pool_chunk nib_pool_chunk;
typedef struct {
    nib_pool_chunk *chunks;
    size_t total; /* bytes taken from the system */
    size_t limit; /* 0: none. Beyond it allocations fail, which bounds what a hostile file can take. */
    bool limited; /* an allocation failed for the limit */
} nib_pool;
void *nib_pool_alloc(nib_pool *pool, size_t size);                    /* zeroed, 16-byte aligned; NULL: no memory */
char *nib_pool_copy(nib_pool *pool, const char *text, size_t length); /* NUL added */
void nib_pool_free(nib_pool *pool);

#endif
