/* tokenizer.json, the file of Hugging Face's tokenizers, and what tokenizer_config.json beside it adds. */
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "tokenizer/load_steps.h"
#include "tokenizer/pipeline.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)256 << 20)
/* A node of the parsed file takes some 100 bytes, and a merge has up to three. */
#define MAX_POOL_BYTES ((size_t)4 << 30)

static nib_status no_memory(const nib_tokenizer *t) { return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory", t->path); }

static nib_status load_vocabulary(nib_tokenizer *t, const nib_json *model)
{
    const nib_json *vocab = nib_json_get(model, "vocab");
    if (!nib_json_is(vocab, NIB_JSON_OBJECT))
        return NIB_FAIL(NIB_ERROR_DATA, "%s: model.vocab is missing or no object of ids", t->path);
    for (const nib_json *entry = vocab->first; entry != NULL; entry = entry->next) {
        if (entry->kind != NIB_JSON_NUMBER || !entry->is_integer)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: the id of \"%.100s\" is no integer", t->path, entry->key_line,
                            entry->key);
        NIB_TRY(nib_vocabulary_add(&t->bpe.vocabulary, t->path, entry->integer, entry->key, entry->key_length));
    }
    return NIB_OK;
}

/* Both ways to write a merge: "left right", and ["left", "right"]. */
static bool read_merge(const nib_json *merge, const char *side[2], size_t length[2])
{
    if (merge->kind == NIB_JSON_ARRAY && merge->length == 2 && merge->first->kind == NIB_JSON_STRING &&
        merge->first->next->kind == NIB_JSON_STRING) {
        side[0] = merge->first->string, length[0] = merge->first->length;
        side[1] = merge->first->next->string, length[1] = merge->first->next->length;
        return true;
    }
    if (merge->kind != NIB_JSON_STRING) return false;
    const char *space = memchr(merge->string, ' ', merge->length);
    if (space == NULL) return false;
    side[0] = merge->string, length[0] = (size_t)(space - merge->string);
    side[1] = space + 1, length[1] = merge->length - length[0] - 1;
    return memchr(side[1], ' ', length[1]) == NULL;
}

static nib_status load_merges(nib_tokenizer *t, const nib_json *model)
{
    const nib_json *merges = nib_json_get(model, "merges");
    const nib_vocabulary *vocabulary = &t->bpe.vocabulary;
    nib_buffer joined = {0};
    nib_status status = NIB_OK;
    uint32_t rank = 0;
    if (!nib_json_is(merges, NIB_JSON_ARRAY) || merges->length >= UINT32_MAX)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: model.merges is missing or no array", t->path);
    NIB_TRY(nib_bpe_reserve_merges(&t->bpe, t->path, merges->length));
    for (const nib_json *merge = merges->first; merge != NULL; merge = merge->next, rank++) {
        const char *side[2];
        size_t length[2];
        int32_t ids[3] = {-1, -1, -1};
        if (read_merge(merge, side, length)) {
            nib_buffer_clear(&joined);
            for (int i = 0; i < 2; i++) {
                ids[i] = nib_vocabulary_find(vocabulary, side[i], length[i]);
                nib_buffer_append(&joined, side[i], length[i]);
            }
            if (!joined.failed) ids[2] = nib_vocabulary_find(vocabulary, joined.data, joined.length);
        }
        if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0) {
            status =
                NIB_FAIL(NIB_ERROR_DATA,
                         "%s:%u: model.merges: merge %u, expected two tokens of the vocabulary that join to a third",
                         t->path, merge->line, rank);
            break;
        }
        status = nib_bpe_add_merge(&t->bpe, t->path, ids[0], ids[1], rank, ids[2]);
        if (status != NIB_OK) break;
    }
    nib_buffer_free(&joined);
    return status;
}

static nib_status load_model(nib_tokenizer *t, const nib_json *root)
{
    const nib_json *model = nib_json_get(root, "model");
    const char *type, *unknown, *prefix, *suffix;
    double dropout;
    NIB_TRY(nib_json_read_string(t->path, model, "type", "BPE", &type));
    if (model == NULL || strcmp(type, "BPE") != 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: model.type is \"%.60s\", expected \"BPE\"", t->path, type);
    NIB_TRY(nib_json_read_double(t->path, model, "dropout", 0, &dropout));
    NIB_TRY(nib_json_read_string(t->path, model, "continuing_subword_prefix", "", &prefix));
    NIB_TRY(nib_json_read_string(t->path, model, "end_of_word_suffix", "", &suffix));
    if (dropout != 0 || *prefix != 0 || *suffix != 0)
        return NIB_FAIL(
            NIB_ERROR_DATA,
            "%s: model has dropout, continuing_subword_prefix or end_of_word_suffix, which are not supported", t->path);
    NIB_TRY(nib_json_read_bool(t->path, model, "fuse_unk", false, &t->bpe.fuse_unk));
    NIB_TRY(nib_json_read_bool(t->path, model, "byte_fallback", false, &t->bpe.byte_fallback));
    NIB_TRY(nib_json_read_bool(t->path, model, "ignore_merges", false, &t->bpe.ignore_merges));
    NIB_TRY(nib_json_read_string(t->path, model, "unk_token", NULL, &unknown));
    NIB_TRY(load_vocabulary(t, model));
    t->bpe.model_bytes = t->bpe.vocabulary.bytes.length;
    NIB_TRY(load_merges(t, model));
    if (unknown != NULL) {
        t->bpe.unknown = nib_vocabulary_find(&t->bpe.vocabulary, unknown, strlen(unknown));
        if (t->bpe.unknown < 0)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: model.unk_token \"%.100s\" is not in the vocabulary", t->path,
                            unknown);
    }
    return NIB_OK;
}

/* Token i of the array: its flags, and its text into the vocabulary if it is not there yet. */
static nib_status read_added(nib_tokenizer *t, const nib_json *entry, nib_added_token *token)
{
    const nib_json *content = nib_json_get(entry, "content");
    int64_t id;
    NIB_TRY(nib_json_read_int(t->path, entry, "id", 0, NIB_VOCABULARY_MAX_ID, -1, &id));
    if (!nib_json_is(content, NIB_JSON_STRING) || content->length == 0 || id < 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: an added token without id or content", t->path, entry->line);
    NIB_TRY(nib_load_flag(t, entry, "single_word", &token->single_word));
    NIB_TRY(nib_load_flag(t, entry, "lstrip", &token->lstrip));
    NIB_TRY(nib_load_flag(t, entry, "rstrip", &token->rstrip));
    NIB_TRY(nib_load_flag(t, entry, "special", &token->special));
    NIB_TRY(nib_load_flag(t, entry, "normalized", &token->normalized));
    token->id = (int32_t)id;
    if (nib_vocabulary_find(&t->bpe.vocabulary, content->string, content->length) == token->id) return NIB_OK;
    return nib_vocabulary_add(&t->bpe.vocabulary, t->path, id, content->string, content->length);
}

static nib_status load_added_tokens(nib_tokenizer *t, const nib_json *root)
{
    const nib_json *array = nib_json_get(root, "added_tokens");
    nib_status status = NIB_OK;
    size_t count = 0;
    if (array == NULL || array->kind == NIB_JSON_NULL) return NIB_OK;
    if (array->kind != NIB_JSON_ARRAY)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: added_tokens is no array", t->path, array->line);
    nib_added_token *tokens = nib_calloc(array->length, sizeof *tokens);
    if (tokens == NULL) return no_memory(t);
    for (const nib_json *entry = array->first; entry != NULL && status == NIB_OK; entry = entry->next)
        status = read_added(t, entry, &tokens[count++]);
    for (size_t i = 0; i < count && status == NIB_OK; i++) status = nib_tokenizer_add_token(t, tokens[i]);
    nib_free(tokens);
    return status;
}

/* A token of tokenizer_config.json: its text, or an object that holds it. -1 if it is none of the vocabulary. */
static int32_t config_token(const nib_tokenizer *t, const nib_json *config, const char *key)
{
    const nib_json *token = nib_json_get(config, key);
    if (nib_json_is(token, NIB_JSON_OBJECT)) token = nib_json_get(token, "content");
    if (!nib_json_is(token, NIB_JSON_STRING)) return -1;
    return nib_vocabulary_find(&t->bpe.vocabulary, token->string, token->length);
}

/* chat_template: the source, or an array of named ones of which "default" is meant. */
static const char *config_template(const nib_json *config)
{
    const nib_json *value = nib_json_get(config, "chat_template");
    if (nib_json_is(value, NIB_JSON_STRING)) return value->string;
    if (!nib_json_is(value, NIB_JSON_ARRAY)) return NULL;
    for (const nib_json *entry = value->first; entry != NULL; entry = entry->next) {
        const nib_json *name = nib_json_get(entry, "name"), *source = nib_json_get(entry, "template");
        if (nib_json_is(name, NIB_JSON_STRING) && nib_json_is(source, NIB_JSON_STRING) &&
            strcmp(name->string, "default") == 0)
            return source->string;
    }
    return NULL;
}

/* tokenizer_config.json and chat_template.jinja in the file's folder; either may be absent. */
static nib_status load_config(nib_tokenizer *t)
{
    nib_pool pool = {.limit = MAX_POOL_BYTES};
    nib_json *config;
    char *text = NULL, *source = NULL, *path = NULL, *source_path = NULL;
    size_t length;
    nib_status status = NIB_OK;
    char *folder = nib_path_folder(t->path);
    if (folder != NULL) path = nib_path_join(folder, "tokenizer_config.json");
    if (folder != NULL) source_path = nib_path_join(folder, "chat_template.jinja");
    if (path == NULL || source_path == NULL) {
        status = no_memory(t);
        goto done;
    }
    if (nib_file_exists(path)) {
        NIB_TRY_GOTO(nib_file_read(path, MAX_FILE_BYTES, &text, &length), done);
        NIB_TRY_GOTO(nib_json_parse(path, text, length, (nib_json_options){0}, &pool, &config), done);
        t->bos = config_token(t, config, "bos_token");
        t->eos = config_token(t, config, "eos_token");
        const char *found = config_template(config);
        if (found != NULL && (t->chat_template = strdup(found)) == NULL) {
            status = no_memory(t);
            goto done;
        }
    }
    if (nib_file_exists(source_path)) { /* the newer form, which wins in transformers too */
        NIB_TRY_GOTO(nib_file_read(source_path, MAX_FILE_BYTES, &source, &length), done);
        free(t->chat_template);
        if ((t->chat_template = strdup(source)) == NULL) status = no_memory(t);
    }
done:
    nib_pool_free(&pool);
    nib_free(text);
    nib_free(source);
    nib_free(folder);
    nib_free(path);
    nib_free(source_path);
    return status;
}

/* A part under another name would be a part left out. */
static nib_status check_keys(const nib_tokenizer *t, const nib_json *root)
{
    static const char *const keys[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                       "pre_tokenizer", "post_processor", "decoder", "model"};
    for (const nib_json *member = root->first; member != NULL; member = member->next) {
        bool known = false;
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) known = known || strcmp(member->key, keys[i]) == 0;
        if (!known)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s:%u: \"%.60s\" is no part of a tokenizer; expected version, truncation, padding, "
                            "added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model",
                            t->path, member->key_line, member->key);
    }
    return NIB_OK;
}

nib_status nib_tokenizer_load_json(nib_tokenizer *t)
{
    nib_file file = {0};
    nib_pool pool = {.limit = MAX_POOL_BYTES};
    nib_json *root;
    nib_status status;
    NIB_TRY_GOTO(nib_file_map(&file, t->path), done);
    if (file.size > MAX_FILE_BYTES) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: %llu bytes, expected at most %zu", t->path,
                          (unsigned long long)file.size, MAX_FILE_BYTES);
        goto done;
    }
    nib_json_options options = {.allow_nul = true};
    NIB_TRY_GOTO(nib_json_parse(t->path, (const char *)file.data, file.size, options, &pool, &root), done);
    if (root->kind != NIB_JSON_OBJECT) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: the file is %s, expected an object with \"model\"", t->path,
                          nib_json_kind_name(root->kind));
        goto done;
    }
    NIB_TRY_GOTO(check_keys(t, root), done);
    nib_sha256_of(file.data, file.size, t->hash);
    NIB_TRY_GOTO(nib_load_normalizer(t, nib_json_get(root, "normalizer")), done);
    NIB_TRY_GOTO(nib_load_pretokenizer(t, nib_json_get(root, "pre_tokenizer")), done);
    NIB_TRY_GOTO(load_model(t, root), done);
    NIB_TRY_GOTO(load_added_tokens(t, root), done);
    NIB_TRY_GOTO(nib_load_post_processor(t, nib_json_get(root, "post_processor")), done);
    NIB_TRY_GOTO(nib_load_decoder(t, nib_json_get(root, "decoder")), done);
    status = load_config(t);
done:
    nib_pool_free(&pool);
    nib_file_unmap(&file);
    return status;
}
