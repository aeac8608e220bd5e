#include "train_answers.h"
#include "base/file.h"
#include "eval/answers.h"

#include <math.h>
#include <string.h>

#define PROMPTS_AT_ONCE 16
#define MAX_NEW_TOKENS  128

static void put_text(nib_buffer *line, const char *key, const char *text)
{
    nib_buffer_format(line, "\"%s\":", key);
    nib_buffer_json_string(line, text, strlen(text), false);
    nib_buffer_char(line, ',');
}

static nib_status keep_answer(void *user, const nib_answer *answer)
{
    nib_buffer *lines = user;
    nib_buffer_format(lines, "{\"sample\":%lld,", (long long)answer->sample);
    put_text(lines, "prompt", answer->prompt);
    put_text(lines, "output", answer->output);
    put_text(lines, "reference", answer->reference);
    nib_buffer_format(lines, "\"exact_match\":%s}\n", answer->exact_match ? "true" : "false");
    return lines->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the answers of an evaluation") : NIB_OK;
}

static bool generates(const nib_training *t)
{
    return t->config->evaluate.generate > 0 && t->eval != NULL && t->text.tokenizer != NULL;
}

nib_status nib_train_answers_memory(const nib_training *t, nib_model *rehearsed, size_t *bytes)
{
    *bytes = 0;
    if (!generates(t)) return NIB_OK;
    return nib_answers_memory(rehearsed, t->eval, t->config->evaluate.generate, PROMPTS_AT_ONCE, MAX_NEW_TOKENS, bytes);
}

nib_status nib_train_answers(nib_training *t, const char *name, double *exact_match)
{
    nib_answer_summary summary;
    nib_buffer lines = {0};
    *exact_match = NAN;
    if (!generates(t)) return NIB_OK;
    nib_status status = nib_evaluate_answers(t->model, t->eval, t->text.tokenizer, t->config->evaluate.generate,
                                             PROMPTS_AT_ONCE, MAX_NEW_TOKENS, keep_answer, &lines, &summary);
    if (status != NIB_OK || summary.answers == 0) goto done;
    *exact_match = summary.exact_match;
    if (name != NULL) status = nib_file_replace_text(t->folder.path, name, &lines);
done:
    nib_buffer_free(&lines);
    return status;
}
