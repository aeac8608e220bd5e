/* Rows are read into batches of a few MiB. Of a batch, groups of rows are checked (and counted in tokens), then its
 * frames compressed, by all threads; what they made is written in the order of the rows. */
#include "data/shard_packer.h"

#include "base/file.h"
#include "data/row_encoder.h"
#include "data/sample_index.h"
#include "formats/row_reader.h"
#include "formats/zstd_frames.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BATCH_BYTES = 16 << 20, GROUP_ROWS = 128, MESSAGE = 1024 };
#define SAMPLES_FILE "samples.index"

/* A row of the batch. */
typedef struct {
    size_t at; /* in the batch's text */
    uint32_t length;
    uint32_t line; /* in the shard, from 1 */
    int64_t source_line;
    int source;
} batch_row;

/* What one thread makes of a group of rows, or of one frame. */
typedef struct {
    nib_buffer bytes; /* entries of the index, or the frame */
    nib_packed_samples sums;
    nib_status status;
    char message[MESSAGE];
} piece;

typedef struct {
    const char *const *files;
    const nib_data_options *options;
    nib_buffer folder, text; /* text: rows that are not in a frame yet */
    batch_row *row;
    size_t rows, row_capacity;
    piece *piece;
    size_t pieces;
    nib_manifest manifest;
    size_t shard_capacity;
    nib_zstd_writer shard;
    uint64_t text_offset; /* of the text in the shard's content */
    uint32_t shard_rows;
    int index;
    nib_sha256 index_hash;
} packer;

/* For the sink: where the samples of one row go. */
typedef struct {
    const packer *packer;
    const batch_row *row;
    piece *piece;
    uint32_t draft;
} row_sink;

static nib_status no_memory(void) { return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to pack rows"); }

static void keep_error(piece *p, nib_status status)
{
    p->status = status;
    snprintf(p->message, sizeof p->message, "%s", nib_error_message());
}

static nib_status take_draft(void *context, const nib_draft *draft)
{
    row_sink *sink = context;
    nib_packed_samples *sums = &sink->piece->sums;
    nib_sample_place place = {.offset = sink->packer->text_offset + sink->row->at,
                              .fingerprint = nib_draft_fingerprint(draft),
                              .length = sink->row->length,
                              .shard = (uint32_t)sink->packer->manifest.shards - 1,
                              .line = sink->row->line,
                              .draft = sink->draft++,
                              .tokens = (uint32_t)draft->length};
    if (draft->length > INT32_MAX)
        return NIB_FAIL(NIB_ERROR_DATA, "a row of %zu tokens, at most %d expected", draft->length, INT32_MAX);
    for (size_t i = 0; i < draft->length; i++) {
        place.supervised += draft->supervised[i];
        if (draft->ids[i] > sums->largest_id) sums->largest_id = draft->ids[i];
    }
    nib_sample_place_append(&place, &sink->piece->bytes);
    sums->count++;
    sums->tokens += place.tokens;
    sums->supervised_tokens += place.supervised;
    if (place.tokens > sums->longest) sums->longest = place.tokens;
    return sink->piece->bytes.failed ? no_memory() : NIB_OK;
}

/* Without a tokenizer a row is only held against the formats that there are. */
static nib_status check_row(const char *where, const char *line, size_t length)
{
    nib_pool pool = {.limit = NIB_MAX_ROW_MEMORY};
    nib_json *root;
    nib_parsed_row parsed;
    nib_status status = nib_row_read(where, line, length, &pool, &root);
    if (status == NIB_OK) status = nib_row_parse(where, root, false, &pool, &parsed);
    nib_pool_free(&pool);
    return status;
}

static nib_status take_row(const packer *p, nib_row_encoder *encoder, row_sink *sink, nib_buffer *where)
{
    const batch_row *row = sink->row;
    nib_buffer_clear(where);
    nib_buffer_format(where, "%s:%lld", p->files[row->source], (long long)row->source_line);
    if (where->failed) return no_memory();
    const char *line = p->text.data + row->at;
    sink->draft = 0;
    return p->options == NULL ? check_row(where->data, line, row->length)
                              : nib_row_encode_line(encoder, where->data, line, row->length);
}

static void take_group(const packer *p, size_t group)
{
    piece *made = &p->piece[group];
    row_sink sink = {.packer = p, .piece = made};
    nib_row_encoder encoder = {.options = p->options, .sink = take_draft, .sink_context = &sink};
    nib_buffer where = {0};
    size_t end = (group + 1) * GROUP_ROWS < p->rows ? (group + 1) * GROUP_ROWS : p->rows;
    nib_status status = NIB_OK;
    for (size_t i = group * GROUP_ROWS; i < end && status == NIB_OK; i++) {
        sink.row = &p->row[i];
        status = take_row(p, &encoder, &sink, &where);
    }
    if (status != NIB_OK) keep_error(made, status);
    memcpy(made->sums.terminator, encoder.terminator, sizeof encoder.terminator);
    made->sums.terminators = encoder.terminators;
    nib_row_encoder_free(&encoder);
    nib_buffer_free(&where);
}

static void add_sums(nib_packed_samples *all, const nib_packed_samples *own)
{
    all->count += own->count;
    all->tokens += own->tokens;
    all->supervised_tokens += own->supervised_tokens;
    if (own->longest > all->longest) all->longest = own->longest;
    if (own->largest_id > all->largest_id) all->largest_id = own->largest_id;
    for (int i = 0; i < own->terminators; i++) {
        int k = 0;
        while (k < all->terminators && all->terminator[k] != own->terminator[i]) k++;
        if (k == all->terminators && k < NIB_MAX_TERMINATORS) all->terminator[all->terminators++] = own->terminator[i];
    }
}

static void free_pieces(packer *p)
{
    for (size_t i = 0; i < p->pieces; i++) nib_buffer_free(&p->piece[i].bytes);
    nib_free(p->piece);
    p->piece = NULL;
    p->pieces = 0;
}

static nib_status make_pieces(packer *p, size_t count)
{
    free_pieces(p);
    p->piece = nib_calloc(count, sizeof *p->piece);
    if (p->piece == NULL) return no_memory();
    p->pieces = count;
    return NIB_OK;
}

/* The first error in the order of rows. */
static nib_status first_error(const packer *p)
{
    for (size_t i = 0; i < p->pieces; i++)
        if (p->piece[i].status != NIB_OK) return NIB_FAIL(p->piece[i].status, "%s", p->piece[i].message);
    return NIB_OK;
}

/* Checks and counts the batch's rows; their index entries are written. */
static nib_status take_rows(packer *p)
{
    NIB_TRY(make_pieces(p, (p->rows + GROUP_ROWS - 1) / GROUP_ROWS));
#pragma omp parallel for schedule(dynamic)
    for (size_t group = 0; group < p->pieces; group++) take_group(p, group);
    NIB_TRY(first_error(p));
    for (size_t i = 0; i < p->pieces && p->options != NULL; i++) {
        const piece *made = &p->piece[i];
        add_sums(&p->manifest.samples, &made->sums);
        nib_sha256_update(&p->index_hash, made->bytes.data, made->bytes.length);
        NIB_TRY(nib_file_write_all(p->index, made->bytes.data, made->bytes.length, p->folder.data));
    }
    return NIB_OK;
}

/* Writes the frames that the text fills; with `all` also what is left of it. */
static nib_status write_frames(packer *p, bool all)
{
    size_t frames = (p->text.length + (all ? NIB_FRAME_CONTENT - 1 : 0)) / NIB_FRAME_CONTENT;
    NIB_TRY(make_pieces(p, frames));
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < frames; i++) {
        size_t at = i * NIB_FRAME_CONTENT, left = p->text.length - at;
        nib_status status = nib_zstd_frame_append(
            p->text.data + at, left < NIB_FRAME_CONTENT ? left : NIB_FRAME_CONTENT, &p->piece[i].bytes);
        if (status != NIB_OK) keep_error(&p->piece[i], status);
    }
    NIB_TRY(first_error(p));
    for (size_t i = 0; i < frames; i++) {
        size_t at = i * NIB_FRAME_CONTENT, left = p->text.length - at;
        NIB_TRY(nib_zstd_writer_add(&p->shard, p->piece[i].bytes.data, p->piece[i].bytes.length,
                                    left < NIB_FRAME_CONTENT ? left : NIB_FRAME_CONTENT));
    }
    size_t written = frames * NIB_FRAME_CONTENT < p->text.length ? frames * NIB_FRAME_CONTENT : p->text.length;
    if (written > 0) memmove(p->text.data, p->text.data + written, p->text.length - written);
    p->text.length -= written;
    p->text_offset += written;
    return NIB_OK;
}

static nib_status take_batch(packer *p, bool all)
{
    NIB_TRY(take_rows(p));
    p->rows = 0;
    return write_frames(p, all);
}

static nib_status begin_shard(packer *p)
{
    nib_manifest *m = &p->manifest;
    char name[48];
    snprintf(name, sizeof name, "shard-%05d.jsonl.zst", m->shards);
    if (!nib_grow(&m->shard, &p->shard_capacity, (size_t)m->shards + 1, sizeof *m->shard)) return no_memory();
    m->shard[m->shards] = (nib_shard){.file = nib_pool_copy(&m->pool, name, strlen(name))};
    char *path = nib_path_join(p->folder.data, name);
    if (path == NULL || m->shard[m->shards++].file == NULL) {
        nib_free(path);
        return no_memory();
    }
    p->text_offset = 0;
    p->shard_rows = 0;
    nib_status status = nib_zstd_writer_open(path, &p->shard);
    nib_free(path);
    return status;
}

static nib_status end_shard(packer *p)
{
    nib_shard *shard = &p->manifest.shard[p->manifest.shards - 1];
    NIB_TRY(take_batch(p, true));
    shard->content_bytes = p->shard.content;
    shard->frames = p->shard.frames;
    shard->rows = p->shard_rows;
    p->manifest.content_bytes += shard->content_bytes;
    NIB_TRY(nib_zstd_writer_finish(&p->shard, &shard->bytes, shard->hash));
    return NIB_OK;
}

static nib_status add_row(packer *p, int source, const nib_row_reader *reader, const char *line, size_t length)
{
    if (p->shard.fd < 0) NIB_TRY(begin_shard(p));
    if (!nib_grow(&p->row, &p->row_capacity, p->rows + 1, sizeof *p->row)) return no_memory();
    p->row[p->rows++] = (batch_row){.at = p->text.length,
                                    .length = (uint32_t)length,
                                    .line = ++p->shard_rows,
                                    .source_line = (int64_t)nib_row_reader_line(reader),
                                    .source = source};
    nib_buffer_append(&p->text, line, length);
    nib_buffer_char(&p->text, '\n');
    if (p->text.failed) return no_memory();
    p->manifest.rows++;
    p->manifest.source[source].rows++;
    if (p->text_offset + p->text.length >= NIB_SHARD_CONTENT) return end_shard(p);
    return p->text.length >= BATCH_BYTES ? take_batch(p, false) : NIB_OK;
}

static nib_status take_source(packer *p, int source)
{
    nib_row_reader *reader;
    const char *line;
    size_t length;
    nib_status status;
    NIB_TRY(nib_row_reader_open(p->files[source], &reader));
    for (;;) {
        NIB_TRY_GOTO(nib_row_reader_next(reader, &line, &length), done);
        if (line == NULL) break;
        if (!nib_row_is_blank(line, length)) NIB_TRY_GOTO(add_row(p, source, reader, line, length), done);
    }
    if (p->manifest.source[source].rows == 0)
        status =
            NIB_FAIL(NIB_ERROR_DATA, "%s: the file holds no row, expected one JSON object a line", p->files[source]);
done:
    nib_row_reader_close(reader);
    return status;
}

/* Ends the index and counts what only all samples together tell. */
static nib_status finish_samples(packer *p, const char *path)
{
    nib_packed_samples *s = &p->manifest.samples;
    const nib_data_options *o = p->options;
    nib_sample_index index;
    uint8_t digest[32];
    nib_sha256_end(&p->index_hash, digest);
    nib_sha256_hex(digest, s->hash);
    if (fsync(p->index) != 0) return NIB_FAIL(NIB_ERROR_IO, "%s: fsync failed: %s", path, strerror(errno));
    NIB_TRY(nib_sample_index_open(path, s->count, &index));
    nib_status status = nib_sample_index_duplicates(&index, &s->duplicates);
    nib_sample_index_close(&index);
    p->manifest.has_samples = true;
    s->file = SAMPLES_FILE;
    s->bos_token = o->bos_token;
    s->eos_token = o->eos_token;
    snprintf(s->tokenizer_hash, 65, "%s", nib_tokenizer_hash(o->tokenizer));
    if (o->chat_template != NULL) snprintf(s->template_hash, 65, "%s", nib_chat_template_hash(o->chat_template));
    return status;
}

static nib_status take_sources(packer *p, int count)
{
    nib_status status = NIB_OK;
    nib_buffer text = {0};
    char *samples = nib_path_join(p->folder.data, SAMPLES_FILE);
    char *manifest = nib_path_join(p->folder.data, NIB_MANIFEST_FILE);
    if (samples == NULL || manifest == NULL) {
        status = no_memory();
        goto done;
    }
    if (p->options != NULL) p->index = open(samples, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (p->options != NULL && p->index < 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be created: %s", samples, strerror(errno));
        goto done;
    }
    for (int i = 0; i < count; i++) NIB_TRY_GOTO(take_source(p, i), done);
    if (p->shard.fd >= 0) NIB_TRY_GOTO(end_shard(p), done);
    if (p->options != NULL) NIB_TRY_GOTO(finish_samples(p, samples), done);
    nib_manifest_write(&p->manifest, &text);
    status = text.failed ? no_memory() : nib_file_replace(manifest, text.data, text.length);
done:
    nib_buffer_free(&text);
    nib_free(samples);
    nib_free(manifest);
    return status;
}

/* The folder beside `folder` becomes it. */
static nib_status put_in_place(const packer *p, const char *folder)
{
    char *parent = nib_path_folder(folder);
    if (parent == NULL) return no_memory();
    nib_status status = nib_file_sync_folder(p->folder.data);
    if (status == NIB_OK && rename(p->folder.data, folder) != 0)
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be renamed to %s: %s", p->folder.data, folder, strerror(errno));
    if (status == NIB_OK) status = nib_file_sync_folder(parent);
    nib_free(parent);
    return status;
}

nib_status nib_shards_pack(const char *const *files, int count, const char *folder, const nib_data_options *options)
{
    packer p = {.files = files, .options = options, .shard.fd = -1, .index = -1, .manifest.sources = count};
    nib_status status;
    if (nib_file_exists(folder))
        return NIB_FAIL(NIB_ERROR_USAGE, "%s: is there already; remove it, or give another folder", folder);
    nib_sha256_begin(&p.index_hash);
    p.manifest.source = nib_pool_alloc(&p.manifest.pool, (size_t)count * sizeof *p.manifest.source);
    nib_buffer_format(&p.folder, "%s.tmp-%ld", folder, (long)getpid());
    if (p.manifest.source == NULL || p.folder.failed) {
        status = no_memory();
        goto done;
    }
    for (int i = 0; i < count; i++) p.manifest.source[i].path = files[i];
    NIB_TRY_GOTO(nib_file_make_folders(p.folder.data), done);
    status = take_sources(&p, count);
    if (status == NIB_OK) status = put_in_place(&p, folder);
    if (status != NIB_OK) {
        char message[MESSAGE];
        snprintf(message, sizeof message, "%s", nib_error_message());
        nib_file_remove_tree(p.folder.data); /* the first error is the one to tell */
        status = NIB_FAIL(status, "%s", message);
    }
done:
    if (p.index >= 0) close(p.index);
    nib_zstd_writer_close(&p.shard);
    free_pieces(&p);
    nib_free(p.row);
    nib_free(p.manifest.shard);
    nib_buffer_free(&p.text);
    nib_buffer_free(&p.folder);
    nib_manifest_free(&p.manifest);
    return status;
}
