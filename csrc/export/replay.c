#include "export/replay.h"
#include "base/file.h"
#include "base/memory.h"

#include <string.h>

void nib_replay_free(nib_replay *replay)
{
    for (int i = 0; i < NIB_REPLAY_ITEMS; i++) {
        nib_token_list_free(&replay->item[i].prompt);
        nib_token_list_free(&replay->item[i].answer);
        nib_free(replay->item[i].content);
    }
    *replay = (nib_replay){0};
}

typedef struct {
    nib_token_list answer[NIB_REPLAY_ITEMS];
    bool failed, rehearsed; /* rehearsed: the first token ends each, since those after it take nothing more */
} answers;

static bool keep_token(void *user, int sequence, int32_t id)
{
    answers *a = user;
    nib_token_list *list = &a->answer[sequence];
    if (!nib_grow(&list->ids, &list->capacity, list->count + 1, sizeof id)) return !(a->failed = true);
    list->ids[list->count++] = id;
    return !a->rehearsed;
}

static nib_status generate(nib_model *model, const nib_replay *replay, const int32_t *stop, int stop_count, answers *a,
                           size_t *bytes)
{
    nib_prompt prompts[NIB_REPLAY_ITEMS];
    nib_generator *generator;
    int64_t capacity = 0;
    nib_generate_options options = {
        .max_new_tokens = NIB_REPLAY_ANSWER, .top_p = 1.0, .stop = stop, .stop_count = stop_count};
    for (int i = 0; i < replay->count; i++) {
        prompts[i] = (nib_prompt){replay->item[i].prompt.ids, (int32_t)replay->item[i].prompt.count};
        capacity += prompts[i].length + NIB_REPLAY_ANSWER;
    }
    NIB_TRY(nib_generator_create(model, capacity, replay->count, &generator));
    nib_status status = nib_generate(generator, prompts, replay->count, &options, keep_token, a);
    if (bytes != NULL) *bytes = nib_generator_bytes(generator);
    nib_generator_free(generator);
    if (status == NIB_OK && a->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the answers of a replay");
    return status;
}

static void free_answers(answers *a)
{
    for (int i = 0; i < NIB_REPLAY_ITEMS; i++) nib_token_list_free(&a->answer[i]);
}

nib_status nib_replay_answer(nib_model *model, const int32_t *stop, int stop_count, nib_replay *replay, size_t *bytes)
{
    answers a = {.rehearsed = bytes != NULL};
    if (bytes != NULL) *bytes = 0;
    if (replay->count == 0) return NIB_OK;
    nib_status status = generate(model, replay, stop, stop_count, &a, bytes);
    for (int i = 0; i < replay->count && status == NIB_OK; i++) {
        nib_replay_item *item = &replay->item[i];
        nib_token_list_free(&item->answer);
        item->answer = a.answer[i];
        item->ended = item->answer.count < NIB_REPLAY_ANSWER;
        a.answer[i] = (nib_token_list){0};
    }
    free_answers(&a);
    return status;
}

/* Where an answer and the saved one part: `count` tokens are the same; -1 stands for an end. */
typedef struct {
    size_t count;
    int32_t found, saved;
} parting;

static int32_t token_at(const nib_token_list *answer, size_t at) { return at < answer->count ? answer->ids[at] : -1; }

static bool compare(const nib_replay_item *item, const nib_token_list *found, parting *p)
{
    for (p->count = 0; p->count < NIB_REPLAY_ANSWER; p->count++) {
        p->found = token_at(found, p->count);
        p->saved = token_at(&item->answer, p->count);
        if (p->found != p->saved) return false;
        if (p->found < 0) break;
    }
    return true;
}

/* nll of each label behind the prompt and the first `count` tokens of the saved answer. */
static nib_status score_labels(nib_model *model, const nib_replay_item *item, size_t count, const int32_t *label,
                               int64_t labels, float *nll)
{
    enum { MOST = NIB_REPLAY_PROMPT + NIB_REPLAY_ANSWER };
    int32_t id[MOST], position[MOST], end[MOST], row[NIB_REPLAY_PROMPT];
    float weight[NIB_REPLAY_PROMPT];
    int64_t T = 0;
    for (size_t i = 0; i < item->prompt.count; i++) id[T++] = item->prompt.ids[i];
    for (size_t i = 0; i < count; i++) id[T++] = item->answer.ids[i];
    for (int64_t t = 0; t < T; t++) {
        position[t] = (int32_t)t;
        end[t] = (int32_t)T;
    }
    for (int64_t n = 0; n < labels; n++) {
        row[n] = (int32_t)T - 1;
        weight[n] = 1.0f;
    }
    nib_micro_batch batch = {.T = T,
                             .id = id,
                             .position = position,
                             .end = end,
                             .N = labels,
                             .target_row = row,
                             .target_label = (int32_t *)(uintptr_t)label,
                             .target_weight = weight};
    NIB_TRY(nib_model_reserve(model, T, labels, NIB_RECOMPUTE_NONE, false));
    return nib_model_score_batch(model, &batch, nll);
}

/* How much likelier the found token is than the saved one; an end is the likeliest of the ids that end a turn. */
static nib_status measure_gap(nib_model *model, const nib_replay_item *item, const parting *p, const int32_t *stop,
                              int stop_count, double *gap)
{
    int32_t label[2 * NIB_REPLAY_PROMPT];
    float nll[2 * NIB_REPLAY_PROMPT], best[2];
    int64_t labels = 0, first_saved = 0;
    for (int side = 0; side < 2; side++) {
        int32_t token = side == 0 ? p->found : p->saved;
        if (side == 1) first_saved = labels;
        for (int s = 0; s < stop_count && s < NIB_REPLAY_PROMPT / 2 && token < 0; s++) label[labels++] = stop[s];
        if (token >= 0) label[labels++] = token;
    }
    NIB_TRY(score_labels(model, item, p->count, label, labels, nll));
    for (int side = 0; side < 2; side++) {
        int64_t first = side == 0 ? 0 : first_saved, last = side == 0 ? first_saved : labels;
        best[side] = nll[first];
        for (int64_t n = first; n < last; n++) best[side] = nll[n] < best[side] ? nll[n] : best[side];
    }
    *gap = (double)best[1] - (double)best[0];
    return NIB_OK;
}

static void name_token(const nib_tokenizer *tokenizer, int32_t id, nib_buffer *out)
{
    const char *text = tokenizer == NULL || id < 0 ? NULL : nib_tokenizer_text(tokenizer, id);
    if (id < 0) {
        nib_buffer_text(out, "the end");
        return;
    }
    nib_buffer_format(out, "token %d", id);
    if (text == NULL) return;
    nib_buffer_char(out, ' ');
    nib_buffer_json_string(out, text, strlen(text), false);
}

static nib_status refuse(const nib_tokenizer *tokenizer, int prompt, const parting *p, double gap, double limit)
{
    nib_buffer found = {0}, saved = {0};
    name_token(tokenizer, p->found, &found);
    name_token(tokenizer, p->saved, &saved);
    nib_status status =
        found.failed || saved.failed
            ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory to name a token")
            : NIB_FAIL(
                  NIB_ERROR_DATA,
                  "replay: prompt %d, token %zu of the answer is %s, in training it was %s; it is %.3g nats likelier, "
                  "and up to %.3g would be a near tie: what was exported does not say what was trained",
                  prompt + 1, p->count + 1, found.data, saved.data, gap, limit);
    nib_buffer_free(&found);
    nib_buffer_free(&saved);
    return status;
}

nib_status nib_replay_compare(nib_model *model, const nib_replay *replay, const int32_t *stop, int stop_count,
                              const nib_tokenizer *tokenizer, double limit, nib_replay_result *result)
{
    answers a = {0};
    *result = (nib_replay_result){0};
    nib_status status = generate(model, replay, stop, stop_count, &a, NULL);
    for (int i = 0; i < replay->count && status == NIB_OK; i++) {
        parting p;
        double gap;
        bool same = compare(&replay->item[i], &a.answer[i], &p);
        result->tokens += (int64_t)p.count + (same && replay->item[i].ended);
        if (same) continue;
        NIB_TRY_GOTO(measure_gap(model, &replay->item[i], &p, stop, stop_count, &gap), done);
        if (gap > limit) {
            status = refuse(tokenizer, i, &p, gap, limit);
            goto done;
        }
        result->near_ties++;
        result->largest = gap > result->largest ? gap : result->largest;
    }
done:
    free_answers(&a);
    return status;
}
