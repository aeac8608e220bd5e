#include "data/order.h"

#include "base/memory.h"
#include "base/random.h"

#include <string.h>

/* Luby and Rackoff need four rounds against an adversary; six cost nothing here and mix small domains well. */
enum { FEISTEL_ROUNDS = 6 };

static uint64_t feistel(uint64_t key, int half_bits, uint64_t value)
{
    uint64_t mask = (UINT64_C(1) << half_bits) - 1, left = value >> half_bits, right = value & mask;
    for (int round = 0; round < FEISTEL_ROUNDS; round++) {
        uint32_t random[4];
        nib_philox(key, (uint64_t)round, right, random);
        uint64_t next = left ^ (((uint64_t)random[1] << 32 | random[0]) & mask);
        left = right;
        right = next;
    }
    return left << half_bits | right;
}

int64_t nib_permutation(uint64_t key, int64_t size, int64_t index)
{
    int half_bits = 1;
    while ((size - 1) >> (2 * half_bits) != 0) half_bits++;
    /* The domain is below four times the size (or 4), so the walk takes four steps on average. */
    uint64_t value = (uint64_t)index;
    do value = feistel(key, half_bits, value);
    while (value >= (uint64_t)size);
    return (int64_t)value;
}

int64_t nib_order_sample(uint64_t seed, bool shuffle, int64_t size, int64_t cursor)
{
    int64_t epoch = cursor / size, index = cursor % size;
    return shuffle ? nib_permutation(nib_random_key(seed, (uint64_t)epoch), size, index) : index;
}

/* Draws of each source in an epoch: for weighted ones in proportion to weight / mean supervised tokens, rounded so that
 * they add up (largest remainder by accumulation: the rounding error is carried to the next source). */
static nib_status count_draws(const nib_mixture_source *sources, int count, int64_t *draws)
{
    double rate_sum = 0, carried = 0;
    int64_t pool = 0, given = 0;
    for (int s = 0; s < count; s++) {
        if (sources[s].weight <= 0) continue;
        if (sources[s].samples == 0 || sources[s].supervised_tokens == 0)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "data source %d has a weight of %g and no supervised token to draw from; "
                            "remove it or its weight",
                            s, sources[s].weight);
        rate_sum += sources[s].weight * (double)sources[s].samples / (double)sources[s].supervised_tokens;
        pool += sources[s].samples;
    }
    for (int s = 0; s < count; s++) {
        if (sources[s].weight <= 0) {
            draws[s] = sources[s].samples;
            continue;
        }
        double rate = sources[s].weight * (double)sources[s].samples / (double)sources[s].supervised_tokens;
        carried += (double)pool * rate / rate_sum;
        draws[s] = (int64_t)(carried + 0.5) - given;
        given += draws[s];
    }
    return NIB_OK;
}

nib_status nib_mixture_build(const nib_mixture_source *sources, int count, uint64_t seed, bool shuffle,
                             nib_mixture *mixture)
{
    nib_status status = NIB_OK;
    int64_t *draws = nib_calloc((size_t)count + 1, sizeof *draws);
    memset(mixture, 0, sizeof *mixture);
    mixture->first_draw = nib_calloc((size_t)count + 1, sizeof *mixture->first_draw);
    mixture->first_index = nib_calloc((size_t)count + 1, sizeof *mixture->first_index);
    if (draws == NULL || mixture->first_draw == NULL || mixture->first_index == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a mixture of %d data sources", count);
        goto done;
    }
    NIB_TRY_GOTO(count_draws(sources, count, draws), done);
    for (int s = 0; s < count; s++) {
        mixture->first_draw[s + 1] = mixture->first_draw[s] + draws[s];
        mixture->first_index[s + 1] = mixture->first_index[s] + sources[s].samples;
    }
    mixture->count = count;
    mixture->seed = seed;
    mixture->shuffle = shuffle;
    mixture->epoch_size = mixture->first_draw[count];
    if (mixture->epoch_size == 0) status = NIB_FAIL(NIB_ERROR_DATA, "the data holds no sample");
done:
    nib_free(draws);
    if (status != NIB_OK) nib_mixture_free(mixture);
    return status;
}

int64_t nib_mixture_sample(const nib_mixture *mixture, int64_t cursor)
{
    int64_t epoch = cursor / mixture->epoch_size;
    int64_t draw = nib_order_sample(mixture->seed, mixture->shuffle, mixture->epoch_size, cursor);
    int source = 0;
    while (draw >= mixture->first_draw[source + 1]) source++;
    int64_t per_epoch = mixture->first_draw[source + 1] - mixture->first_draw[source];
    int64_t size = mixture->first_index[source + 1] - mixture->first_index[source];
    int64_t nth = epoch * per_epoch + draw - mixture->first_draw[source];
    /* Streams 0 .. epochs of the seed order the epoch; the sources' own orders come from keys far from them. */
    uint64_t seed = nib_random_key(mixture->seed, UINT64_MAX - (uint64_t)source);
    return mixture->first_index[source] + nib_order_sample(seed, mixture->shuffle, size, nth);
}

void nib_mixture_free(nib_mixture *mixture)
{
    if (mixture == NULL) return;
    nib_free(mixture->first_draw);
    nib_free(mixture->first_index);
    memset(mixture, 0, sizeof *mixture);
}
