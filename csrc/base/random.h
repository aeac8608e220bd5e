/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
 * No state: the same (key, counter) gives the same bits in any thread, rank or resume. */
#ifndef NIB_RANDOM_H
#define NIB_RANDOM_H

#include <stdint.h>

/* Four 32-bit words for a 64-bit key and a 128-bit counter given as two words. */
void nib_philox(uint64_t key, uint64_t counter_high, uint64_t counter_low, uint32_t out[4]);
/* Uniform in [0, 1) with 24 bits. */
static inline float nib_uniform(uint32_t bits) { return (float)(bits >> 8) * (1.0f / 16777216.0f); }
/* 64-bit mix for deriving keys: key of (seed, stream). */
uint64_t nib_random_key(uint64_t seed, uint64_t stream);

#endif
