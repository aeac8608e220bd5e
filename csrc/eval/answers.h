/* A model's own answers to the prompts of a data set, against the reference answers. */
#ifndef NIB_ANSWERS_H
#define NIB_ANSWERS_H

#include "data/dataset.h"
#include "model/model.h"

typedef struct {
    int64_t sample;
    const char *prompt; /* as the model saw it, special tokens included */
    const char *output; /* without special tokens */
    const char *reference;
    int64_t tokens; /* generated */
    bool exact_match;
    double f1, rouge_l; /* text_metrics.h */
} nib_answer;

/* Called in order of samples; what it points to lives until it returns. A failure ends the evaluation. */
typedef nib_status (*nib_answer_visitor)(void *user, const nib_answer *answer);

typedef struct {
    int64_t answers, generated_tokens;
    double exact_match, f1, rouge_l; /* means */
} nib_answer_summary;

/* Decodes greedily, `batch` prompts at once, until a turn's terminator, an end of text or max_new_tokens. Samples
 * without a prompt (plain text, token ids) are passed over. limit: samples looked at, spread evenly; all if larger than
 * the data set. The model's reserved activations stay untouched. */
nib_status nib_evaluate_answers(nib_model *model, const nib_dataset *data, const nib_tokenizer *tokenizer,
                                int64_t limit, int64_t batch, int64_t max_new_tokens, nib_answer_visitor visit,
                                void *user, nib_answer_summary *summary);

/* Bytes that nib_evaluate_answers takes beside the model (nib_generator_bytes), by running the prompts, without
 * decoding, on `model`, which is meant to be one in rehearsal. */
nib_status nib_answers_memory(nib_model *model, const nib_dataset *data, int64_t limit, int64_t batch,
                              int64_t max_new_tokens, size_t *bytes);

#endif
