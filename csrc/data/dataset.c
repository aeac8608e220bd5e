#include "data/dataset.h"

#include "base/sha256.h"
#include "data/fingerprints.h"
#include "data/row_encoder.h"
#include "formats/row_reader.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    int64_t first;     /* of its tokens in the store */
    int64_t reference; /* byte in the text store; -1: none */
    int64_t line;
    uint64_t fingerprint;
    int32_t length, prompt_length, source;
    float weight;
} sample;

struct nib_dataset {
    sample *samples;
    size_t count, capacity;
    int32_t *ids;
    uint8_t *supervised;
    size_t tokens, ids_capacity, supervised_capacity;
    nib_buffer references;
    nib_source_report *reports;
    double *weights;
    int sources;
    nib_pool names;
    int32_t terminator[NIB_MAX_TERMINATORS];
    int terminators;
    char hash[65];
};

/* What the sink needs while a file is read. */
typedef struct {
    nib_dataset *dataset;
    const nib_data_options *options;
    int64_t vocabulary;
    nib_source_report *report;
    nib_fingerprints seen;
    const char *where;
    int source;
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
    sample *s = &d->samples[d->count];
    *s = (sample){.first = (int64_t)d->tokens,
                  .reference = -1,
                  .line = load->line,
                  .fingerprint = fingerprint,
                  .length = (int32_t)length,
                  .prompt_length = whole ? (int32_t)draft->prompt_length : 0,
                  .source = load->source,
                  .weight = draft->weight};
    if (whole && draft->reference != NULL) {
        s->reference = (int64_t)d->references.length;
        nib_buffer_append(&d->references, draft->reference->string, draft->reference->length + 1);
        if (d->references.failed) return no_memory(load);
    }
    memcpy(d->ids + d->tokens, draft->ids + begin, length * sizeof *d->ids);
    memcpy(d->supervised + d->tokens, draft->supervised + begin, length);
    d->supervised[d->tokens] = 0; /* a piece's first token has nothing to be predicted from */
    for (size_t i = 0; i < length; i++) load->report->supervised_tokens += d->supervised[d->tokens + i];
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

static nib_status load_source(loader *load, nib_row_encoder *encoder, const char *path)
{
    nib_row_reader *reader = NULL;
    const char *line;
    size_t length;
    nib_buffer where = {0};
    nib_status status;
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
    if (load->report->rows == 0)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: the file holds no row, expected one JSON object a line", path);
done:
    load->where = NULL;
    nib_buffer_free(&where);
    nib_row_reader_close(reader);
    return status;
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
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, d->hash);
}

static nib_status prepare(const nib_data_source *sources, int count, const nib_data_options *options,
                          nib_dataset **dataset)
{
    *dataset = NULL;
    if (options->max_length < 2 || options->max_length > INT32_MAX)
        return NIB_FAIL(NIB_ERROR_DATA, "data.max_length is %lld, expected 2 to %d", (long long)options->max_length,
                        INT32_MAX);
    nib_dataset *d = nib_calloc(1, sizeof *d);
    if (d == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a data set");
    d->sources = count;
    d->reports = nib_calloc((size_t)count, sizeof *d->reports);
    d->weights = nib_calloc((size_t)count, sizeof *d->weights);
    bool enough = d->reports != NULL && d->weights != NULL;
    for (int s = 0; enough && s < count; s++) {
        const char *name = sources[s].name == NULL ? sources[s].path : sources[s].name;
        d->weights[s] = sources[s].weight;
        d->reports[s].path = nib_pool_copy(&d->names, sources[s].path, strlen(sources[s].path));
        d->reports[s].name = nib_pool_copy(&d->names, name, strlen(name));
        enough = d->reports[s].path != NULL && d->reports[s].name != NULL;
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
    NIB_TRY(prepare(sources, count, options, dataset));
    nib_dataset *d = *dataset;
    loader load = {.dataset = d, .options = options, .vocabulary = vocabulary};
    nib_row_encoder encoder = {.options = options, .sink = take_draft, .sink_context = &load};
    for (int s = 0; s < count && status == NIB_OK; s++) {
        load.source = s;
        load.report = &d->reports[s];
        status = load_source(&load, &encoder, sources[s].path);
    }
    if (status == NIB_OK && d->count == 0)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: every row is over-long and was dropped; raise data.max_length",
                          count > 0 ? sources[0].path : "data");
    memcpy(d->terminator, encoder.terminator, sizeof d->terminator);
    d->terminators = encoder.terminators;
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
    nib_free(dataset->samples);
    nib_free(dataset->ids);
    nib_free(dataset->supervised);
    nib_buffer_free(&dataset->references);
    nib_free(dataset->reports);
    nib_free(dataset->weights);
    nib_pool_free(&dataset->names);
    nib_free(dataset);
}

int64_t nib_dataset_size(const nib_dataset *dataset) { return (int64_t)dataset->count; }

nib_row nib_dataset_row(const nib_dataset *dataset, int64_t index)
{
    const sample *s = &dataset->samples[index];
    return (nib_row){dataset->ids + s->first, dataset->supervised + s->first, s->length, s->weight};
}

const char *nib_dataset_file(const nib_dataset *dataset, int64_t index, int64_t *line)
{
    *line = dataset->samples[index].line;
    return dataset->reports[dataset->samples[index].source].path;
}

int nib_dataset_source(const nib_dataset *dataset, int64_t index) { return dataset->samples[index].source; }

int nib_dataset_sources(const nib_dataset *dataset) { return dataset->sources; }

const nib_source_report *nib_dataset_report(const nib_dataset *dataset, int source)
{
    return &dataset->reports[source];
}

int nib_dataset_terminators(const nib_dataset *dataset, const int32_t **ids)
{
    *ids = dataset->terminator;
    return dataset->terminators;
}

bool nib_dataset_prompt(const nib_dataset *dataset, int64_t index, const int32_t **ids, int32_t *length,
                        const char **reference)
{
    const sample *s = &dataset->samples[index];
    if (s->prompt_length == 0 || s->reference < 0) return false;
    *ids = dataset->ids + s->first;
    *length = s->prompt_length;
    *reference = dataset->references.data + s->reference;
    return true;
}

uint64_t nib_dataset_fingerprint(const nib_dataset *dataset, int64_t index)
{
    return dataset->samples[index].fingerprint;
}

nib_status nib_dataset_leaks(const nib_dataset *train, const nib_dataset *eval, int64_t **indices, int64_t *count)
{
    nib_fingerprints known = {0};
    bool found, enough = true;
    *count = 0;
    *indices = nib_calloc(eval->count, sizeof **indices);
    for (size_t i = 0; i < train->count && enough; i++)
        enough = nib_fingerprints_add(&known, train->samples[i].fingerprint, &found);
    for (size_t i = 0; i < eval->count && enough && *indices != NULL; i++)
        if (nib_fingerprints_has(&known, eval->samples[i].fingerprint)) (*indices)[(*count)++] = (int64_t)i;
    nib_fingerprints_free(&known);
    if (enough && *indices != NULL) return NIB_OK;
    nib_free(*indices);
    *indices = NULL;
    return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compare %zu evaluation samples with %zu of training", eval->count,
                    train->count);
}

nib_status nib_dataset_mixture(const nib_dataset *dataset, uint64_t seed, bool shuffle, nib_mixture *mixture)
{
    nib_mixture_source *sources = nib_calloc((size_t)dataset->sources, sizeof *sources);
    if (sources == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d data sources", dataset->sources);
    for (int s = 0; s < dataset->sources; s++)
        sources[s] = (nib_mixture_source){dataset->reports[s].samples, dataset->reports[s].supervised_tokens,
                                          dataset->weights[s]};
    nib_status status = nib_mixture_build(sources, dataset->sources, seed, shuffle, mixture);
    nib_free(sources);
    return status;
}

const char *nib_dataset_hash(const nib_dataset *dataset) { return dataset->hash; }
