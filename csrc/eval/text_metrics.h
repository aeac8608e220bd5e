/* Scores of a generated answer against the reference answer. Texts are NUL-terminated UTF-8. */
#ifndef NIB_TEXT_METRICS_H
#define NIB_TEXT_METRICS_H

#include "base/status.h"

#include <stdbool.h>

/* The same bytes once white space (Unicode's) is taken off both ends. Case and punctuation count. */
bool nib_exact_match(const char *prediction, const char *reference);

/* F1 over bags of words as SQuAD's evaluation script defines it (Rajpurkar et al., "Know What You Don't Know", 2018):
 * lower case, ASCII punctuation dropped, the words a, an and the dropped, split at white space. If either text has no
 * word left: 1 if both have none, else 0. NIB_ERROR_MEMORY. */
nib_status nib_token_f1(const char *prediction, const char *reference, double *f1);

/* ROUGE-L, F-measure (Lin, "ROUGE", 2004), on the tokens of Google's rouge_score without a stemmer: lower case, runs of
 * [a-z0-9]; so text in other scripts has no token. 0 if either text has none. Time and memory grow with the product,
 * respectively the smaller, of the two lengths. NIB_ERROR_MEMORY. */
nib_status nib_rouge_l(const char *prediction, const char *reference, double *rouge_l);

#endif
