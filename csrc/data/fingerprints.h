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

/* Counts repetitions among any number of fingerprints in bounded memory: all are given once for each pass, in the same
 * order, and a pass looks at its share of them. Zero-initialise, set passes, free seen. */
typedef struct {
    nib_fingerprints seen;
    uint64_t passes, pass;
} nib_repetitions;

/* As many passes as `count` fingerprints take. */
uint64_t nib_repetition_passes(int64_t count);
/* *repetitions grows by one if the fingerprint is this pass's and was given before. false: no memory. */
bool nib_repetitions_count(nib_repetitions *r, uint64_t fingerprint, int64_t *repetitions);

#endif
