#include "tokenizer/pretokenizer.h"

#include "base/memory.h"
#include "tokenizer/byte_alphabet.h"

#include <string.h>

typedef struct {
    const nib_pretokenizer *pretokenizer;
    nib_pretokenizer_worker *worker;
    nib_word_function word;
    void *context;
} chain;

void nib_pretokenizer_free(nib_pretokenizer *pretokenizer)
{
    for (size_t i = 0; i < pretokenizer->count; i++) {
        nib_pattern_free(pretokenizer->steps[i].pattern);
        nib_free(pretokenizer->steps[i].replacement);
    }
    pretokenizer->count = 0;
}

static nib_status run(const chain *c, size_t step, const char *text, size_t length, bool at_start);

/* The pieces of a split as they come, matches and what lies between, turned into those that the behavior asks for:
 * `begin` is where the piece that is being put together begins. */
typedef struct {
    const chain *chain;
    const nib_pretokenizer_step *step;
    size_t next;
    const char *text;
    bool at_start;
    size_t begin;
    bool pending_match; /* the last part of what is being put together is a match */
} splitter;

static nib_status emit(splitter *s, size_t end)
{
    size_t begin = s->begin;
    s->begin = end;
    if (begin == end) return NIB_OK;
    return run(s->chain, s->next, s->text + begin, end - begin, s->at_start && begin == 0);
}

static nib_status part(splitter *s, size_t start, size_t end, bool match)
{
    if (start == end) return NIB_OK;
    bool after_match = s->pending_match && start > 0;
    s->pending_match = match;
    switch (s->step->behavior) {
    case NIB_SPLIT_ISOLATED:
        return emit(s, end);
    case NIB_SPLIT_REMOVED:
        if (match) {
            s->begin = end;
            return NIB_OK;
        }
        return emit(s, end);
    case NIB_SPLIT_CONTIGUOUS:
        return start > 0 && after_match != match ? emit(s, start) : NIB_OK;
    case NIB_SPLIT_MERGED_WITH_PREVIOUS:
        return match ? emit(s, end) : NIB_OK;
    case NIB_SPLIT_MERGED_WITH_NEXT:
        if (match || !after_match) return emit(s, start);
        return NIB_OK;
    }
    return NIB_OK;
}

static nib_status split(const chain *c, size_t index, const char *text, size_t length, bool at_start)
{
    const nib_pretokenizer_step *step = &c->pretokenizer->steps[index];
    splitter s = {.chain = c, .step = step, .next = index + 1, .text = text, .at_start = at_start};
    size_t done = 0;
    for (size_t from = 0; from < length;) {
        bool found;
        size_t start, end;
        NIB_TRY(nib_pattern_find(step->pattern, c->worker->matcher, text, length, from, &found, &start, &end));
        if (!found) break;
        if (start == end) { /* an empty match cuts nothing: go on behind the next code point */
            from = end + 1;
            while (from < length && ((unsigned char)text[from] & 0xc0) == 0x80) from++;
            continue;
        }
        NIB_TRY(part(&s, done, start, step->invert));
        NIB_TRY(part(&s, start, end, !step->invert));
        from = done = end;
    }
    NIB_TRY(part(&s, done, length, step->invert));
    return emit(&s, length);
}

static bool starts_with(const char *text, size_t length, const char *prefix)
{
    size_t n = strlen(prefix);
    return length >= n && memcmp(text, prefix, n) == 0;
}

static nib_status rewrite(const chain *c, size_t index, const char *text, size_t length, bool at_start)
{
    const nib_pretokenizer_step *step = &c->pretokenizer->steps[index];
    nib_buffer *out = &c->worker->rewritten[index];
    nib_buffer_clear(out);
    switch (step->kind) {
    case NIB_STEP_PREFIX_SPACE:
        if (!starts_with(text, length, " ")) nib_buffer_char(out, ' ');
        nib_buffer_append(out, text, length);
        break;
    case NIB_STEP_TO_ALPHABET:
        nib_bytes_to_alphabet(out, text, length);
        break;
    case NIB_STEP_METASPACE:
        if ((step->prepend == NIB_PREPEND_ALWAYS || (step->prepend == NIB_PREPEND_FIRST && at_start)) &&
            !starts_with(text, length, " ") && !starts_with(text, length, step->replacement))
            nib_buffer_text(out, step->replacement);
        for (size_t i = 0; i < length; i++)
            if (text[i] == ' ')
                nib_buffer_text(out, step->replacement);
            else
                nib_buffer_char(out, text[i]);
        break;
    case NIB_STEP_SPLIT:
        break;
    }
    if (out->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to tokenize %zu bytes", length);
    if (step->pattern != NULL) return split(c, index, out->data, out->length, at_start);
    return run(c, index + 1, out->data, out->length, at_start);
}

static nib_status run(const chain *c, size_t index, const char *text, size_t length, bool at_start)
{
    if (index == c->pretokenizer->count) return c->word(c->context, text, length);
    if (c->pretokenizer->steps[index].kind == NIB_STEP_SPLIT) return split(c, index, text, length, at_start);
    return rewrite(c, index, text, length, at_start);
}

nib_status nib_pretokenize(const nib_pretokenizer *pretokenizer, nib_pretokenizer_worker *worker, const char *text,
                           size_t length, bool at_start, nib_word_function word, void *context)
{
    chain c = {pretokenizer, worker, word, context};
    return length == 0 ? NIB_OK : run(&c, 0, text, length, at_start);
}
