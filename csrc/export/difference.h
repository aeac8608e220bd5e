/* How far two models are from each other: their logits on the same prompts. */
#ifndef NIB_EXPORT_DIFFERENCE_H
#define NIB_EXPORT_DIFFERENCE_H

#include "model/generate.h"

typedef struct {
    double max_abs;   /* largest difference of two logits, each row shifted to log-probabilities */
    double mean_kl;   /* of the second model's next-token distribution from the first's, in nats, over all positions */
    double same_best; /* share of positions with the same likeliest token */
    long long positions;
} nib_logit_difference;

/* Opens one model after the other, never both, streams its layers and computes in fp32. Holds the logits of both,
 * positions x V floats each. NIB_ERROR_DATA if their vocabularies differ. */
nib_status nib_export_difference(nib_ops *ops, const nib_model_options *first, const nib_model_options *second,
                                 const nib_prompt *prompts, int count, nib_logit_difference *difference);

#endif
