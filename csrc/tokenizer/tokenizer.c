#include "tokenizer/tokenizer.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/pipeline.h"

#include <stdlib.h>
#include <string.h>

struct nib_tokenizer_worker {
    nib_tokenizer_worker *next;
    nib_bpe_worker *bpe;
    nib_pretokenizer_worker pretokenizer;
    nib_buffer normalized[2];
    nib_buffer word;
};

static void free_worker(nib_tokenizer_worker *worker)
{
    if (worker == NULL) return;
    nib_bpe_worker_free(worker->bpe);
    nib_matcher_free(worker->pretokenizer.matcher);
    for (size_t i = 0; i < NIB_PRETOKENIZER_STEPS; i++) nib_buffer_free(&worker->pretokenizer.rewritten[i]);
    nib_buffer_free(&worker->normalized[0]);
    nib_buffer_free(&worker->normalized[1]);
    nib_buffer_free(&worker->word);
    nib_free(worker);
}

static nib_tokenizer_worker *take_worker(const nib_tokenizer *tokenizer)
{
    nib_tokenizer *shared = (nib_tokenizer *)tokenizer; /* only the list of idle workers changes, under its lock */
    pthread_mutex_lock(&shared->lock);
    nib_tokenizer_worker *worker = shared->idle;
    if (worker != NULL) shared->idle = worker->next;
    pthread_mutex_unlock(&shared->lock);
    if (worker != NULL) return worker;
    worker = nib_calloc(1, sizeof *worker);
    if (worker == NULL) return NULL;
    worker->bpe = nib_bpe_worker_new();
    worker->pretokenizer.matcher = nib_matcher_new();
    if (worker->bpe != NULL && worker->pretokenizer.matcher != NULL) return worker;
    free_worker(worker);
    return NULL;
}

static void give_back_worker(const nib_tokenizer *tokenizer, nib_tokenizer_worker *worker)
{
    nib_tokenizer *shared = (nib_tokenizer *)tokenizer;
    pthread_mutex_lock(&shared->lock);
    worker->next = shared->idle;
    shared->idle = worker;
    pthread_mutex_unlock(&shared->lock);
}

/* The vocabulary is in the .gguf itself, the tokenizer.json, or the tokenizer.json of the folder. */
static nib_status find_file(const char *path, char **file, bool *gguf)
{
    size_t length = strlen(path);
    *gguf = length > 5 && strcmp(path + length - 5, ".gguf") == 0;
    *file = nib_file_is_folder(path) ? nib_path_join(path, "tokenizer.json") : strdup(path);
    if (*file == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open the tokenizer", path);
    return NIB_OK;
}

nib_status nib_tokenizer_open(const char *path, nib_tokenizer **result)
{
    bool gguf = false;
    nib_status status;
    *result = NULL;
    nib_tokenizer *tokenizer = nib_calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open the tokenizer", path);
    pthread_mutex_init(&tokenizer->lock, NULL);
    tokenizer->bos = tokenizer->eos = tokenizer->bpe.unknown = -1;
    NIB_TRY_GOTO(find_file(path, &tokenizer->path, &gguf), done);
    NIB_TRY_GOTO(gguf ? nib_tokenizer_load_gguf(tokenizer) : nib_tokenizer_load_json(tokenizer), done);
    nib_pretokenizer_finish(tokenizer);
    nib_bpe_find_bytes(&tokenizer->bpe);
    nib_added_tokens_sort(&tokenizer->added);
    nib_added_tokens_sort(&tokenizer->added_normalized);
    *result = tokenizer;
    tokenizer = NULL;
done:
    nib_tokenizer_free(tokenizer);
    return status;
}

void nib_tokenizer_free(nib_tokenizer *tokenizer)
{
    if (tokenizer == NULL) return;
    for (nib_tokenizer_worker *worker = tokenizer->idle, *next; worker != NULL; worker = next) {
        next = worker->next;
        free_worker(worker);
    }
    pthread_mutex_destroy(&tokenizer->lock);
    nib_added_tokens_free(&tokenizer->added);
    nib_added_tokens_free(&tokenizer->added_normalized);
    nib_normalizer_free(&tokenizer->normalizer);
    nib_pretokenizer_free(&tokenizer->pretokenizer);
    nib_bpe_free(&tokenizer->bpe);
    nib_token_list_free(&tokenizer->before);
    nib_token_list_free(&tokenizer->after);
    nib_decoder_free(&tokenizer->decoder);
    nib_free(tokenizer->added_flags);
    free(tokenizer->chat_template);
    free(tokenizer->path);
    nib_free(tokenizer);
}

/* --- building, for the loaders ------------------------------------------------------------------------------- */

nib_status nib_tokenizer_add_token(nib_tokenizer *tokenizer, nib_added_token token)
{
    nib_buffer buffers[2] = {{0}, {0}};
    size_t length;
    const char *text = nib_vocabulary_text(&tokenizer->bpe.vocabulary, token.id, &length);
    nib_status status = NIB_OK;
    if (text == NULL || length == 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: the added token of id %d has no text", tokenizer->path, token.id);
    if (tokenizer->added_flags == NULL) tokenizer->added_flags = nib_calloc(tokenizer->bpe.vocabulary.ids, 1);
    if (token.normalized) {
        NIB_TRY_GOTO(nib_normalize(&tokenizer->normalizer, buffers, text, length, &text, &length), done);
        if (length == 0) {
            status = NIB_FAIL(NIB_ERROR_DATA, "%s: the added token of id %d normalizes to nothing", tokenizer->path,
                              token.id);
            goto done;
        }
    }
    token.length = length;
    token.text = nib_calloc(length + 1, 1);
    if (token.text != NULL) memcpy(token.text, text, length);
    nib_added_tokens *list = token.normalized ? &tokenizer->added_normalized : &tokenizer->added;
    if (tokenizer->added_flags == NULL || token.text == NULL || !nib_added_tokens_append(list, token)) {
        nib_free(token.text);
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the added tokens", tokenizer->path);
        goto done;
    }
    tokenizer->added_flags[token.id] |=
        (token.special ? NIB_ADDED_SPECIAL : 0) | (token.normalized ? NIB_ADDED_NORMALIZED : 0);
done:
    nib_buffer_free(&buffers[0]);
    nib_buffer_free(&buffers[1]);
    return status;
}

const char nib_gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

nib_status nib_pretokenizer_add(nib_tokenizer *tokenizer, nib_pretokenizer_step step)
{
    nib_pretokenizer *pretokenizer = &tokenizer->pretokenizer;
    if (pretokenizer->count == NIB_PRETOKENIZER_STEPS) {
        nib_pattern_free(step.pattern);
        nib_free(step.replacement);
        return NIB_FAIL(NIB_ERROR_DATA, "%s: more than %d pre-tokenizer steps", tokenizer->path,
                        NIB_PRETOKENIZER_STEPS);
    }
    pretokenizer->steps[pretokenizer->count++] = step;
    return NIB_OK;
}

nib_status nib_pretokenizer_add_split(nib_tokenizer *tokenizer, const char *source, size_t length, bool literal,
                                      nib_split_behavior behavior, bool invert)
{
    nib_pretokenizer_step step = {.kind = NIB_STEP_SPLIT, .behavior = behavior, .invert = invert};
    NIB_TRY(nib_pattern_compile(tokenizer->path, source, length, literal, &step.pattern));
    return nib_pretokenizer_add(tokenizer, step);
}

nib_status nib_pretokenizer_add_byte_level(nib_tokenizer *tokenizer, bool prefix_space, bool use_regex)
{
    tokenizer->bpe.byte_level = true;
    if (prefix_space) NIB_TRY(nib_pretokenizer_add(tokenizer, (nib_pretokenizer_step){.kind = NIB_STEP_PREFIX_SPACE}));
    if (use_regex)
        NIB_TRY(nib_pretokenizer_add_split(tokenizer, nib_gpt2_pattern, strlen(nib_gpt2_pattern), false,
                                           NIB_SPLIT_ISOLATED, false));
    return nib_pretokenizer_add(tokenizer, (nib_pretokenizer_step){.kind = NIB_STEP_TO_ALPHABET});
}

void nib_pretokenizer_finish(nib_tokenizer *tokenizer)
{
    nib_pretokenizer *pretokenizer = &tokenizer->pretokenizer;
    if (pretokenizer->count > 0 && pretokenizer->steps[pretokenizer->count - 1].kind == NIB_STEP_TO_ALPHABET)
        pretokenizer->count--;
    for (size_t i = 0; i < pretokenizer->count; i++)
        tokenizer->words_in_alphabet |= pretokenizer->steps[i].kind == NIB_STEP_TO_ALPHABET;
}

/* --- encoding ------------------------------------------------------------------------------------------------ */

typedef struct {
    const nib_tokenizer *tokenizer;
    nib_tokenizer_worker *worker;
    nib_encode_options options;
    const char *input; /* the whole text */
    bool at_start;     /* the fragment begins it */
    nib_token_list *list;
} encoding;

static nib_status encode_word(void *context, const char *word, size_t length)
{
    encoding *e = context;
    if (e->tokenizer->words_in_alphabet) {
        nib_buffer *bytes = &e->worker->word;
        nib_buffer_clear(bytes);
        nib_alphabet_to_bytes(bytes, word, length);
        if (bytes->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to tokenize a word of %zu bytes", length);
        word = bytes->data;
        length = bytes->length;
    }
    return nib_bpe_encode(&e->tokenizer->bpe, e->worker->bpe, word, length, e->list);
}

static nib_status encode_token(void *context, int32_t id)
{
    encoding *e = context;
    e->at_start = false;
    if (!nib_token_list_append(e->list, &id, 1)) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the tokens");
    return NIB_OK;
}

static nib_status encode_normalized(void *context, const char *text, size_t length)
{
    encoding *e = context;
    nib_status status = nib_pretokenize(&e->tokenizer->pretokenizer, &e->worker->pretokenizer, text, length,
                                        e->at_start, encode_word, e);
    e->at_start = false;
    return status;
}

static nib_status encode_fragment(void *context, const char *text, size_t length)
{
    encoding *e = context;
    e->at_start = text == e->input;
    NIB_TRY(nib_normalize(&e->tokenizer->normalizer, e->worker->normalized, text, length, &text, &length));
    return nib_added_tokens_split(&e->tokenizer->added_normalized, e->options.parse_special, text, length,
                                  encode_normalized, encode_token, e);
}

nib_status nib_tokenizer_encode(const nib_tokenizer *tokenizer, const char *text, size_t length,
                                nib_encode_options options, nib_token_list *list)
{
    size_t invalid = nib_utf8_invalid_at(text, length);
    if (invalid < length)
        return NIB_FAIL(NIB_ERROR_DATA, "a text to tokenize: invalid UTF-8 at byte %zu (0x%02x) of %zu", invalid,
                        (unsigned char)text[invalid], length);
    nib_tokenizer_worker *worker = take_worker(tokenizer);
    if (worker == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to tokenize %zu bytes", length);
    encoding e = {.tokenizer = tokenizer, .worker = worker, .options = options, .input = text, .list = list};
    bool fits = !options.add_special || nib_token_list_append(list, tokenizer->before.ids, tokenizer->before.count);
    nib_status status = nib_added_tokens_split(&tokenizer->added, options.parse_special, text, length, encode_fragment,
                                               encode_token, &e);
    give_back_worker(tokenizer, worker);
    NIB_TRY(status);
    if (options.add_special) fits &= nib_token_list_append(list, tokenizer->after.ids, tokenizer->after.count);
    return fits ? NIB_OK : NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu tokens", list->count);
}

/* --- decoding, and what is known of ids ---------------------------------------------------------------------- */

static bool has_flag(const nib_tokenizer *tokenizer, int32_t id, nib_added_flag flag)
{
    return tokenizer->added_flags != NULL && id >= 0 && (size_t)id < tokenizer->bpe.vocabulary.ids &&
           (tokenizer->added_flags[id] & flag);
}

/* What the decoder reads; NULL: no such id. An added token that is looked for in normalized text is decoded from its
 * normalized text, as by Hugging Face's tokenizers. */
static const char *text_to_decode(const nib_tokenizer *tokenizer, int32_t id, size_t *length)
{
    const nib_added_tokens *normalized = &tokenizer->added_normalized;
    size_t i = 0;
    if (!has_flag(tokenizer, id, NIB_ADDED_NORMALIZED))
        return nib_vocabulary_text(&tokenizer->bpe.vocabulary, id, length);
    while (normalized->tokens[i].id != id) i++;
    *length = normalized->tokens[i].length;
    return normalized->tokens[i].text;
}

/* Hugging Face's tokenizers leave out what reads like a special token. One that is decoded from another text than its
 * own does not, and stays. */
static bool reads_special(const nib_tokenizer *tokenizer, int32_t id, const nib_piece *piece)
{
    if (has_flag(tokenizer, id, NIB_ADDED_NORMALIZED))
        id = nib_vocabulary_find(&tokenizer->bpe.vocabulary, piece->text, piece->length);
    return nib_tokenizer_is_special(tokenizer, id);
}

nib_status nib_tokenizer_decode(const nib_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                                nib_buffer *text)
{
    nib_piece *pieces = nib_calloc(count, sizeof *pieces);
    nib_status status = NIB_OK;
    size_t used = 0;
    if (pieces == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to decode %zu tokens", count);
    for (size_t i = 0; i < count; i++) {
        nib_piece *piece = &pieces[used];
        piece->text = text_to_decode(tokenizer, ids[i], &piece->length);
        if (piece->text == NULL) {
            status = NIB_FAIL(NIB_ERROR_DATA, "%s: id %d (number %zu of %zu to decode) is not in the vocabulary of %zu",
                              tokenizer->path, ids[i], i, count, tokenizer->bpe.vocabulary.ids);
            goto done;
        }
        if (!skip_special || !reads_special(tokenizer, ids[i], piece)) used++;
    }
    status = nib_decode(&tokenizer->decoder, pieces, used, text);
done:
    nib_free(pieces);
    return status;
}

int32_t nib_tokenizer_vocabulary(const nib_tokenizer *tokenizer) { return (int32_t)tokenizer->bpe.vocabulary.ids; }

int32_t nib_tokenizer_id(const nib_tokenizer *tokenizer, const char *token)
{
    return nib_vocabulary_find(&tokenizer->bpe.vocabulary, token, strlen(token));
}

const char *nib_tokenizer_text(const nib_tokenizer *tokenizer, int32_t id)
{
    return nib_vocabulary_text(&tokenizer->bpe.vocabulary, id, NULL);
}

bool nib_tokenizer_is_special(const nib_tokenizer *tokenizer, int32_t id)
{
    return has_flag(tokenizer, id, NIB_ADDED_SPECIAL);
}

int32_t nib_tokenizer_bos(const nib_tokenizer *tokenizer) { return tokenizer->bos; }

int32_t nib_tokenizer_eos(const nib_tokenizer *tokenizer) { return tokenizer->eos; }

const char *nib_tokenizer_chat_template(const nib_tokenizer *tokenizer) { return tokenizer->chat_template; }

const char *nib_tokenizer_hash(const nib_tokenizer *tokenizer) { return tokenizer->hash; }
