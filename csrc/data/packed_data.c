#include "data/packed_data.h"

#include "base/file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static nib_status no_memory(const char *folder)
{
    return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", folder);
}

static nib_status check_size(const char *path, uint64_t bytes)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return NIB_FAIL(errno == ENOENT ? NIB_ERROR_DATA : NIB_ERROR_IO, "%s: cannot be opened: %s", path,
                        strerror(errno));
    if ((uint64_t)info.st_size == bytes) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: %lld bytes, the manifest states %llu; restore the file, or pack again", path,
                    (long long)info.st_size, (unsigned long long)bytes);
}

static nib_status same_hash(const nib_packed_data *data, const char *what, const char *packed, const char *now,
                            const char *key)
{
    if (strcmp(packed, now) == 0) return NIB_OK;
    char was[32] = "none", is[32] = "none";
    if (*packed != 0) snprintf(was, sizeof was, "SHA-256 %.12s...", packed);
    if (*now != 0) snprintf(is, sizeof is, "SHA-256 %.12s...", now);
    return NIB_FAIL(
        NIB_ERROR_DATA,
        "%s: was packed with another %s (%s) than is given now (%s); pack it again with this one, or set %s",
        data->folder, what, was, is, key);
}

static nib_status same_text(const nib_packed_data *data, const char *what, const char *packed, const char *now)
{
    if (strcmp(packed, now) == 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: was packed with %s \"%s\", the tokenizer now has \"%s\"; pack it again",
                    data->folder, what, packed, now);
}

/* Samples were counted by this tokenizer and template, or they are not these. */
static nib_status check_tokenizer(const nib_packed_data *data, const nib_data_options *o)
{
    const nib_packed_samples *s = &data->manifest.samples;
    if (!data->manifest.has_samples) return NIB_OK;
    NIB_TRY(same_hash(data, "tokenizer", s->tokenizer_hash,
                      o->tokenizer == NULL ? "" : nib_tokenizer_hash(o->tokenizer), "\"tokenizer\""));
    NIB_TRY(same_hash(data, "chat template", s->template_hash,
                      o->chat_template == NULL ? "" : nib_chat_template_hash(o->chat_template),
                      "\"data.chat_template\""));
    NIB_TRY(same_text(data, "bos_token", s->bos_token, o->bos_token));
    return same_text(data, "eos_token", s->eos_token, o->eos_token);
}

static nib_status open_files(nib_packed_data *data)
{
    const nib_manifest *m = &data->manifest;
    data->shard_path = nib_calloc((size_t)m->shards + 1, sizeof *data->shard_path);
    if (data->shard_path == NULL) return no_memory(data->folder);
    for (int i = 0; i < m->shards; i++) {
        data->shard_path[i] = nib_path_join(data->folder, m->shard[i].file);
        if (data->shard_path[i] == NULL) return no_memory(data->folder);
        NIB_TRY(check_size(data->shard_path[i], m->shard[i].bytes));
    }
    if (!m->has_samples) return NIB_OK;
    char *path = nib_path_join(data->folder, m->samples.file);
    if (path == NULL) return no_memory(data->folder);
    nib_status status = nib_sample_index_open(path, m->samples.count, &data->index);
    nib_free(path);
    return status;
}

nib_status nib_packed_data_open(const char *folder, const nib_data_options *options, nib_packed_data *data)
{
    nib_status status = NIB_OK;
    *data = (nib_packed_data){.index.fd = -1, .folder = nib_path_join("", folder)};
    if (data->folder == NULL) return no_memory(folder);
    NIB_TRY_GOTO(nib_manifest_read(folder, &data->manifest), done);
    NIB_TRY_GOTO(check_tokenizer(data, options), done);
    status = open_files(data);
done:
    if (status != NIB_OK) nib_packed_data_close(data);
    return status;
}

void nib_packed_data_close(nib_packed_data *data)
{
    for (int i = 0; data->shard_path != NULL && i < data->manifest.shards; i++) nib_free(data->shard_path[i]);
    nib_free(data->shard_path);
    nib_free(data->folder);
    nib_sample_index_close(&data->index);
    nib_manifest_free(&data->manifest);
    *data = (nib_packed_data){.index.fd = -1};
}

static nib_status verify_file(const char *path, const char *hash)
{
    nib_file file;
    char now[65];
    NIB_TRY(nib_file_map(&file, path));
    nib_file_hash(&file, now);
    nib_file_unmap(&file);
    if (strcmp(now, hash) == 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA,
                    "%s: its SHA-256 is %.12s..., the manifest states %.12s...; restore the file, or pack "
                    "again",
                    path, now, hash);
}

/* Reads all frames of a shard: the one that is corrupt is named. */
static nib_status verify_frames(const char *path)
{
    char piece[1 << 16];
    nib_zstd_reader *reader;
    nib_status status = NIB_OK;
    NIB_TRY(nib_zstd_reader_open(path, &reader));
    uint64_t content = nib_zstd_reader_content(reader);
    for (uint64_t at = 0, n; at < content && status == NIB_OK; at += n) {
        n = content - at < sizeof piece ? content - at : sizeof piece;
        status = nib_zstd_reader_read(reader, at, piece, n);
    }
    nib_zstd_reader_close(reader);
    return status;
}

/* Of a shard with another hash one wants to know which frame it is; whole frames may be others, too. */
static nib_status verify_shard(const char *path, const char *hash)
{
    if (verify_file(path, hash) == NIB_OK) return NIB_OK;
    NIB_TRY(verify_frames(path));
    return verify_file(path, hash);
}

nib_status nib_packed_data_verify(const nib_packed_data *data)
{
    const nib_manifest *m = &data->manifest;
    for (int i = 0; i < m->shards; i++) NIB_TRY(verify_shard(data->shard_path[i], m->shard[i].hash));
    return m->has_samples ? verify_file(data->index.path, m->samples.hash) : NIB_OK;
}

const char *nib_packed_data_obstacle(const nib_packed_data *data, const nib_data_options *options)
{
    const nib_manifest *m = &data->manifest;
    if (!m->has_samples) return "it was packed without --tokenizer";
    if (m->samples.count == 0) return "it has no sample";
    if (options->train_on_all) return "\"data.train_on\" is \"all\"";
    return m->samples.longest > options->max_length ? "some are longer than \"data.max_length\"" : NULL;
}

/* Takes the one sample of a row that is wanted. */
typedef struct {
    uint32_t wanted, draft, supervised;
    int64_t vocabulary;
    nib_pool *pool;
    nib_row *row;
    uint64_t fingerprint;
} draft_sink;

static nib_status take_draft(void *context, const nib_draft *draft)
{
    draft_sink *sink = context;
    if (sink->draft++ != sink->wanted) return NIB_OK;
    int32_t *ids = nib_pool_alloc(sink->pool, draft->length * sizeof *ids);
    uint8_t *supervised = nib_pool_alloc(sink->pool, draft->length);
    if (ids == NULL || supervised == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a sample of %zu tokens", draft->length);
    memcpy(ids, draft->ids, draft->length * sizeof *ids);
    memcpy(supervised, draft->supervised, draft->length);
    for (size_t i = 0; i < draft->length; i++) {
        if (ids[i] < 0 || ids[i] >= sink->vocabulary)
            return NIB_FAIL(NIB_ERROR_DATA, "token %zu of a sample has id %d, the model's vocabulary ends at %lld", i,
                            ids[i], (long long)sink->vocabulary - 1);
        sink->supervised += supervised[i];
    }
    *sink->row = (nib_row){ids, supervised, (int32_t)draft->length, draft->weight};
    sink->fingerprint = nib_draft_fingerprint(draft);
    return NIB_OK;
}

/* The text of the sample's row into cursor->line. */
static nib_status read_line(nib_packed_cursor *c, int64_t index, const nib_sample_place *place)
{
    const nib_packed_data *data = c->data;
    if (place->shard >= (uint32_t)data->manifest.shards)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: sample %lld is in shard %u of %d; restore the file, or pack again",
                        data->index.path, (long long)index, place->shard, data->manifest.shards);
    if (c->shard == NULL || c->shard_number != place->shard) {
        nib_zstd_reader_close(c->shard);
        NIB_TRY(nib_zstd_reader_open(data->shard_path[place->shard], &c->shard));
        c->shard_number = place->shard;
    }
    if (place->length > nib_zstd_reader_content(c->shard))
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: the row of sample %lld has %u bytes, more than its shard; restore the file",
                        data->index.path, (long long)index, place->length);
    nib_buffer_clear(&c->line);
    if (!nib_grow(&c->line.data, &c->line.capacity, (size_t)place->length + 1, 1)) return no_memory(data->folder);
    NIB_TRY(nib_zstd_reader_read(c->shard, place->offset, c->line.data, place->length));
    c->line.length = place->length;
    return NIB_OK;
}

nib_status nib_packed_cursor_read(nib_packed_cursor *c, int64_t index, nib_pool *pool, nib_row *row)
{
    nib_sample_place place;
    NIB_TRY(nib_sample_index_read(&c->data->index, index, 1, &place));
    NIB_TRY(read_line(c, index, &place));
    draft_sink sink = {.wanted = place.draft, .vocabulary = c->vocabulary, .pool = pool, .row = row};
    *row = (nib_row){0};
    c->encoder.options = c->options;
    c->encoder.sink = take_draft;
    c->encoder.sink_context = &sink;
    nib_buffer where = {0};
    nib_buffer_format(&where, "%s:%u", c->data->shard_path[place.shard], place.line);
    nib_status status = where.failed ? no_memory(c->data->folder)
                                     : nib_row_encode_line(&c->encoder, where.data, c->line.data, c->line.length);
    if (status == NIB_OK && (sink.draft <= sink.wanted || (uint32_t)row->length != place.tokens ||
                             sink.supervised != place.supervised || sink.fingerprint != place.fingerprint))
        status = NIB_FAIL(NIB_ERROR_DATA,
                          "%s: the row does not give sample %lld of %s (%u tokens); restore the files, or pack again",
                          where.data, (long long)index, c->data->index.path, place.tokens);
    nib_buffer_free(&where);
    return status;
}

void nib_packed_cursor_free(nib_packed_cursor *c)
{
    nib_zstd_reader_close(c->shard);
    nib_row_encoder_free(&c->encoder);
    nib_buffer_free(&c->line);
    *c = (nib_packed_cursor){0};
}
