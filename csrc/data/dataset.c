#include "data/dataset_internal.h"

#include "base/file.h"
#include "base/log.h"
#include "base/sha256.h"
#include "data/fingerprints.h"
#include "formats/row_reader.h"

#include <stdio.h>
#include <string.h>

/* What the sink needs while a file is read. */
typedef struct {
    nib_dataset *dataset;
    const nib_data_options *options;
    int64_t vocabulary;
    nib_source_report *report;
    nib_fingerprints seen;
    const char *where;
    int64_t line;
} loader;

static nib_status no_memory(const loader *load)
{
    return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the data set (%zu tokens so far)", load->where,
                    load->dataset->tokens);
}

/* Stores tokens [begin, end) of the draft as a sample. */
static nib_status store(loader *load, const nib_draft *draft, size_t begin, size_t end, uint64_t fingerprint)
{
    nib_dataset *d = load->dataset;
    size_t length = end - begin;
    bool whole = length == draft->length;
    if (!nib_grow(&d->samples, &d->capacity, d->count + 1, sizeof *d->samples) ||
        !nib_grow(&d->ids, &d->ids_capacity, d->tokens + length, sizeof *d->ids) ||
        !nib_grow(&d->supervised, &d->supervised_capacity, d->tokens + length, 1))
        return no_memory(load);
    nib_stored_sample *s = &d->samples[d->count];
    *s = (nib_stored_sample){.first = (int64_t)d->tokens,
                             .reference = -1,
                             .line = load->line,
                             .fingerprint = fingerprint,
                             .length = (int32_t)length,
                             .prompt_length = whole ? (int32_t)draft->prompt_length : 0,
                             .file = (int32_t)d->files - 1,
                             .weight = draft->weight};
    if (whole && draft->reference != NULL) {
        s->reference = (int64_t)d->references.length;
        nib_buffer_append(&d->references, draft->reference->string, draft->reference->length + 1);
        if (d->references.failed) return no_memory(load);
    }
    memcpy(d->ids + d->tokens, draft->ids + begin, length * sizeof *d->ids);
    memcpy(d->supervised + d->tokens, draft->supervised + begin, length);
    d->supervised[d->tokens] = 0; /* a piece's first token has nothing to be predicted from */
    for (size_t i = 0; i < length; i++) s->supervised += d->supervised[d->tokens + i];
    load->report->supervised_tokens += s->supervised;
    d->tokens += length;
    d->count++;
    load->report->samples++;
    load->report->tokens += (int64_t)length;
    return NIB_OK;
}

/* Is a token of [begin, end) but the first supervised? */
static bool teaches(const nib_draft *draft, size_t begin, size_t end)
{
    return end > begin + 1 && memchr(draft->supervised + begin + 1, 1, end - begin - 1) != NULL;
}

static nib_status store_over_long(loader *load, const nib_draft *draft, uint64_t fingerprint)
{
    size_t most = (size_t)load->options->max_length;
    switch (load->options->over_long) {
    case NIB_OVER_LONG_DROP:
        load->report->dropped++;
        return NIB_OK;
    case NIB_OVER_LONG_TRUNCATE:
        if (!teaches(draft, 0, most))
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: of %zu tokens the first %zu are kept, and nothing in them is "
                            "supervised; raise data.max_length or set data.over_long to \"drop\" or \"split\"",
                            load->where, draft->length, most);
        load->report->truncated++;
        return store(load, draft, 0, most, fingerprint);
    case NIB_OVER_LONG_SPLIT:
        load->report->split++;
        for (size_t begin = 0; begin + 1 < draft->length; begin += most - 1) {
            size_t end = draft->length - begin < most ? draft->length : begin + most;
            if (teaches(draft, begin, end)) NIB_TRY(store(load, draft, begin, end, fingerprint));
        }
        return NIB_OK;
    default:
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: the row has %zu tokens, data.max_length is %zu; raise it, or set "
                        "data.over_long to \"split\", \"drop\" or \"truncate\"",
                        load->where, draft->length, most);
    }
}

static nib_status take_draft(void *context, const nib_draft *draft)
{
    loader *load = context;
    bool known;
    for (size_t i = 0; i < draft->length; i++)
        if (draft->ids[i] < 0 || draft->ids[i] >= load->vocabulary)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: token %zu has id %d, the model's vocabulary ends at %lld; is this "
                            "another model's tokenizer?",
                            load->where, i, draft->ids[i], (long long)load->vocabulary - 1);
    uint64_t fingerprint = nib_draft_fingerprint(draft);
    if (!nib_fingerprints_add(&load->seen, fingerprint, &known)) return no_memory(load);
    load->report->duplicates += known;
    if ((int64_t)draft->length > load->report->longest) load->report->longest = (int64_t)draft->length;
    if ((int64_t)draft->length > load->options->max_length) return store_over_long(load, draft, fingerprint);
    return store(load, draft, 0, draft->length, fingerprint);
}

static nib_status load_file(loader *load, nib_row_encoder *encoder, const char *path)
{
    nib_dataset *d = load->dataset;
    nib_row_reader *reader = NULL;
    const char *line;
    size_t length;
    nib_buffer where = {0};
    nib_status status;
    load->where = path;
    if (!nib_grow(&d->file, &d->file_capacity, d->files + 1, sizeof *d->file)) return no_memory(load);
    d->file[d->files] = nib_pool_copy(&d->names, path, strlen(path));
    if (d->file[d->files++] == NULL) return no_memory(load);
    if (nib_file_is_folder(path))
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: found a folder without " NIB_MANIFEST_FILE
                        ", expected a .jsonl file or a folder that nibble pack has written",
                        path);
    NIB_TRY(nib_row_reader_open(path, &reader));
    for (;;) {
        NIB_TRY_GOTO(nib_row_reader_next(reader, &line, &length), done);
        if (line == NULL) break;
        if (nib_row_is_blank(line, length)) continue;
        load->line = (int64_t)nib_row_reader_line(reader);
        nib_buffer_clear(&where);
        nib_buffer_format(&where, "%s:%lld", path, (long long)load->line);
        load->where = where.failed ? path : where.data;
        load->report->rows++;
        NIB_TRY_GOTO(nib_row_encode_line(encoder, load->where, line, length), done);
    }
done:
    load->where = NULL;
    nib_buffer_free(&where);
    nib_row_reader_close(reader);
    return status;
}

static void adopt_terminators(nib_dataset *d, const int32_t *ids, int count)
{
    for (int i = 0; i < count; i++) {
        int k = 0;
        while (k < d->terminators && d->terminator[k] != ids[i]) k++;
        if (k == d->terminators && k < NIB_MAX_TERMINATORS) d->terminator[d->terminators++] = ids[i];
    }
}

/* A source whose samples stay in their shards. */
static nib_status adopt_packed(loader *load, nib_dataset_part *part, nib_packed_data *packed)
{
    const nib_packed_samples *s = &packed->manifest.samples;
    nib_source_report *r = load->report;
    part->packed = packed;
    if (s->largest_id >= load->vocabulary)
        return NIB_FAIL(
            NIB_ERROR_DATA,
            "%s: holds the id %lld, the model's vocabulary ends at %lld; is this another model's tokenizer?",
            packed->folder, (long long)s->largest_id, (long long)load->vocabulary - 1);
    r->rows = packed->manifest.rows;
    r->samples = s->count;
    r->tokens = s->tokens;
    r->supervised_tokens = s->supervised_tokens;
    r->duplicates = s->duplicates;
    r->longest = s->longest;
    adopt_terminators(load->dataset, s->terminator, s->terminators);
    return NIB_OK;
}

/* All rows of packed data, as if its shards were one file. */
static nib_status load_shards(loader *load, nib_row_encoder *encoder, const nib_packed_data *packed)
{
    NIB_TRY(nib_packed_data_verify(packed));
    for (int i = 0; i < packed->manifest.shards; i++) NIB_TRY(load_file(load, encoder, packed->shard_path[i]));
    if (load->report->rows == packed->manifest.rows) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: its shards hold %lld rows, the manifest states %lld", packed->folder,
                    (long long)load->report->rows, (long long)packed->manifest.rows);
}

static nib_status load_packed(loader *load, nib_row_encoder *encoder, nib_dataset_part *part, const char *path)
{
    nib_packed_data *packed = nib_calloc(1, sizeof *packed);
    if (packed == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path);
    nib_status status = nib_packed_data_open(path, load->options, packed);
    const char *obstacle = status == NIB_OK ? nib_packed_data_obstacle(packed, load->options) : NULL;
    if (status == NIB_OK && load->options->on_demand && obstacle == NULL) return adopt_packed(load, part, packed);
    if (status == NIB_OK && load->options->on_demand)
        nib_log("%s: its %lld rows are all tokenised now, and kept in memory, since %s", path,
                (long long)packed->manifest.rows, obstacle);
    if (status == NIB_OK) status = load_shards(load, encoder, packed);
    nib_packed_data_close(packed);
    nib_free(packed);
    return status;
}

static nib_status load_source(loader *load, nib_row_encoder *encoder, nib_dataset_part *part, const char *path)
{
    load->report = &part->report;
    part->first_stored = (int64_t)load->dataset->count;
    if (nib_manifest_exists(path))
        NIB_TRY(load_packed(load, encoder, part, path));
    else
        NIB_TRY(load_file(load, encoder, path));
    part[1].first_index = part->first_index + part->report.samples;
    if (part->report.rows > 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: the file holds no row, expected one JSON object a line", path);
}

static void hash_samples(nib_dataset *d)
{
    nib_sha256 hash;
    uint8_t digest[32];
    nib_sha256_begin(&hash);
    for (size_t i = 0; i < d->count; i++) {
        nib_sha256_update(&hash, &d->samples[i].length, sizeof d->samples[i].length);
        nib_sha256_update(&hash, &d->samples[i].weight, sizeof d->samples[i].weight);
    }
    nib_sha256_update(&hash, d->ids, d->tokens * sizeof *d->ids);
    nib_sha256_update(&hash, d->supervised, d->tokens);
    for (int s = 0; s < d->sources; s++)
        if (d->part[s].packed != NULL) nib_sha256_update(&hash, d->part[s].packed->manifest.hash, 64);
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, d->hash);
}

static nib_status prepare(const nib_data_source *sources, int count, const nib_data_options *options,
                          int64_t vocabulary, nib_dataset **dataset)
{
    *dataset = NULL;
    if (options->max_length < 2 || options->max_length > INT32_MAX)
        return NIB_FAIL(NIB_ERROR_DATA, "data.max_length is %lld, expected 2 to %d", (long long)options->max_length,
                        INT32_MAX);
    nib_dataset *d = nib_calloc(1, sizeof *d);
    if (d == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a data set");
    d->sources = count;
    d->options = *options;
    d->vocabulary = vocabulary;
    d->part = nib_calloc((size_t)count + 1, sizeof *d->part);
    bool enough = d->part != NULL;
    for (int s = 0; enough && s < count; s++) {
        const char *name = sources[s].name == NULL ? sources[s].path : sources[s].name;
        nib_source_report *report = &d->part[s].report;
        d->part[s].weight = sources[s].weight;
        report->path = nib_pool_copy(&d->names, sources[s].path, strlen(sources[s].path));
        report->name = nib_pool_copy(&d->names, name, strlen(name));
        enough = report->path != NULL && report->name != NULL;
    }
    if (!enough) {
        nib_dataset_free(d);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d data sources", count);
    }
    *dataset = d;
    return NIB_OK;
}

nib_status nib_dataset_load(const nib_data_source *sources, int count, const nib_data_options *options,
                            int64_t vocabulary, nib_dataset **dataset)
{
    nib_status status = NIB_OK;
    NIB_TRY(prepare(sources, count, options, vocabulary, dataset));
    nib_dataset *d = *dataset;
    loader load = {.dataset = d, .options = options, .vocabulary = vocabulary};
    nib_row_encoder encoder = {.options = options, .sink = take_draft, .sink_context = &load};
    for (int s = 0; s < count && status == NIB_OK; s++)
        status = load_source(&load, &encoder, &d->part[s], sources[s].path);
    if (status == NIB_OK && d->part[count].first_index == 0)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: every row is over-long and was dropped; raise data.max_length",
                          count > 0 ? sources[0].path : "data");
    adopt_terminators(d, encoder.terminator, encoder.terminators);
    nib_row_encoder_free(&encoder);
    nib_fingerprints_free(&load.seen);
    if (status == NIB_OK) {
        hash_samples(d);
    } else {
        nib_dataset_free(d);
        *dataset = NULL;
    }
    return status;
}

void nib_dataset_free(nib_dataset *dataset)
{
    if (dataset == NULL) return;
    for (int s = 0; dataset->part != NULL && s < dataset->sources; s++) {
        if (dataset->part[s].packed == NULL) continue;
        nib_packed_data_close(dataset->part[s].packed);
        nib_free(dataset->part[s].packed);
    }
    nib_free(dataset->part);
    nib_free(dataset->samples);
    nib_free(dataset->ids);
    nib_free(dataset->supervised);
    nib_buffer_free(&dataset->references);
    nib_free(dataset->file);
    nib_pool_free(&dataset->names);
    nib_free(dataset);
}
