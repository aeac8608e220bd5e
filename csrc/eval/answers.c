#include "eval/answers.h"
#include "base/memory.h"
#include "eval/text_metrics.h"
#include "model/generate.h"

#include <string.h>

/* A sample that can be asked, and what the model said. */
typedef struct {
    int64_t sample;
    nib_prompt prompt;
    const char *reference;
    nib_token_list output;
} question;

typedef struct {
    question *questions; /* of the data set */
    size_t count, capacity;
    question *batch; /* first of those being decoded */
    bool failed;     /* no memory for an output */
    int32_t *stop;
    int stop_count;
} exam;

static void free_exam(exam *e)
{
    for (size_t i = 0; i < e->count; i++) nib_token_list_free(&e->questions[i].output);
    nib_free(e->questions);
    nib_free(e->stop);
}

static nib_status collect_questions(const nib_dataset *data, int64_t limit, exam *e)
{
    int64_t size = nib_dataset_size(data);
    if (limit > size) limit = size;
    for (int64_t i = 0; i < limit; i++) {
        question q = {.sample = (2 * i + 1) * size / (2 * limit)}; /* the middles of `limit` equal parts */
        if (!nib_dataset_prompt(data, q.sample, &q.prompt.ids, &q.prompt.length, &q.reference) || q.prompt.length == 0)
            continue;
        if (!nib_grow(&e->questions, &e->capacity, e->count + 1, sizeof q))
            return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu questions", e->count);
        e->questions[e->count++] = q;
    }
    return NIB_OK;
}

/* What ends an answer: the turn's terminators of the template, and the model's ends of text. */
static nib_status collect_stops(const nib_model *model, const nib_dataset *data, exam *e)
{
    const nib_model_config *config = nib_model_get_config(model);
    const int32_t *ids;
    int count = nib_dataset_terminators(data, &ids);
    e->stop = nib_calloc((size_t)(count + config->eos_count), sizeof *e->stop);
    if (e->stop == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the ids that end an answer");
    if (count > 0) memcpy(e->stop, ids, (size_t)count * sizeof *ids);
    memcpy(e->stop + count, config->eos, (size_t)config->eos_count * sizeof *ids);
    e->stop_count = count + config->eos_count;
    return NIB_OK;
}

static bool keep_token(void *user, int sequence, int32_t id)
{
    exam *e = user;
    nib_token_list *output = &e->batch[sequence].output;
    if (!nib_grow(&output->ids, &output->capacity, output->count + 1, sizeof id)) return !(e->failed = true);
    output->ids[output->count++] = id;
    return true;
}

/* The largest number of cache rows that a batch can take. */
static int64_t capacity_needed(const exam *e, int64_t batch, int64_t max_new_tokens)
{
    int64_t most = 0;
    for (size_t first = 0; first < e->count; first += (size_t)batch) {
        int64_t tokens = 0;
        for (size_t i = first; i < e->count && i < first + (size_t)batch; i++)
            tokens += e->questions[i].prompt.length + max_new_tokens;
        most = tokens > most ? tokens : most;
    }
    return most;
}

static nib_status score_answer(const nib_tokenizer *tokenizer, const question *q, nib_buffer *prompt,
                               nib_buffer *output, nib_answer *answer)
{
    nib_buffer_clear(prompt);
    nib_buffer_clear(output);
    NIB_TRY(nib_tokenizer_decode(tokenizer, q->prompt.ids, (size_t)q->prompt.length, false, prompt));
    NIB_TRY(nib_tokenizer_decode(tokenizer, q->output.ids, q->output.count, true, output));
    if (prompt->failed || output->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the text of an answer");
    *answer = (nib_answer){.sample = q->sample,
                           .prompt = prompt->length > 0 ? prompt->data : "",
                           .output = output->length > 0 ? output->data : "",
                           .reference = q->reference,
                           .tokens = (int64_t)q->output.count};
    answer->exact_match = nib_exact_match(answer->output, answer->reference);
    NIB_TRY(nib_token_f1(answer->output, answer->reference, &answer->f1));
    return nib_rouge_l(answer->output, answer->reference, &answer->rouge_l);
}

static nib_status mark_batch(exam *e, size_t count, const nib_tokenizer *tokenizer, nib_answer_visitor visit,
                             void *user, nib_answer_summary *summary)
{
    nib_buffer prompt = {0}, output = {0};
    nib_status status = NIB_OK;
    for (size_t i = 0; i < count && status == NIB_OK; i++) {
        nib_answer answer;
        NIB_TRY_GOTO(score_answer(tokenizer, &e->batch[i], &prompt, &output, &answer), done);
        summary->answers++;
        summary->generated_tokens += answer.tokens;
        summary->exact_match += answer.exact_match;
        summary->f1 += answer.f1;
        summary->rouge_l += answer.rouge_l;
        if (visit != NULL) status = visit(user, &answer);
    }
done:
    nib_buffer_free(&prompt);
    nib_buffer_free(&output);
    return status;
}

/* The questions of the data set, and a generator that can hold any batch of them; NULL if there are none. */
static nib_status open_exam(nib_model *model, const nib_dataset *data, int64_t limit, int64_t batch,
                            int64_t max_new_tokens, exam *e, nib_generator **generator)
{
    *generator = NULL;
    NIB_TRY(collect_questions(data, limit, e));
    NIB_TRY(collect_stops(model, data, e));
    if (e->count == 0) return NIB_OK;
    return nib_generator_create(model, capacity_needed(e, batch, max_new_tokens), batch, generator);
}

/* The batch of questions that starts at e->batch. */
static nib_status answer_batch(nib_generator *generator, exam *e, size_t count, int64_t max_new_tokens,
                               nib_generate_token on_token)
{
    nib_status status;
    nib_generate_options options = {
        .max_new_tokens = max_new_tokens, .top_p = 1.0, .stop = e->stop, .stop_count = e->stop_count};
    nib_prompt *prompts = nib_calloc(count, sizeof *prompts);
    if (prompts == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu prompts", count);
    for (size_t i = 0; i < count; i++) prompts[i] = e->batch[i].prompt;
    status = nib_generate(generator, prompts, (int)count, &options, on_token, e);
    if (status == NIB_OK && e->failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for generated tokens");
    nib_free(prompts);
    return status;
}

nib_status nib_evaluate_answers(nib_model *model, const nib_dataset *data, const nib_tokenizer *tokenizer,
                                int64_t limit, int64_t batch, int64_t max_new_tokens, nib_answer_visitor visit,
                                void *user, nib_answer_summary *summary)
{
    exam e = {0};
    nib_generator *generator;
    nib_status status;
    *summary = (nib_answer_summary){0};
    NIB_TRY_GOTO(open_exam(model, data, limit, batch, max_new_tokens, &e, &generator), done);
    if (e.count == 0) goto done;
    for (size_t first = 0; first < e.count; first += (size_t)batch) {
        size_t count = e.count - first < (size_t)batch ? e.count - first : (size_t)batch;
        e.batch = e.questions + first;
        NIB_TRY_GOTO(answer_batch(generator, &e, count, max_new_tokens, keep_token), done);
        NIB_TRY_GOTO(mark_batch(&e, count, tokenizer, visit, user, summary), done);
    }
    summary->exact_match /= (double)e.count;
    summary->f1 /= (double)e.count;
    summary->rouge_l /= (double)e.count;
done:
    nib_generator_free(generator);
    free_exam(&e);
    return status;
}

static bool first_token_only(void *user, int sequence, int32_t id)
{
    (void)user;
    (void)sequence;
    (void)id;
    return false;
}

nib_status nib_answers_memory(nib_model *model, const nib_dataset *data, int64_t limit, int64_t batch,
                              int64_t max_new_tokens, size_t *bytes)
{
    exam e = {0};
    nib_generator *generator;
    nib_status status;
    *bytes = 0;
    NIB_TRY_GOTO(open_exam(model, data, limit, batch, max_new_tokens, &e, &generator), done);
    for (size_t first = 0; first < e.count; first += (size_t)batch) {
        size_t count = e.count - first < (size_t)batch ? e.count - first : (size_t)batch;
        e.batch = e.questions + first;
        NIB_TRY_GOTO(answer_batch(generator, &e, count, max_new_tokens, first_token_only), done);
    }
    if (generator != NULL) *bytes = nib_generator_bytes(generator);
done:
    nib_generator_free(generator);
    free_exam(&e);
    return status;
}
