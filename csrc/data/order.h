/* The order of samples: keyed permutations, so that resume state is one integer and world size appears nowhere. */
#ifndef NIB_ORDER_H
#define NIB_ORDER_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

/* Image of index under a pseudorandom permutation of 0 .. size-1: a balanced Feistel network with cycle walking
 * (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). size > 0, 0 <= index < size. */
int64_t nib_permutation(uint64_t key, int64_t size, int64_t index);

/* The sample at position `cursor` of a run over `size` samples (cursor counts over epochs; each epoch is its own
 * permutation; without shuffle, file order). */
int64_t nib_order_sample(uint64_t seed, bool shuffle, int64_t size, int64_t cursor);

/* One source of a mixture; its samples are consecutive in the data set, sources in order. */
typedef struct {
    int64_t samples;
    int64_t supervised_tokens; /* of all its samples */
    double weight;             /* share among the sources that state one; 0: every sample once an epoch */
} nib_mixture_source;

/* An epoch of a mixture: of each source a fixed number of draws. Weighted sources share the number of their samples so
 * that their supervised tokens are in the ratio of the weights; a source drawn more often than it has samples starts
 * over, one drawn less goes on where it stopped in the next epoch. Owned; free with nib_mixture_free. */
typedef struct {
    int count;
    bool shuffle;
    uint64_t seed;
    int64_t epoch_size;   /* draws an epoch */
    int64_t *first_draw;  /* [count + 1] of a source within an epoch */
    int64_t *first_index; /* [count + 1] of a source's samples in the data set */
} nib_mixture;

/* Fails with NIB_ERROR_DATA if there is no sample at all, or a weighted source has none. */
nib_status nib_mixture_build(const nib_mixture_source *sources, int count, uint64_t seed, bool shuffle,
                             nib_mixture *mixture);
/* Index in the data set of the sample at position `cursor` of the run. With shuffle sources are interleaved at random,
 * without they follow each other, rows in file order. */
int64_t nib_mixture_sample(const nib_mixture *mixture, int64_t cursor);
void nib_mixture_free(nib_mixture *mixture);

#endif
