/* Prompts and what a trained model said to them, saved beside an adapter, so that whoever exports it can show that what
 * is written says the same, token for token. */
#ifndef NIB_REPLAY_H
#define NIB_REPLAY_H

#include "model/generate.h"
#include "tokenizer/tokenizer.h"

#define NIB_REPLAY_FILE   "replay.jsonl"
#define NIB_REPLAY_ITEMS  4
#define NIB_REPLAY_PROMPT 128 /* tokens at most */
#define NIB_REPLAY_ANSWER 12  /* new tokens at most, decoded greedily */

typedef struct {
    nib_token_list prompt, answer;
    bool ended;    /* the answer, by an id that ends a turn */
    char *content; /* of the user's message that the prompt was rendered from; NULL: the prompt is of the data */
    int64_t now;   /* for the rendering */
} nib_replay_item;

typedef struct {
    nib_quantization quantization; /* of the base that answered */
    nib_dtype compute;
    int count;
    nib_replay_item item[NIB_REPLAY_ITEMS];
} nib_replay; /* zero-initialise; free with nib_replay_free */

void nib_replay_free(nib_replay *replay);
/* FOLDER/replay.jsonl, one item a line. Absent: count 0. NIB_ERROR_DATA if it is damaged. */
nib_status nib_replay_read(const char *folder, nib_replay *replay);
nib_status nib_replay_write(const nib_replay *replay, const char *folder);
nib_status nib_replay_remove(const char *folder);

/* Fills in the answers. The model's reserved activations stay untouched. bytes not NULL: the model is in rehearsal, and
 * what is wanted is nib_generator_bytes. */
nib_status nib_replay_answer(nib_model *model, const int32_t *stop, int stop_count, nib_replay *replay, size_t *bytes);

typedef struct {
    int64_t tokens; /* that were the same, ends of answers too */
    int near_ties;  /* prompts whose answer goes another way at a near tie; what follows is not compared */
    double largest; /* of their gaps */
} nib_replay_result;
/* Answers again and compares. Where a token differs, the gap is how much likelier, in nats, the model finds its own
 * than the saved one: up to `limit` it is a near tie, which rounding decides; else NIB_ERROR_DATA names prompt, place,
 * both tokens and the gap. tokenizer (may be NULL): for their texts. */
nib_status nib_replay_compare(nib_model *model, const nib_replay *replay, const int32_t *stop, int stop_count,
                              const nib_tokenizer *tokenizer, double limit, nib_replay_result *result);

#endif
