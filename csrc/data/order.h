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

/* Supervised tokens of the sample at an index of the data set. */
typedef nib_status (*nib_mixture_count)(const void *data, int64_t index, int64_t *supervised);

/* How far the schedule of the weighted sources was followed, and its last samples: what it computes anew if it is lost.
 */
typedef struct nib_mixture_state nib_mixture_state;

/* The samples of a run over several sources. An epoch has as many draws as there are samples. A source without a weight
 * has each of its samples once in it. The draws of the others are theirs together, and each goes to the source whose
 * turn it is, so that over any prefix of the run the supervised tokens of each are its share of theirs to within one
 * sample. A source has all its samples once before one comes again.
 *
 * Whose turn it is, is WF2Q (Bennett & Zhang, "WF2Q: Worst-case Fair Weighted Fair Queueing", INFOCOM 1996), a sample
 * being a packet of as many supervised tokens: among the sources that have had no more than their share, the one that
 * would first have had the whole of its next sample, had all been served at once. Owned; nib_mixture_free. */
typedef struct {
    int count;
    bool shuffle;
    uint64_t seed;
    int64_t epoch_size;   /* draws an epoch */
    int64_t shared;       /* of them, draws of the weighted sources: numbers 0 .. shared - 1 */
    int64_t *first_draw;  /* [count + 1] of a source without a weight, within an epoch */
    int64_t *first_index; /* [count + 1] of a source's samples in the data set */
    double *share;        /* [count] of the weighted sources' supervised tokens; 0: no weight */
    nib_mixture_count supervised;
    const void *data;
    nib_mixture_state *state; /* NULL: no source has a weight */
} nib_mixture;

/* Fails with NIB_ERROR_DATA if there is no sample at all, or a weighted source has none. data: for `supervised`, must
 * outlive the mixture. */
nib_status nib_mixture_build(const nib_mixture_source *sources, int count, uint64_t seed, bool shuffle,
                             nib_mixture_count supervised, const void *data, nib_mixture *mixture);
/* Index in the data set of the sample at position `cursor` of the run: a pure function of sources, seed and cursor.
 * With shuffle, sources without a weight and the others together are interleaved at random; without it the weighted
 * ones come first in an epoch, then the others one by one, rows in file order. Without weights it costs the same at any
 * cursor; with weights it goes through all draws before the first cursor that it is asked for. One thread at a time. */
nib_status nib_mixture_sample(const nib_mixture *mixture, int64_t cursor, int64_t *index);
void nib_mixture_free(nib_mixture *mixture);

#endif
