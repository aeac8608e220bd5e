/* The order of samples: a keyed permutation, so that resume state is one integer and world size appears nowhere. */
#ifndef NIB_ORDER_H
#define NIB_ORDER_H

#include <stdbool.h>
#include <stdint.h>

/* Image of index under a pseudorandom permutation of 0 .. size-1: a balanced Feistel network with cycle walking
 * (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). size > 0, 0 <= index < size. */
int64_t nib_permutation(uint64_t key, int64_t size, int64_t index);

/* The sample at position `cursor` of a run over `size` samples (cursor counts over epochs; each epoch is its own
 * permutation; without shuffle, file order). */
int64_t nib_order_sample(uint64_t seed, bool shuffle, int64_t size, int64_t cursor);

#endif
