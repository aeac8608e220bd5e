/* Generation: batches of prompts decoded together over one key/value cache; a prefix that prompts share is prefilled
 * once. */
#ifndef NIB_GENERATE_H
#define NIB_GENERATE_H

#include "model/model.h"

typedef struct {
    int64_t max_new_tokens; /* > 0 */
    double temperature;     /* 0: greedy */
    double top_p;           /* 1: off */
    int64_t top_k;          /* 0: off */
    uint64_t seed;
    const int32_t *stop; /* ids that end a sequence (not part of the output) */
    int stop_count;
} nib_generate_options;

typedef struct {
    const int32_t *ids;
    int32_t length; /* > 0 */
} nib_prompt;

/* Called for every new token of sequence `sequence`; returning false ends that sequence. */
typedef bool (*nib_generate_token)(void *user, int sequence, int32_t id);

/* Borrows the model, whose reserved activations and gradients stay untouched: a model in training can generate between
 * steps. */
typedef struct nib_generator nib_generator;

/* A key/value cache for `capacity` tokens in all, over at most max_batch sequences: what the prompts hold, shared
 * prefixes once, and max_new_tokens for each. NIB_ERROR_MEMORY. */
nib_status nib_generator_create(nib_model *model, int64_t capacity, int64_t max_batch, nib_generator **generator);
void nib_generator_free(nib_generator *generator);
/* Bytes of cache, activations and logits. */
size_t nib_generator_bytes(const nib_generator *generator);

/* The next conversation starts from an empty cache, so that its text is that of a new generator: keeping a common
 * beginning changes the order of summation. */
void nib_generator_forget(nib_generator *generator);

/* Decodes all prompts (count <= max_batch) from an empty cache. NIB_ERROR_DATA if prompts and new tokens do not fit
 * the cache, an id is none of the model's, or a logit is not finite. */
nib_status nib_generate(nib_generator *generator, const nib_prompt *prompts, int count,
                        const nib_generate_options *options, nib_generate_token on_token, void *user);
/* A conversation: keeps the cache of the common beginning of `prompt` and what is cached already (one sequence); the
 * model's weights must not have changed since. A full cache ends the answer. */
nib_status nib_generate_continue(nib_generator *generator, nib_prompt prompt, const nib_generate_options *options,
                                 nib_generate_token on_token, void *user);

#endif
