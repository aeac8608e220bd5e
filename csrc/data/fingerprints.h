/* A set of 64-bit fingerprints: open addressing, at most half full. Zero-initialise. */
#ifndef NIB_FINGERPRINTS_H
#define NIB_FINGERPRINTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t *place; /* 0: empty */
    size_t capacity, used;
} nib_fingerprints;

/* Adds one; *known: was it there? false: no memory, nothing changed. */
bool nib_fingerprints_add(nib_fingerprints *set, uint64_t fingerprint, bool *known);
bool nib_fingerprints_has(const nib_fingerprints *set, uint64_t fingerprint);
void nib_fingerprints_clear(nib_fingerprints *set); /* keeps the memory */
void nib_fingerprints_free(nib_fingerprints *set);

#endif
