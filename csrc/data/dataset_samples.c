#include "data/dataset_internal.h"
#include "data/fingerprints.h"

#include <string.h>

int64_t nib_dataset_size(const nib_dataset *d) { return d->part[d->sources].first_index; }

int nib_dataset_source(const nib_dataset *d, int64_t index)
{
    int s = 0;
    while (index >= d->part[s + 1].first_index) s++;
    return s;
}

/* A sample that is in the store. */
static const nib_stored_sample *stored(const nib_dataset *d, int64_t index)
{
    const nib_dataset_part *part = &d->part[nib_dataset_source(d, index)];
    return &d->samples[part->first_stored + index - part->first_index];
}

nib_row nib_dataset_row(const nib_dataset *d, int64_t index)
{
    const nib_stored_sample *s = stored(d, index);
    return (nib_row){d->ids + s->first, d->supervised + s->first, s->length, s->weight};
}

nib_status nib_dataset_rows(const nib_dataset *d, const int64_t *index, int64_t count, nib_rows *rows)
{
    nib_status status = NIB_OK;
    nib_packed_cursor cursor = {0};
    *rows = (nib_rows){.count = count};
    rows->row = nib_calloc((size_t)count, sizeof *rows->row);
    if (rows->row == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld rows", (long long)count);
    for (int64_t i = 0; i < count && status == NIB_OK; i++) {
        const nib_dataset_part *part = &d->part[nib_dataset_source(d, index[i])];
        if (part->packed == NULL) {
            rows->row[i] = nib_dataset_row(d, index[i]);
            continue;
        }
        if (cursor.data != part->packed) {
            nib_packed_cursor_free(&cursor);
            cursor = (nib_packed_cursor){.data = part->packed, .options = &d->options, .vocabulary = d->vocabulary};
        }
        status = nib_packed_cursor_read(&cursor, index[i] - part->first_index, &rows->memory, &rows->row[i]);
    }
    nib_packed_cursor_free(&cursor);
    if (status != NIB_OK) nib_rows_free(rows);
    return status;
}

void nib_rows_free(nib_rows *rows)
{
    nib_free(rows->row);
    nib_pool_free(&rows->memory);
    *rows = (nib_rows){0};
}

nib_status nib_dataset_counts(const nib_dataset *d, int64_t index, int64_t *tokens, int64_t *supervised)
{
    const nib_dataset_part *part = &d->part[nib_dataset_source(d, index)];
    nib_sample_place place;
    if (part->packed == NULL) {
        *tokens = stored(d, index)->length;
        *supervised = stored(d, index)->supervised;
        return NIB_OK;
    }
    NIB_TRY(nib_sample_index_read(&part->packed->index, index - part->first_index, 1, &place));
    *tokens = place.tokens;
    *supervised = place.supervised;
    return NIB_OK;
}

int64_t nib_dataset_longest(const nib_dataset *d)
{
    int64_t longest = 0;
    for (size_t i = 0; i < d->count; i++)
        if (d->samples[i].length > longest) longest = d->samples[i].length;
    for (int s = 0; s < d->sources; s++)
        if (d->part[s].packed != NULL && d->part[s].report.longest > longest) longest = d->part[s].report.longest;
    return longest;
}

const char *nib_dataset_file(const nib_dataset *d, int64_t index, int64_t *line)
{
    const nib_dataset_part *part = &d->part[nib_dataset_source(d, index)];
    nib_sample_place place;
    *line = 0;
    if (part->packed == NULL) {
        *line = stored(d, index)->line;
        return d->file[stored(d, index)->file];
    }
    if (nib_sample_index_read(&part->packed->index, index - part->first_index, 1, &place) != NIB_OK ||
        place.shard >= (uint32_t)part->packed->manifest.shards)
        return part->packed->folder;
    *line = place.line;
    return part->packed->shard_path[place.shard];
}

int nib_dataset_sources(const nib_dataset *d) { return d->sources; }

const nib_source_report *nib_dataset_report(const nib_dataset *d, int source) { return &d->part[source].report; }

int nib_dataset_terminators(const nib_dataset *d, const int32_t **ids)
{
    *ids = d->terminator;
    return d->terminators;
}

bool nib_dataset_prompt(const nib_dataset *d, int64_t index, const int32_t **ids, int32_t *length,
                        const char **reference)
{
    const nib_stored_sample *s = stored(d, index);
    if (s->prompt_length == 0 || s->reference < 0) return false;
    *ids = d->ids + s->first;
    *length = s->prompt_length;
    *reference = d->references.data + s->reference;
    return true;
}

uint64_t nib_dataset_fingerprint(const nib_dataset *d, int64_t index) { return stored(d, index)->fingerprint; }

nib_status nib_dataset_verify(const nib_dataset *d)
{
    for (int s = 0; s < d->sources; s++)
        if (d->part[s].packed != NULL) NIB_TRY(nib_packed_data_verify(d->part[s].packed));
    return NIB_OK;
}

/* Fingerprints of evaluation rows, and those of them that were met in the training data. */
typedef struct {
    nib_fingerprints wanted, met;
    bool failed;
} comparison;

static void compare(comparison *c, uint64_t fingerprint)
{
    bool ignored;
    if (nib_fingerprints_has(&c->wanted, fingerprint) && !nib_fingerprints_add(&c->met, fingerprint, &ignored))
        c->failed = true;
}

static nib_status compare_places(void *context, int64_t first, const nib_sample_place *place, int64_t n)
{
    (void)first;
    for (int64_t i = 0; i < n; i++) compare(context, place[i].fingerprint);
    return NIB_OK;
}

nib_status nib_dataset_leaks(const nib_dataset *train, const nib_dataset *eval, int64_t **indices, int64_t *count)
{
    comparison c = {0};
    nib_status status = NIB_OK;
    bool ignored;
    *count = 0;
    *indices = nib_calloc(eval->count, sizeof **indices);
    c.failed = *indices == NULL;
    for (size_t i = 0; i < eval->count && !c.failed; i++)
        c.failed = !nib_fingerprints_add(&c.wanted, eval->samples[i].fingerprint, &ignored);
    for (size_t i = 0; i < train->count && !c.failed; i++) compare(&c, train->samples[i].fingerprint);
    for (int s = 0; s < train->sources && status == NIB_OK && !c.failed; s++)
        if (train->part[s].packed != NULL)
            status = nib_sample_index_each(&train->part[s].packed->index, compare_places, &c);
    for (size_t i = 0; i < eval->count && status == NIB_OK && !c.failed; i++)
        if (nib_fingerprints_has(&c.met, eval->samples[i].fingerprint)) (*indices)[(*count)++] = (int64_t)i;
    if (status == NIB_OK && c.failed)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compare %zu evaluation samples with those of training",
                          eval->count);
    nib_fingerprints_free(&c.wanted);
    nib_fingerprints_free(&c.met);
    if (status == NIB_OK) return NIB_OK;
    nib_free(*indices);
    *indices = NULL;
    return status;
}

/* One pass over a source that is in the store. Pieces of a split row count once. */
static bool count_stored(const nib_dataset *d, const nib_dataset_part *part, nib_repetitions *of, int64_t *count)
{
    const nib_stored_sample *s = d->samples + part->first_stored;
    for (int64_t i = 0; i < part->report.samples; i++) {
        if (i > 0 && s[i].fingerprint == s[i - 1].fingerprint && s[i].line == s[i - 1].line) continue;
        if (!nib_repetitions_count(of, s[i].fingerprint, count)) return false;
    }
    return true;
}

nib_status nib_dataset_count_duplicates(nib_dataset *d)
{
    nib_repetitions r = {.passes = nib_repetition_passes(nib_dataset_size(d))};
    nib_status status = NIB_OK;
    bool on_demand = false;
    for (int s = 0; s < d->sources; s++) on_demand |= d->part[s].packed != NULL;
    if (!on_demand) return NIB_OK; /* loading has counted them all */
    for (int s = 0; s < d->sources; s++) d->part[s].report.duplicates = 0;
    for (; r.pass < r.passes && status == NIB_OK; r.pass++) {
        nib_fingerprints_clear(&r.seen);
        for (int s = 0; s < d->sources && status == NIB_OK; s++) {
            nib_dataset_part *part = &d->part[s];
            if (part->packed != NULL)
                status = nib_sample_index_repetitions(&part->packed->index, &r, &part->report.duplicates);
            else if (!count_stored(d, part, &r, &part->report.duplicates))
                status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to look for duplicates");
        }
    }
    nib_fingerprints_free(&r.seen);
    return status;
}

static nib_status count_supervised(const void *data, int64_t index, int64_t *supervised)
{
    int64_t tokens;
    return nib_dataset_counts(data, index, &tokens, supervised);
}

nib_status nib_dataset_mixture(const nib_dataset *d, uint64_t seed, bool shuffle, nib_mixture *mixture)
{
    nib_mixture_source *sources = nib_calloc((size_t)d->sources, sizeof *sources);
    if (sources == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d data sources", d->sources);
    for (int s = 0; s < d->sources; s++)
        sources[s] =
            (nib_mixture_source){d->part[s].report.samples, d->part[s].report.supervised_tokens, d->part[s].weight};
    nib_status status = nib_mixture_build(sources, d->sources, seed, shuffle, count_supervised, d, mixture);
    nib_free(sources);
    return status;
}

const char *nib_dataset_hash(const nib_dataset *d) { return d->hash; }
