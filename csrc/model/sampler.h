/* The choice of the next token from its logits. */
#ifndef NIB_SAMPLER_H
#define NIB_SAMPLER_H

#include "model/generate.h"

typedef struct {
    float logit;
    int32_t id;
} nib_candidate;

/* Greedy at temperature 0 (of equal logits the lowest id). Otherwise, in the order of transformers' warpers: logits are
 * divided by the temperature, the top_k largest are kept, of these the smallest set of the most probable whose
 * probabilities sum to top_p (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020), and one is drawn.
 * The random number is a function of options->seed and `position` alone, so that a sequence's text does not depend on
 * what else is in its batch.
 *
 * logits  host [V]
 * work    [V], overwritten
 * NIB_ERROR_DATA if a logit is NaN or infinite. */
nib_status nib_sample(const float *logits, int64_t V, const nib_generate_options *options, int64_t position,
                      nib_candidate *work, int32_t *id);

#endif
