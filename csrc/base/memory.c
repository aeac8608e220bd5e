#include "base/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

void *nib_calloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - 2 * ALIGNMENT) return NULL;
    bytes = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT; /* at least one unit, so that zero bytes is a block too */
    void *block = aligned_alloc(ALIGNMENT, bytes);
    if (block != NULL) memset(block, 0, bytes);
    return block;
}

void *nib_recalloc(void *block, size_t old_count, size_t new_count, size_t size)
{
    void *grown = nib_calloc(new_count, size);
    if (grown == NULL) return NULL;
    size_t kept = old_count < new_count ? old_count : new_count;
    if (block != NULL && kept > 0) memcpy(grown, block, kept * size);
    nib_free(block);
    return grown;
}

void nib_free(void *block) { free(block); }

bool nib_grow(void *items, size_t *capacity, size_t needed, size_t item_size)
{
    if (needed <= *capacity) return true;
    size_t larger = *capacity < 8 ? 8 : *capacity;
    while (larger < needed) {
        if (larger > SIZE_MAX / 2) return false;
        larger *= 2;
    }
    void *block;
    memcpy(&block, items, sizeof block); /* items is a T **, read without aliasing it as void ** */
    void *grown = nib_recalloc(block, *capacity, larger, item_size);
    if (grown == NULL) return false;
    memcpy(items, &grown, sizeof grown);
    *capacity = larger;
    return true;
}

#define CHUNK_BYTES    ((size_t)64 * 1024)
#define POOL_ALIGNMENT 16

struct nib_pool_chunk {
    nib_pool_chunk *next;
    size_t used, size; /* of data */
    _Alignas(POOL_ALIGNMENT) char data[];
};

void *nib_pool_alloc(nib_pool *pool, size_t size)
{
    if (size > SIZE_MAX / 2) return NULL;
    size = (size + POOL_ALIGNMENT - 1) / POOL_ALIGNMENT * POOL_ALIGNMENT;
    nib_pool_chunk *chunk = pool->chunks;
    if (chunk == NULL || size > chunk->size - chunk->used) {
        size_t capacity = size > CHUNK_BYTES / 4 ? size : CHUNK_BYTES;
        size_t bytes = sizeof *chunk + capacity;
        if (pool->limit != 0 && (bytes > pool->limit || pool->total > pool->limit - bytes)) {
            pool->limited = true;
            return NULL;
        }
        chunk = calloc(1, bytes);
        if (chunk == NULL) return NULL;
        chunk->size = capacity;
        pool->total += bytes;
        /* A chunk of one large block goes behind the current one, whose rest stays usable. */
        if (pool->chunks != NULL && capacity == size) {
            chunk->next = pool->chunks->next;
            pool->chunks->next = chunk;
        } else {
            chunk->next = pool->chunks;
            pool->chunks = chunk;
        }
    }
    void *block = chunk->data + chunk->used;
    chunk->used += size;
    return block;
}

char *nib_pool_copy(nib_pool *pool, const char *text, size_t length)
{
    char *copy = nib_pool_alloc(pool, length + 1);
    if (copy != NULL && length > 0) memcpy(copy, text, length);
    return copy;
}

void nib_pool_free(nib_pool *pool)
{
    for (nib_pool_chunk *chunk = pool->chunks, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    pool->chunks = NULL;
    pool->total = 0;
}
