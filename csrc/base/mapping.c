#include "base/mapping.h"

#include <stdatomic.h>
#include <stddef.h>

enum { MOST = 4096, CLAIMED = 1 };

/* A fixed table, so that a handler can walk it whatever was interrupted. begin is 0 where nothing is mapped, and is
 * written last: who reads it finds the rest. */
static struct {
    atomic_uintptr_t begin;
    uint64_t size;
    const char *path;
} mappings[MOST];

void nib_mapping_add(const void *begin, uint64_t size, const char *path)
{
    for (int i = 0; i < MOST; i++) {
        uintptr_t none = 0;
        if (!atomic_compare_exchange_strong(&mappings[i].begin, &none, CLAIMED)) continue;
        mappings[i].size = size;
        mappings[i].path = path;
        atomic_store(&mappings[i].begin, (uintptr_t)begin);
        return;
    }
}

void nib_mapping_remove(const void *begin)
{
    for (int i = 0; i < MOST; i++)
        if (atomic_load(&mappings[i].begin) == (uintptr_t)begin) atomic_store(&mappings[i].begin, 0);
}

const char *nib_mapping_find(const void *address, uint64_t *offset, uint64_t *size)
{
    for (int i = 0; i < MOST; i++) {
        uintptr_t begin = atomic_load(&mappings[i].begin), at = (uintptr_t)address;
        if (begin <= CLAIMED || at < begin || at - begin >= mappings[i].size) continue;
        *offset = at - begin;
        *size = mappings[i].size;
        return mappings[i].path;
    }
    return NULL;
}
