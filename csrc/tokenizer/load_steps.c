#include "tokenizer/load_steps.h"

#include "base/memory.h"

#include <string.h>

#define MAX_NESTING 4 /* of Sequence in Sequence */

typedef nib_status (*read_step)(nib_tokenizer *t, const nib_json *value, const char *type);

/* Calls read for a step, or for each step of a Sequence, whose array is called `members`. */
static nib_status each_step(nib_tokenizer *t, const nib_json *value, const char *members, read_step read, int depth)
{
    const char *type;
    if (value == NULL || value->kind == NIB_JSON_NULL) return NIB_OK;
    NIB_TRY(nib_json_read_string(t->path, value, "type", "", &type));
    if (strcmp(type, "Sequence") != 0) return read(t, value, type);
    const nib_json *steps = nib_json_get(value, members);
    if (!nib_json_is(steps, NIB_JSON_ARRAY) || depth == MAX_NESTING)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: a Sequence without an array \"%s\", or nested too deeply", t->path,
                        value->line, members);
    for (const nib_json *step = steps->first; step != NULL; step = step->next)
        NIB_TRY(each_step(t, step, members, read, depth + 1));
    return NIB_OK;
}

static nib_status unknown(const nib_tokenizer *t, const nib_json *value, const char *part, const char *type)
{
    return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: the %s \"%.60s\" is not supported, and cannot be left out", t->path,
                    value->line, part, type);
}

nib_status nib_load_flag(const nib_tokenizer *t, const nib_json *object, const char *key, bool *flag)
{
    const nib_json *member = nib_json_get(object, key);
    *flag = nib_json_is(member, NIB_JSON_TRUE);
    if (!*flag && !nib_json_is(member, NIB_JSON_FALSE))
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"%s\" is missing, or neither true nor false", t->path, object->line,
                        key);
    return NIB_OK;
}

static nib_status copy_member(nib_tokenizer *t, const nib_json *object, const char *key, bool may_be_empty, char **copy)
{
    const char *text;
    NIB_TRY(nib_json_read_string(t->path, object, key, NULL, &text));
    if (text == NULL || (*text == 0 && !may_be_empty))
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"%s\" is missing or empty", t->path, object->line, key);
    *copy = nib_calloc(strlen(text) + 1, 1);
    if (*copy == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory", t->path);
    strcpy(*copy, text);
    return NIB_OK;
}

/* {"String": ...} or {"Regex": ...} */
static nib_status read_pattern(const nib_tokenizer *t, const nib_json *value, const nib_json **text, bool *literal)
{
    const nib_json *pattern = nib_json_get(value, "pattern");
    *text = nib_json_get(pattern, "String");
    *literal = *text != NULL;
    if (!*literal) *text = nib_json_get(pattern, "Regex");
    if (!nib_json_is(*text, NIB_JSON_STRING) || (*text)->length == 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"pattern\" is missing, or holds no \"String\" or \"Regex\"", t->path,
                        value->line);
    return NIB_OK;
}

static nib_status read_normalizer(nib_tokenizer *t, const nib_json *value, const char *type)
{
    nib_normalizer *n = &t->normalizer;
    if (n->count == NIB_NORMALIZER_STEPS)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: more than %d normalizer steps", t->path, value->line,
                        NIB_NORMALIZER_STEPS);
    nib_normalizer_step *step = &n->steps[n->count++];
    if (strcmp(type, "NFC") == 0) {
        step->kind = NIB_NORMALIZE_NFC;
        return NIB_OK;
    }
    if (strcmp(type, "Prepend") == 0) {
        step->kind = NIB_NORMALIZE_PREPEND;
        return copy_member(t, value, "prepend", true, &step->content);
    }
    if (strcmp(type, "Replace") != 0) return unknown(t, value, "normalizer", type);
    const nib_json *text;
    bool literal;
    step->kind = NIB_NORMALIZE_REPLACE;
    NIB_TRY(read_pattern(t, value, &text, &literal));
    if (!literal) return unknown(t, value, "normalizer", "Replace by a regular expression");
    NIB_TRY(copy_member(t, nib_json_get(value, "pattern"), "String", false, &step->pattern));
    return copy_member(t, value, "content", true, &step->content);
}

nib_status nib_load_normalizer(nib_tokenizer *tokenizer, const nib_json *value)
{
    return each_step(tokenizer, value, "normalizers", read_normalizer, 0);
}

/* fallback: where there is none. */
static nib_status read_behavior(nib_tokenizer *t, const nib_json *value, const char *fallback,
                                nib_split_behavior *behavior)
{
    static const char *const names[] = {"Isolated", "Contiguous", "Removed", "MergedWithPrevious", "MergedWithNext"};
    const char *name;
    NIB_TRY(nib_json_read_string(t->path, value, "behavior", fallback, &name));
    for (int i = 0; i < 5; i++)
        if (strcmp(name, names[i]) == 0) {
            *behavior = (nib_split_behavior)i;
            return NIB_OK;
        }
    return unknown(t, value, "behavior", name);
}

static nib_status read_metaspace(nib_tokenizer *t, const nib_json *value)
{
    static const char *const schemes[] = {"always", "first", "never"};
    nib_pretokenizer_step step = {.kind = NIB_STEP_METASPACE, .behavior = NIB_SPLIT_MERGED_WITH_NEXT};
    const char *scheme;
    bool split;
    int i = 0;
    NIB_TRY(nib_json_read_string(t->path, value, "prepend_scheme", "always", &scheme));
    NIB_TRY(nib_json_read_bool(t->path, value, "split", true, &split));
    while (i < 3 && strcmp(scheme, schemes[i]) != 0) i++;
    if (i == 3) return unknown(t, value, "prepend_scheme", scheme);
    step.prepend = (nib_prepend_scheme)i;
    NIB_TRY(copy_member(t, value, "replacement", false, &step.replacement));
    if (split) {
        nib_status status =
            nib_pattern_compile(t->path, step.replacement, strlen(step.replacement), true, &step.pattern);
        if (status != NIB_OK) {
            nib_free(step.replacement);
            return status;
        }
    }
    return nib_pretokenizer_add(t, step);
}

static nib_status read_pretokenizer(nib_tokenizer *t, const nib_json *value, const char *type)
{
    /* Punctuation of tokenizers: ASCII's, symbols included, and the category P. */
    static const char punctuation[] = "[\\p{P}$+<=>^`|~]", digit[] = "\\p{N}", digits[] = "\\p{N}+";
    nib_split_behavior behavior = NIB_SPLIT_ISOLATED;
    if (strcmp(type, "Split") == 0) {
        const nib_json *text;
        bool literal, invert;
        NIB_TRY(read_pattern(t, value, &text, &literal));
        NIB_TRY(read_behavior(t, value, "", &behavior));
        NIB_TRY(nib_load_flag(t, value, "invert", &invert));
        return nib_pretokenizer_add_split(t, text->string, text->length, literal, behavior, invert);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        bool prefix_space, use_regex;
        NIB_TRY(nib_load_flag(t, value, "add_prefix_space", &prefix_space));
        NIB_TRY(nib_json_read_bool(t->path, value, "use_regex", true, &use_regex));
        return nib_pretokenizer_add_byte_level(t, prefix_space, use_regex);
    }
    if (strcmp(type, "Digits") == 0) {
        bool each;
        NIB_TRY(nib_load_flag(t, value, "individual_digits", &each));
        const char *pattern = each ? digit : digits;
        return nib_pretokenizer_add_split(t, pattern, strlen(pattern), false, NIB_SPLIT_ISOLATED, false);
    }
    if (strcmp(type, "Punctuation") == 0) {
        NIB_TRY(read_behavior(t, value, "Isolated", &behavior));
        return nib_pretokenizer_add_split(t, punctuation, strlen(punctuation), false, behavior, false);
    }
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(t, value);
    return unknown(t, value, "pre-tokenizer", type);
}

nib_status nib_load_pretokenizer(nib_tokenizer *tokenizer, const nib_json *value)
{
    return each_step(tokenizer, value, "pretokenizers", read_pretokenizer, 0);
}

/* The ids of a special token of a template, as its "special_tokens" lists them. */
static nib_status append_special(nib_tokenizer *t, const nib_json *processor, const nib_json *item,
                                 nib_token_list *list)
{
    const char *name;
    NIB_TRY(nib_json_read_string(t->path, item, "id", "", &name));
    const nib_json *ids = nib_json_get(nib_json_get(nib_json_get(processor, "special_tokens"), name), "ids");
    if (!nib_json_is(ids, NIB_JSON_ARRAY))
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: the post-processor's special token \"%.60s\" has no ids", t->path,
                        item->line, name);
    for (const nib_json *id = ids->first; id != NULL; id = id->next) {
        if (!id->is_integer || nib_vocabulary_text(&t->bpe.vocabulary, id->integer, NULL) == NULL)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s:%u: the post-processor's \"%.60s\" has an id that is not in the vocabulary", t->path,
                            id->line, name);
        int32_t value = (int32_t)id->integer;
        if (!nib_token_list_append(list, &value, 1)) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory", t->path);
    }
    return NIB_OK;
}

static nib_status read_post_processor(nib_tokenizer *t, const nib_json *value, const char *type)
{
    if (strcmp(type, "ByteLevel") == 0) return NIB_OK; /* moves offsets, no ids */
    if (strcmp(type, "TemplateProcessing") != 0) return unknown(t, value, "post-processor", type);
    const nib_json *single = nib_json_get(value, "single");
    if (!nib_json_is(single, NIB_JSON_ARRAY) || t->before.count + t->after.count > 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: a template without \"single\", or a second template", t->path,
                        value->line);
    int sequences = 0;
    for (const nib_json *item = single->first; item != NULL; item = item->next) {
        const nib_json *special = nib_json_get(item, "SpecialToken");
        const nib_json *text = nib_json_get(nib_json_get(item, "Sequence"), "id");
        if (special == NULL && !(nib_json_is(text, NIB_JSON_STRING) && strcmp(text->string, "A") == 0))
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s:%u: what a template is made of is neither \"SpecialToken\" nor \"Sequence\" \"A\"",
                            t->path, item->line);
        if (special != NULL) NIB_TRY(append_special(t, value, special, sequences == 0 ? &t->before : &t->after));
        sequences += special == NULL;
    }
    if (sequences != 1)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: the template \"single\" has %d sequences, expected 1", t->path,
                        single->line, sequences);
    return NIB_OK;
}

nib_status nib_load_post_processor(nib_tokenizer *tokenizer, const nib_json *value)
{
    return each_step(tokenizer, value, "processors", read_post_processor, 0);
}

static nib_status read_decoder(nib_tokenizer *t, const nib_json *value, const char *type)
{
    nib_decoder *d = &t->decoder;
    int64_t left, right;
    if (d->count == NIB_DECODER_STEPS)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: more than %d decoder steps", t->path, value->line, NIB_DECODER_STEPS);
    nib_decoder_step *step = &d->steps[d->count++];
    if (strcmp(type, "ByteLevel") == 0) {
        step->kind = NIB_DECODE_BYTE_LEVEL;
        return NIB_OK;
    }
    if (strcmp(type, "ByteFallback") == 0) {
        step->kind = NIB_DECODE_BYTE_FALLBACK;
        return NIB_OK;
    }
    if (strcmp(type, "Fuse") == 0) {
        step->kind = NIB_DECODE_FUSE;
        return NIB_OK;
    }
    if (strcmp(type, "Replace") == 0) {
        const nib_json *text;
        bool literal;
        step->kind = NIB_DECODE_REPLACE;
        NIB_TRY(read_pattern(t, value, &text, &literal));
        if (!literal) return unknown(t, value, "decoder", "Replace by a regular expression");
        NIB_TRY(copy_member(t, nib_json_get(value, "pattern"), "String", false, &step->pattern));
        return copy_member(t, value, "content", true, &step->content);
    }
    if (strcmp(type, "Strip") == 0) {
        step->kind = NIB_DECODE_STRIP;
        NIB_TRY(nib_json_read_int(t->path, value, "start", 0, 1 << 20, 0, &left));
        NIB_TRY(nib_json_read_int(t->path, value, "stop", 0, 1 << 20, 0, &right));
        step->left = (uint32_t)left;
        step->right = (uint32_t)right;
        return copy_member(t, value, "content", false, &step->content);
    }
    if (strcmp(type, "Metaspace") == 0) {
        const char *scheme;
        step->kind = NIB_DECODE_METASPACE;
        NIB_TRY(nib_json_read_string(t->path, value, "prepend_scheme", "always", &scheme));
        step->prepended = strcmp(scheme, "never") != 0;
        step->content = nib_calloc(2, 1);
        if (step->content == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory", t->path);
        step->content[0] = ' ';
        return copy_member(t, value, "replacement", false, &step->pattern);
    }
    return unknown(t, value, "decoder", type);
}

nib_status nib_load_decoder(nib_tokenizer *tokenizer, const nib_json *value)
{
    return each_step(tokenizer, value, "decoders", read_decoder, 0);
}
