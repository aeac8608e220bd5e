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

/* Samples that can be asked for again at no cost: those of any step, and more. */
enum { RECENT = 8192 };

typedef struct {
    int64_t drawn;  /* samples that it has given */
    int64_t tokens; /* supervised, of those */
    int64_t next;   /* index in the data set of the sample that comes next */
    int64_t next_tokens;
    bool known; /* are next and next_tokens set? */
} source_state;

struct nib_mixture_state {
    int64_t cursor; /* draws that were followed */
    double tokens;  /* supervised, of all weighted sources */
    source_state *source;
    int64_t recent[RECENT]; /* of cursor i at i % RECENT */
};

/* The weighted sources' shares; they have at least one supervised token each. */
static nib_status read_shares(const nib_mixture_source *sources, nib_mixture *m)
{
    double all = 0;
    for (int s = 0; s < m->count; s++) {
        if (sources[s].weight <= 0) continue;
        if (sources[s].samples == 0 || sources[s].supervised_tokens == 0)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "data source %d has a weight of %g and no supervised token to draw from; "
                            "remove it or its weight",
                            s, sources[s].weight);
        all += sources[s].weight;
        m->shared += sources[s].samples;
    }
    for (int s = 0; s < m->count; s++)
        if (sources[s].weight > 0) m->share[s] = sources[s].weight / all;
    return NIB_OK;
}

nib_status nib_mixture_build(const nib_mixture_source *sources, int count, uint64_t seed, bool shuffle,
                             nib_mixture_count supervised, const void *data, nib_mixture *m)
{
    nib_status status = NIB_OK;
    *m = (nib_mixture){.count = count, .seed = seed, .shuffle = shuffle, .supervised = supervised, .data = data};
    m->first_draw = nib_calloc((size_t)count + 1, sizeof *m->first_draw);
    m->first_index = nib_calloc((size_t)count + 1, sizeof *m->first_index);
    m->share = nib_calloc((size_t)count, sizeof *m->share);
    if (m->first_draw == NULL || m->first_index == NULL || m->share == NULL) goto no_memory;
    NIB_TRY_GOTO(read_shares(sources, m), done);
    m->first_draw[0] = m->shared;
    for (int s = 0; s < count; s++) {
        m->first_draw[s + 1] = m->first_draw[s] + (m->share[s] > 0 ? 0 : sources[s].samples);
        m->first_index[s + 1] = m->first_index[s] + sources[s].samples;
    }
    m->epoch_size = m->first_draw[count];
    if (m->epoch_size == 0) status = NIB_FAIL(NIB_ERROR_DATA, "the data holds no sample");
    if (status != NIB_OK || m->shared == 0) goto done;
    m->state = nib_calloc(1, sizeof *m->state);
    if (m->state == NULL) goto no_memory;
    m->state->source = nib_calloc((size_t)count, sizeof *m->state->source);
    if (m->state->source != NULL) goto done;
no_memory:
    status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a mixture of %d data sources", count);
done:
    if (status != NIB_OK) nib_mixture_free(m);
    return status;
}

/* Sample `nth`, counted over the run, of a source. */
static int64_t sample_of(const nib_mixture *m, int source, int64_t nth)
{
    int64_t size = m->first_index[source + 1] - m->first_index[source];
    /* Streams 0 .. epochs of the seed order the epoch; the sources' own orders come from keys far from them. */
    uint64_t seed = nib_random_key(m->seed, UINT64_MAX - (uint64_t)source);
    return m->first_index[source] + nib_order_sample(seed, m->shuffle, size, nth);
}

/* The weighted source whose turn it is. */
static nib_status next_source(const nib_mixture *m, int *chosen)
{
    /* Rounding of share * tokens must not keep a source waiting whose share is exactly used up: well under a token, and
     * more than a product of 2^42 tokens is off by. */
    const double slack = 1.0 / 1024;
    double first_end = 0;
    *chosen = -1;
    for (int s = 0; s < m->count; s++) {
        source_state *state = &m->state->source[s];
        if (m->share[s] <= 0 || (double)state->tokens > m->share[s] * m->state->tokens + slack) continue;
        if (!state->known) {
            state->next = sample_of(m, s, state->drawn);
            NIB_TRY(m->supervised(m->data, state->next, &state->next_tokens));
            state->known = true;
        }
        double end = (double)(state->tokens + state->next_tokens) / m->share[s];
        if (*chosen >= 0 && end >= first_end) continue;
        *chosen = s;
        first_end = end;
    }
    return *chosen >= 0 ? NIB_OK : NIB_FAIL(NIB_ERROR_INTERNAL, "mixture: no source's turn");
}

/* Follows the schedule by one draw of the weighted sources. */
static nib_status draw_shared(const nib_mixture *m, int64_t *index)
{
    int chosen;
    NIB_TRY(next_source(m, &chosen));
    source_state *state = &m->state->source[chosen];
    *index = state->next;
    state->tokens += state->next_tokens;
    state->drawn++;
    state->known = false;
    m->state->tokens += (double)state->next_tokens;
    return NIB_OK;
}

/* The sample of a draw that belongs to a source without a weight. */
static int64_t draw_own(const nib_mixture *m, int64_t draw, int64_t epoch)
{
    int source = 0;
    while (draw >= m->first_draw[source + 1]) source++;
    int64_t per_epoch = m->first_draw[source + 1] - m->first_draw[source];
    return sample_of(m, source, epoch * per_epoch + draw - m->first_draw[source]);
}

/* The same for any draw of a mixture with weights: all draws before it have been followed. */
static nib_status follow(const nib_mixture *m)
{
    nib_mixture_state *state = m->state;
    int64_t draw = nib_order_sample(m->seed, m->shuffle, m->epoch_size, state->cursor);
    int64_t *index = &state->recent[state->cursor % RECENT];
    if (draw < m->shared)
        NIB_TRY(draw_shared(m, index));
    else
        *index = draw_own(m, draw, state->cursor / m->epoch_size);
    state->cursor++;
    return NIB_OK;
}

nib_status nib_mixture_sample(const nib_mixture *m, int64_t cursor, int64_t *index)
{
    nib_mixture_state *state = m->state;
    if (state == NULL) {
        int64_t draw = nib_order_sample(m->seed, m->shuffle, m->epoch_size, cursor);
        *index = draw_own(m, draw, cursor / m->epoch_size);
        return NIB_OK;
    }
    if (cursor < state->cursor - RECENT) { /* from the beginning */
        memset(state->source, 0, (size_t)m->count * sizeof *state->source);
        state->cursor = 0;
        state->tokens = 0;
    }
    while (state->cursor <= cursor) NIB_TRY(follow(m));
    *index = state->recent[cursor % RECENT];
    return NIB_OK;
}

void nib_mixture_free(nib_mixture *m)
{
    if (m == NULL) return;
    if (m->state != NULL) nib_free(m->state->source);
    nib_free(m->state);
    nib_free(m->first_draw);
    nib_free(m->first_index);
    nib_free(m->share);
    memset(m, 0, sizeof *m);
}
