#include "data/fingerprints.h"

#include "base/memory.h"

#include <string.h>

/* Fingerprints that are looked at in one pass: 64 MiB of them. */
#define PASS_FINGERPRINTS ((int64_t)4 << 20)

/* 0 marks an empty place, so the fingerprint 0 is kept as 1. */
static uint64_t as_kept(uint64_t fingerprint) { return fingerprint == 0 ? 1 : fingerprint; }

/* Its place in the table, or the empty one where it belongs. */
static size_t place_of(const nib_fingerprints *set, uint64_t kept)
{
    size_t i = kept & (set->capacity - 1);
    while (set->place[i] != 0 && set->place[i] != kept) i = (i + 1) & (set->capacity - 1);
    return i;
}

bool nib_fingerprints_has(const nib_fingerprints *set, uint64_t fingerprint)
{
    return set->capacity > 0 && set->place[place_of(set, as_kept(fingerprint))] != 0;
}

bool nib_fingerprints_add(nib_fingerprints *set, uint64_t fingerprint, bool *known)
{
    if (2 * (set->used + 1) > set->capacity) {
        nib_fingerprints larger = {.capacity = set->capacity == 0 ? 1024 : 2 * set->capacity};
        bool ignored;
        larger.place = nib_calloc(larger.capacity, sizeof *larger.place);
        if (larger.place == NULL) return false;
        for (size_t i = 0; i < set->capacity; i++)
            if (set->place[i] != 0) nib_fingerprints_add(&larger, set->place[i], &ignored);
        nib_free(set->place);
        *set = larger;
    }
    size_t i = place_of(set, as_kept(fingerprint));
    *known = set->place[i] != 0;
    set->used += !*known;
    set->place[i] = as_kept(fingerprint);
    return true;
}

void nib_fingerprints_clear(nib_fingerprints *set)
{
    if (set->capacity > 0) memset(set->place, 0, set->capacity * sizeof *set->place);
    set->used = 0;
}

void nib_fingerprints_free(nib_fingerprints *set)
{
    nib_free(set->place);
    *set = (nib_fingerprints){0};
}

uint64_t nib_repetition_passes(int64_t count) { return (uint64_t)(count / PASS_FINGERPRINTS) + 1; }

bool nib_repetitions_count(nib_repetitions *r, uint64_t fingerprint, int64_t *repetitions)
{
    bool known;
    if ((fingerprint >> 32) % r->passes != r->pass) return true;
    if (!nib_fingerprints_add(&r->seen, fingerprint, &known)) return false;
    *repetitions += known;
    return true;
}
