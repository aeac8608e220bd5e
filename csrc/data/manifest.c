#include "data/manifest.h"

#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"

#include <stdio.h>
#include <string.h>

#define FORMAT "nibble shards"
enum { VERSION = 1, MAX_SHARDS = 1 << 20, MAX_TEXT = 256 << 20 };
#define MOST ((int64_t)1 << 42) /* of anything counted: sums over all shards stay in 64 bits */

bool nib_manifest_exists(const char *folder)
{
    char *path = nib_path_join(folder, NIB_MANIFEST_FILE);
    bool exists = path != NULL && nib_file_is_folder(folder) && nib_file_exists(path);
    nib_free(path);
    return exists;
}

/* A member that has to be there, 0 or more. */
static nib_status read_count(const char *name, const nib_json *object, const char *key, int64_t *value)
{
    if (nib_json_get(object, key) == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: no \"%s\" in this object", name, object->line, key);
    return nib_json_read_int(name, object, key, 0, MOST, 0, value);
}

static nib_status read_text(const char *name, const nib_json *object, const char *key, const char **text)
{
    NIB_TRY(nib_json_read_string(name, object, key, NULL, text));
    if (*text == NULL) return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: no \"%s\" in this object", name, object->line, key);
    return NIB_OK;
}

static nib_status read_hash(const char *name, const nib_json *object, const char *key, char hash[65])
{
    const char *text;
    NIB_TRY(read_text(name, object, key, &text));
    if (strlen(text) != 64 || strspn(text, "0123456789abcdef") != 64)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"%s\" is no SHA-256", name, object->line, key);
    memcpy(hash, text, 65);
    return NIB_OK;
}

/* A file of the folder itself: nothing of a manifest's choosing is opened elsewhere. */
static nib_status read_file_name(const char *name, const nib_json *object, const char **file)
{
    NIB_TRY(read_text(name, object, "file", file));
    if (**file == 0 || **file == '.' || strchr(*file, '/') != NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"file\" is \"%s\", expected a name within the folder", name,
                        object->line, *file);
    return NIB_OK;
}

static nib_status read_list(const char *name, const nib_json *root, const char *key, const nib_json **list)
{
    *list = nib_json_get(root, key);
    if (!nib_json_is(*list, NIB_JSON_ARRAY) || (*list)->length > MAX_SHARDS)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: \"%s\" is no list, or has more than %d items", name, key, MAX_SHARDS);
    for (const nib_json *item = (*list)->first; item != NULL; item = item->next)
        if (item->kind != NIB_JSON_OBJECT)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: %s in \"%s\", expected an object", name, item->line,
                            nib_json_kind_name(item->kind), key);
    return NIB_OK;
}

static nib_status read_shards(const char *name, const nib_json *root, nib_manifest *m)
{
    const nib_json *list;
    int64_t bytes, content, rows = 0;
    uint64_t all = 0;
    NIB_TRY(read_list(name, root, "shards", &list));
    m->shard = nib_pool_alloc(&m->pool, list->length * sizeof *m->shard);
    if (m->shard == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for %zu shards", name, list->length);
    for (const nib_json *item = list->first; item != NULL; item = item->next) {
        nib_shard *shard = &m->shard[m->shards++];
        NIB_TRY(read_file_name(name, item, &shard->file));
        NIB_TRY(read_count(name, item, "bytes", &bytes));
        NIB_TRY(read_count(name, item, "content_bytes", &content));
        NIB_TRY(read_count(name, item, "frames", &shard->frames));
        NIB_TRY(read_count(name, item, "rows", &shard->rows));
        NIB_TRY(read_hash(name, item, "sha256", shard->hash));
        shard->bytes = (uint64_t)bytes;
        shard->content_bytes = (uint64_t)content;
        all += shard->content_bytes;
        rows += shard->rows;
    }
    if (rows == m->rows && all == m->content_bytes) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: its shards have %lld rows of %llu bytes, it states %lld of %llu", name,
                    (long long)rows, (unsigned long long)all, (long long)m->rows, (unsigned long long)m->content_bytes);
}

static nib_status read_sources(const char *name, const nib_json *root, nib_manifest *m)
{
    const nib_json *list;
    NIB_TRY(read_list(name, root, "sources", &list));
    m->source = nib_pool_alloc(&m->pool, list->length * sizeof *m->source);
    if (m->source == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for %zu sources", name, list->length);
    for (const nib_json *item = list->first; item != NULL; item = item->next) {
        nib_packed_source *source = &m->source[m->sources++];
        NIB_TRY(read_text(name, item, "path", &source->path));
        NIB_TRY(read_count(name, item, "rows", &source->rows));
    }
    return NIB_OK;
}

static nib_status read_terminators(const char *name, const nib_json *object, nib_packed_samples *s)
{
    const nib_json *list = nib_json_get(object, "terminators");
    if (!nib_json_is(list, NIB_JSON_ARRAY) || list->length > NIB_MAX_TERMINATORS)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"terminators\" is no list of up to %d ids", name, object->line,
                        NIB_MAX_TERMINATORS);
    for (const nib_json *id = list->first; id != NULL; id = id->next) {
        if (!id->is_integer || id->integer < 0 || id->integer > INT32_MAX)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: a terminator is no token id", name, id->line);
        s->terminator[s->terminators++] = (int32_t)id->integer;
    }
    return NIB_OK;
}

static nib_status read_samples(const char *name, const nib_json *root, nib_manifest *m)
{
    const nib_json *object = nib_json_get(root, "samples");
    nib_packed_samples *s = &m->samples;
    if (object == NULL || object->kind == NIB_JSON_NULL) return NIB_OK;
    if (object->kind != NIB_JSON_OBJECT)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: \"samples\" is %s, expected an object", name, object->line,
                        nib_json_kind_name(object->kind));
    m->has_samples = true;
    NIB_TRY(read_file_name(name, object, &s->file));
    NIB_TRY(read_hash(name, object, "sha256", s->hash));
    NIB_TRY(read_count(name, object, "count", &s->count));
    NIB_TRY(read_count(name, object, "tokens", &s->tokens));
    NIB_TRY(read_count(name, object, "supervised_tokens", &s->supervised_tokens));
    NIB_TRY(read_count(name, object, "longest", &s->longest));
    NIB_TRY(read_count(name, object, "largest_id", &s->largest_id));
    NIB_TRY(read_count(name, object, "duplicates", &s->duplicates));
    NIB_TRY(read_terminators(name, object, s));
    NIB_TRY(read_hash(name, object, "tokenizer_sha256", s->tokenizer_hash));
    if (nib_json_is(nib_json_get(object, "chat_template_sha256"), NIB_JSON_STRING))
        NIB_TRY(read_hash(name, object, "chat_template_sha256", s->template_hash));
    NIB_TRY(read_text(name, object, "bos_token", &s->bos_token));
    return read_text(name, object, "eos_token", &s->eos_token);
}

static nib_status read_root(const char *name, const nib_json *root, nib_manifest *m)
{
    const char *format;
    int64_t version, content;
    if (root->kind != NIB_JSON_OBJECT)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: %s, expected an object", name, nib_json_kind_name(root->kind));
    NIB_TRY(read_text(name, root, "format", &format));
    NIB_TRY(read_count(name, root, "version", &version));
    if (strcmp(format, FORMAT) != 0 || version != VERSION)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: format \"%s\", version %lld, expected \"%s\", version %d; pack the data again with this "
                        "nibble",
                        name, format, (long long)version, FORMAT, VERSION);
    NIB_TRY(read_count(name, root, "rows", &m->rows));
    NIB_TRY(read_count(name, root, "content_bytes", &content));
    m->content_bytes = (uint64_t)content;
    NIB_TRY(read_sources(name, root, m));
    NIB_TRY(read_shards(name, root, m));
    return read_samples(name, root, m);
}

nib_status nib_manifest_read(const char *folder, nib_manifest *m)
{
    *m = (nib_manifest){0};
    nib_status status;
    nib_json *root = NULL;
    char *text = NULL, *path = nib_path_join(folder, NIB_MANIFEST_FILE);
    size_t length;
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", folder);
    NIB_TRY_GOTO(nib_file_read(path, MAX_TEXT, &text, &length), done);
    nib_sha256_of(text, length, m->hash);
    NIB_TRY_GOTO(nib_json_parse(path, text, length, (nib_json_options){0}, &m->pool, &root), done);
    status = read_root(path, root, m);
done:
    nib_free(text);
    nib_free(path);
    if (status != NIB_OK) nib_manifest_free(m);
    return status;
}

void nib_manifest_free(nib_manifest *m)
{
    nib_pool_free(&m->pool);
    *m = (nib_manifest){0};
}

static void put_text(nib_buffer *out, const char *key, const char *text)
{
    nib_buffer_format(out, "\"%s\": ", key);
    nib_buffer_json_string(out, text, strlen(text), false);
}

static void put_samples(nib_buffer *out, const nib_packed_samples *s)
{
    nib_buffer_text(out, "{\n    ");
    put_text(out, "file", s->file);
    nib_buffer_format(out,
                      ", \"sha256\": \"%s\",\n    \"count\": %lld, \"tokens\": %lld, \"supervised_tokens\": %lld, "
                      "\"longest\": %lld, \"largest_id\": %lld, \"duplicates\": %lld,\n    \"terminators\": [",
                      s->hash, (long long)s->count, (long long)s->tokens, (long long)s->supervised_tokens,
                      (long long)s->longest, (long long)s->largest_id, (long long)s->duplicates);
    for (int i = 0; i < s->terminators; i++) nib_buffer_format(out, i == 0 ? "%d" : ", %d", s->terminator[i]);
    nib_buffer_format(out, "],\n    \"tokenizer_sha256\": \"%s\",\n    \"chat_template_sha256\": ", s->tokenizer_hash);
    nib_buffer_format(out, s->template_hash[0] == 0 ? "null" : "\"%s\"", s->template_hash);
    nib_buffer_text(out, ",\n    ");
    put_text(out, "bos_token", s->bos_token);
    nib_buffer_text(out, ", ");
    put_text(out, "eos_token", s->eos_token);
    nib_buffer_text(out, "\n  }");
}

void nib_manifest_write(const nib_manifest *m, nib_buffer *out)
{
    nib_buffer_format(out, "{\n  \"format\": \"%s\", \"version\": %d,\n  \"rows\": %lld, \"content_bytes\": %llu,\n",
                      FORMAT, VERSION, (long long)m->rows, (unsigned long long)m->content_bytes);
    nib_buffer_text(out, "  \"sources\": [");
    for (int i = 0; i < m->sources; i++) {
        nib_buffer_text(out, i == 0 ? "\n    {" : ",\n    {");
        put_text(out, "path", m->source[i].path);
        nib_buffer_format(out, ", \"rows\": %lld}", (long long)m->source[i].rows);
    }
    nib_buffer_text(out, "\n  ],\n  \"shards\": [");
    for (int i = 0; i < m->shards; i++) {
        const nib_shard *s = &m->shard[i];
        nib_buffer_text(out, i == 0 ? "\n    {" : ",\n    {");
        put_text(out, "file", s->file);
        nib_buffer_format(out,
                          ", \"bytes\": %llu, \"content_bytes\": %llu, \"frames\": %lld, \"rows\": %lld,\n     "
                          "\"sha256\": \"%s\"}",
                          (unsigned long long)s->bytes, (unsigned long long)s->content_bytes, (long long)s->frames,
                          (long long)s->rows, s->hash);
    }
    nib_buffer_text(out, "\n  ],\n  \"samples\": ");
    if (m->has_samples)
        put_samples(out, &m->samples);
    else
        nib_buffer_text(out, "null");
    nib_buffer_text(out, "\n}\n");
}
