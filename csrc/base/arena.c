#include "base/arena.h"

#include <string.h>

nib_status nib_arena_take(nib_arena *arena, int64_t count, size_t size, void *pointer_to_pointer)
{
    size_t wanted, bytes, end;
    void *pointer = NULL;
    if (count < 0 || __builtin_mul_overflow((size_t)count, size, &wanted) ||
        __builtin_add_overflow(wanted, NIB_ARENA_ALIGNMENT - 1 + arena->gap, &bytes) ||
        __builtin_add_overflow(arena->used, bytes / NIB_ARENA_ALIGNMENT * NIB_ARENA_ALIGNMENT, &end))
        return NIB_FAIL(NIB_ERROR_MEMORY, "arena '%s': %lld x %zu bytes overflow", arena->name, (long long)count, size);
    size_t peak = end > arena->peak ? end : arena->peak;
    if (arena->grow != NULL && (end > arena->capacity || (arena->used == 0 && peak > arena->capacity))) {
        arena->peak = peak;
        NIB_TRY(arena->grow(arena, end - arena->used, &pointer));
    } else if (arena->block != NULL) {
        if (end > arena->capacity)
            return NIB_FAIL(NIB_ERROR_MEMORY, "arena '%s' is full: %zu bytes asked for, %zu of %zu left", arena->name,
                            end - arena->used, arena->capacity - arena->used, arena->capacity);
        pointer = arena->block + arena->used;
        if (arena->given != NULL) arena->given(arena, pointer, wanted);
    }
    arena->used = end;
    arena->peak = peak;
    memcpy(pointer_to_pointer, &pointer, sizeof pointer); /* a T **, written without aliasing it as void ** */
    return NIB_OK;
}

void nib_arena_reset(nib_arena *arena, size_t mark) { arena->used = mark; }

bool nib_arena_counts(const nib_arena *arena) { return arena->block == NULL && arena->grow == NULL; }
