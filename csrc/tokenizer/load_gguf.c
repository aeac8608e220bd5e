/* The vocabulary inside a GGUF (tokenizer.ggml.*), read as llama.cpp reads it. */
#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "base/utf8.h"
#include "formats/gguf.h"
#include "tokenizer/gguf_pretokenizer.h"
#include "tokenizer/pipeline.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* tokenizer.ggml.token_type */
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED, TOKEN_BYTE };

#define LLAMA3_PATTERN                                                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"           \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define QWEN2_PATTERN                                                                                                  \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"                \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define TEKKEN_PATTERN                                                                                                 \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"                       \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}|"                \
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PUNCTUATION_PATTERN "[\\p{P}\\$\\+<=>\\^~\\|`]+"

/* The patterns are those of llama.cpp (src/llama-vocab.cpp), which have the names of tokenizer.ggml.pre. */
static const nib_gguf_pretokenizer pretokenizers[] = {
    {"llama-bpe", {LLAMA3_PATTERN}, true, true, false},
    {"llama3", {LLAMA3_PATTERN}, true, true, false},
    {"llama-v3", {LLAMA3_PATTERN}, true, true, false},
    {"dbrx", {LLAMA3_PATTERN}, false, false, false},
    {"smaug-bpe", {LLAMA3_PATTERN}, false, false, false},
    {"qwen2", {QWEN2_PATTERN}, false, false, true},
    {"deepseek-r1-qwen", {QWEN2_PATTERN}, false, false, true},
    {"tekken", {TEKKEN_PATTERN}, true, true, false},
    {"smollm", {"\\p{N}", nib_gpt2_pattern}, false, false, false},
    {"starcoder", {"\\p{N}", nib_gpt2_pattern}, false, false, false},
    {"refact", {"\\p{N}", nib_gpt2_pattern}, false, false, false},
    {"command-r", {"\\p{N}", nib_gpt2_pattern}, false, false, false},
    {"gpt-2", {nib_gpt2_pattern}, false, false, false},
    {"phi-2", {nib_gpt2_pattern}, false, false, false},
    {"olmo", {nib_gpt2_pattern}, false, false, false},
    {"falcon", {PUNCTUATION_PATTERN, nib_gpt2_pattern, "[0-9][0-9][0-9]"}, false, false, false},
    {"default", {"[\\p{P}\\$\\+<=>\\^~\\|]+", nib_gpt2_pattern, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false, false},
};

static char *copy_text(const char *text)
{
    char *copy = nib_calloc(strlen(text) + 1, 1);
    if (copy != NULL) strcpy(copy, text);
    return copy;
}

static nib_status no_memory(const nib_tokenizer *t) { return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory", t->path); }

static nib_status load_tokens(nib_tokenizer *t, const nib_gguf *gguf)
{
    nib_gguf_type type;
    uint64_t count;
    if (!nib_gguf_array(gguf, "tokenizer.ggml.tokens", &type, &count) || type != NIB_GGUF_STRING || count == 0)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: no tokenizer.ggml.tokens (an array of strings); is the vocabulary in another file?",
                        t->path);
    for (uint64_t i = 0; i < count; i++) {
        nib_gguf_string text = nib_gguf_array_string(gguf, "tokenizer.ggml.tokens", i);
        if (nib_utf8_invalid_at(text.data, text.length) < text.length)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tokenizer.ggml.tokens: token %llu is not UTF-8", t->path,
                            (unsigned long long)i);
        NIB_TRY(nib_vocabulary_add(&t->bpe.vocabulary, t->path, (int64_t)i, text.data, text.length));
    }
    return NIB_OK;
}

static nib_status load_types(nib_tokenizer *t, const nib_gguf *gguf)
{
    nib_gguf_type type;
    uint64_t count;
    if (!nib_gguf_array(gguf, "tokenizer.ggml.token_type", &type, &count)) return NIB_OK;
    if (type == NIB_GGUF_STRING || type == NIB_GGUF_ARRAY || count != t->bpe.vocabulary.ids)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: tokenizer.ggml.token_type has %llu entries, expected a number for each of %zu tokens",
                        t->path, (unsigned long long)count, t->bpe.vocabulary.ids);
    for (uint64_t i = 0; i < count; i++) {
        int64_t kind = nib_gguf_array_int(gguf, "tokenizer.ggml.token_type", i);
        if (kind != TOKEN_UNKNOWN && kind != TOKEN_CONTROL && kind != TOKEN_USER_DEFINED) continue;
        nib_added_token token = {.id = (int32_t)i, .special = kind != TOKEN_USER_DEFINED};
        NIB_TRY(nib_tokenizer_add_token(t, token));
    }
    return NIB_OK;
}

static nib_status load_merges(nib_tokenizer *t, const nib_gguf *gguf)
{
    nib_gguf_type type;
    uint64_t count;
    nib_buffer joined = {0};
    nib_status status = NIB_OK;
    if (!nib_gguf_array(gguf, "tokenizer.ggml.merges", &type, &count) || type != NIB_GGUF_STRING ||
        count > UINT32_MAX / 2)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: no tokenizer.ggml.merges (an array of strings)", t->path);
    NIB_TRY(nib_bpe_reserve_merges(&t->bpe, t->path, count));
    for (uint64_t i = 0; i < count; i++) {
        nib_gguf_string text = nib_gguf_array_string(gguf, "tokenizer.ggml.merges", i);
        const char *space = text.length > 1 ? memchr(text.data + 1, ' ', text.length - 1) : NULL;
        int32_t left = -1, right = -1, merged = -1;
        if (space != NULL) {
            size_t first = (size_t)(space - text.data), second = text.length - first - 1;
            nib_buffer_clear(&joined);
            nib_buffer_append(&joined, text.data, first);
            nib_buffer_append(&joined, space + 1, second);
            left = nib_vocabulary_find(&t->bpe.vocabulary, text.data, first);
            right = nib_vocabulary_find(&t->bpe.vocabulary, space + 1, second);
            if (!joined.failed) merged = nib_vocabulary_find(&t->bpe.vocabulary, joined.data, joined.length);
        }
        if (left < 0 || right < 0 || merged < 0) {
            status =
                NIB_FAIL(NIB_ERROR_DATA,
                         "%s: tokenizer.ggml.merges: merge %llu, \"%.*s\", expected two tokens that join to a third",
                         t->path, (unsigned long long)i, (int)(text.length > 100 ? 100 : text.length), text.data);
            break;
        }
        NIB_TRY_GOTO(nib_bpe_add_merge(&t->bpe, t->path, left, right, (uint32_t)i, merged), done);
    }
done:
    nib_buffer_free(&joined);
    return status;
}

const nib_gguf_pretokenizer *nib_gguf_pretokenizer_find(const char *name)
{
    if (name == NULL) name = "default";
    for (size_t i = 0; i < sizeof pretokenizers / sizeof *pretokenizers; i++)
        if (strcmp(pretokenizers[i].name, name) == 0) return &pretokenizers[i];
    return NULL;
}

static nib_status set_pretokenizer(nib_tokenizer *t, const nib_gguf *gguf, bool *add_bos)
{
    const char *name = nib_gguf_text(gguf, "tokenizer.ggml.pre");
    const nib_gguf_pretokenizer *found = nib_gguf_pretokenizer_find(name);
    if (found == NULL)
        return NIB_FAIL(
            NIB_ERROR_DATA,
            "%s: tokenizer.ggml.pre is \"%.100s\", a pre-tokenizer that is not known; use the model's tokenizer.json",
            t->path, name);
    for (int p = 0; p < 4 && found->patterns[p] != NULL; p++)
        NIB_TRY(nib_pretokenizer_add_split(t, found->patterns[p], strlen(found->patterns[p]), false, NIB_SPLIT_ISOLATED,
                                           false));
    t->bpe.ignore_merges = found->ignore_merges;
    *add_bos = found->add_bos;
    if (found->nfc) t->normalizer.steps[t->normalizer.count++] = (nib_normalizer_step){.kind = NIB_NORMALIZE_NFC};
    return nib_pretokenizer_add_byte_level(t, false, false);
}

/* An id of the metadata; -1 if absent. */
static nib_status read_id(const nib_tokenizer *t, const nib_gguf *gguf, const char *key, int32_t *id)
{
    int64_t value;
    *id = -1;
    if (!nib_gguf_int(gguf, key, &value)) return NIB_OK;
    if (nib_vocabulary_text(&t->bpe.vocabulary, value, NULL) == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: %s is %lld, expected an id below %zu", t->path, key, (long long)value,
                        t->bpe.vocabulary.ids);
    *id = (int32_t)value;
    return NIB_OK;
}

static nib_status load_special(nib_tokenizer *t, const nib_gguf *gguf, bool add_bos)
{
    bool add_eos = false;
    NIB_TRY(read_id(t, gguf, "tokenizer.ggml.bos_token_id", &t->bos));
    NIB_TRY(read_id(t, gguf, "tokenizer.ggml.eos_token_id", &t->eos));
    nib_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &add_bos);
    nib_gguf_bool(gguf, "tokenizer.ggml.add_eos_token", &add_eos);
    if ((add_bos && t->bos >= 0 && !nib_token_list_append(&t->before, &t->bos, 1)) ||
        (add_eos && t->eos >= 0 && !nib_token_list_append(&t->after, &t->eos, 1)))
        return no_memory(t);
    const char *chat_template = nib_gguf_text(gguf, "tokenizer.chat_template");
    if (chat_template != NULL && (t->chat_template = strdup(chat_template)) == NULL) return no_memory(t);
    return NIB_OK;
}

/* SentencePiece's model: any two neighbours whose text is a token merge, the one of the highest score first. Written as
 * merges: each way to cut a token into two, ranked by its score; equal scores are equal ranks. */
typedef struct {
    double score;
    int32_t id;
} scored;

static int by_score(const void *left, const void *right)
{
    const scored *a = left, *b = right;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

static nib_status merges_of_scores(nib_tokenizer *t, const scored *tokens, size_t count, bool add)
{
    size_t merges = 0;
    uint32_t rank = 0;
    for (size_t i = 0; i < count; i++) {
        size_t length;
        const char *text = nib_vocabulary_text(&t->bpe.vocabulary, tokens[i].id, &length);
        if (i > 0 && tokens[i].score != tokens[i - 1].score) rank++;
        for (size_t cut = 1; cut < length; cut++) {
            int32_t left = nib_vocabulary_find(&t->bpe.vocabulary, text, cut);
            int32_t right = left < 0 ? -1 : nib_vocabulary_find(&t->bpe.vocabulary, text + cut, length - cut);
            if (right < 0) continue;
            merges++;
            if (add) NIB_TRY(nib_bpe_add_merge(&t->bpe, t->path, left, right, rank, tokens[i].id));
        }
    }
    return add ? NIB_OK : nib_bpe_reserve_merges(&t->bpe, t->path, merges);
}

static nib_status load_scores(nib_tokenizer *t, const nib_gguf *gguf)
{
    nib_gguf_type type;
    uint64_t count;
    nib_status status = NIB_OK;
    size_t used = 0;
    if (!nib_gguf_array(gguf, "tokenizer.ggml.scores", &type, &count) || type != NIB_GGUF_F32 ||
        count != t->bpe.vocabulary.ids)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: no tokenizer.ggml.scores with a float for each of %zu tokens", t->path,
                        t->bpe.vocabulary.ids);
    scored *tokens = nib_calloc(count, sizeof *tokens);
    if (tokens == NULL) return no_memory(t);
    for (uint64_t i = 0; i < count; i++) {
        size_t length;
        nib_vocabulary_text(&t->bpe.vocabulary, (int64_t)i, &length);
        double score = nib_gguf_array_double(gguf, "tokenizer.ggml.scores", i);
        if (!isfinite(score) || length > 1024) { /* the number of cuts grows with the length */
            status = NIB_FAIL(NIB_ERROR_DATA,
                              "%s: token %llu has the score %g and %zu bytes, expected a finite score and up to 1024",
                              t->path, (unsigned long long)i, score, length);
            goto done;
        }
        if (!nib_tokenizer_is_special(t, (int32_t)i)) tokens[used++] = (scored){score, (int32_t)i};
    }
    qsort(tokens, used, sizeof *tokens, by_score);
    NIB_TRY_GOTO(merges_of_scores(t, tokens, used, false), done);
    status = merges_of_scores(t, tokens, used, true);
done:
    nib_free(tokens);
    return status;
}

#define METASPACE "\xe2\x96\x81" /* U+2581, for a space */

static nib_status load_sentencepiece(nib_tokenizer *t, const nib_gguf *gguf)
{
    bool prefix = true;
    t->bpe.byte_fallback = t->bpe.fuse_unk = true;
    NIB_TRY(load_types(t, gguf)); /* before the normalizer is there: added tokens are looked for as they are */
    NIB_TRY(load_scores(t, gguf));
    NIB_TRY(read_id(t, gguf, "tokenizer.ggml.unknown_token_id", &t->bpe.unknown));
    nib_gguf_bool(gguf, "tokenizer.ggml.add_space_prefix", &prefix);
    nib_normalizer *n = &t->normalizer;
    if (prefix)
        n->steps[n->count++] = (nib_normalizer_step){.kind = NIB_NORMALIZE_PREPEND, .content = copy_text(METASPACE)};
    n->steps[n->count++] = (nib_normalizer_step){
        .kind = NIB_NORMALIZE_REPLACE, .pattern = copy_text(" "), .content = copy_text(METASPACE)};
    nib_decoder *d = &t->decoder;
    d->steps[d->count++] =
        (nib_decoder_step){.kind = NIB_DECODE_REPLACE, .pattern = copy_text(METASPACE), .content = copy_text(" ")};
    d->steps[d->count++] = (nib_decoder_step){.kind = NIB_DECODE_BYTE_FALLBACK};
    d->steps[d->count++] = (nib_decoder_step){.kind = NIB_DECODE_FUSE};
    if (prefix)
        d->steps[d->count++] = (nib_decoder_step){.kind = NIB_DECODE_STRIP, .content = copy_text(" "), .left = 1};
    for (size_t i = 0; i < n->count; i++)
        if (n->steps[i].content == NULL || (n->steps[i].kind == NIB_NORMALIZE_REPLACE && n->steps[i].pattern == NULL))
            return no_memory(t);
    if (d->steps[0].pattern == NULL || d->steps[0].content == NULL || (prefix && d->steps[3].content == NULL))
        return no_memory(t);
    return load_special(t, gguf, true);
}

static nib_status load_byte_level(nib_tokenizer *t, const nib_gguf *gguf)
{
    bool add_bos = false;
    NIB_TRY(load_types(t, gguf));
    NIB_TRY(load_merges(t, gguf));
    NIB_TRY(set_pretokenizer(t, gguf, &add_bos));
    t->decoder.steps[t->decoder.count++] = (nib_decoder_step){.kind = NIB_DECODE_BYTE_LEVEL};
    return load_special(t, gguf, add_bos);
}

/* Hash of what determines the ids: kind, pre-tokenizer and tokens (with merges or scores, which follow from training
 * the same vocabulary). The whole file's would read all weights. */
static void hash_vocabulary(nib_tokenizer *t, const nib_gguf *gguf)
{
    static const char *const texts[] = {"tokenizer.ggml.model", "tokenizer.ggml.pre"};
    static const char *const arrays[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"};
    nib_sha256 hash;
    uint8_t digest[32];
    nib_sha256_begin(&hash);
    for (int i = 0; i < 2; i++) {
        const char *text = nib_gguf_text(gguf, texts[i]);
        if (text != NULL) nib_sha256_update(&hash, text, strlen(text) + 1);
    }
    for (int a = 0; a < 2; a++) {
        nib_gguf_type type;
        uint64_t count;
        if (!nib_gguf_array(gguf, arrays[a], &type, &count) || type != NIB_GGUF_STRING) continue;
        for (uint64_t i = 0; i < count; i++) {
            nib_gguf_string text = nib_gguf_array_string(gguf, arrays[a], i);
            nib_sha256_update(&hash, &text.length, sizeof text.length);
            nib_sha256_update(&hash, text.data, text.length);
        }
    }
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, t->hash);
}

nib_status nib_tokenizer_load_gguf(nib_tokenizer *t)
{
    nib_file file = {0};
    nib_gguf *gguf = NULL;
    nib_status status;
    NIB_TRY_GOTO(nib_file_map(&file, t->path), done);
    NIB_TRY_GOTO(nib_gguf_parse(&file, &gguf), done);
    const char *model = nib_gguf_text(gguf, "tokenizer.ggml.model");
    NIB_TRY_GOTO(load_tokens(t, gguf), done);
    t->bpe.model_bytes = t->bpe.vocabulary.bytes.length;
    if (model != NULL && strcmp(model, "gpt2") == 0)
        status = load_byte_level(t, gguf);
    else if (model != NULL && strcmp(model, "llama") == 0)
        status = load_sentencepiece(t, gguf);
    else
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: tokenizer.ggml.model is \"%.100s\", expected \"gpt2\" or \"llama\"",
                          t->path, model != NULL ? model : "");
    if (status == NIB_OK) hash_vocabulary(t, gguf);
done:
    nib_gguf_free(gguf);
    nib_file_unmap(&file);
    return status;
}
