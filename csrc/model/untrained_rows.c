#include "model/untrained_rows.h"
#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

#define SAMPLES      4096 /* rows that the median is taken of */
#define MOST_SAMPLES ((int64_t)1 << 17)
#define AT_ONCE      256 /* samples read */

typedef struct {
    const nib_weight_source *source;
    int64_t V, C;
    int64_t *occurrences; /* [V] */
    nib_bf16 *values;     /* [C] a row as it is stored */
    float *row, *other;   /* [C] */
    float *norms;         /* [SAMPLES] */
} search;

static double product(const search *s, const float *a, const float *b)
{
    double sum = 0;
    for (int64_t c = 0; c < s->C; c++) sum += (double)a[c] * (double)b[c];
    return sum;
}

static nib_status read_row(const search *s, int64_t token, float *row)
{
    NIB_TRY(nib_weight_source_read(s->source, "model.embed_tokens.weight", token, 1, s->C, s->values));
    for (int64_t c = 0; c < s->C; c++) row[c] = nib_bf16_to_float(s->values[c]);
    return NIB_OK;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static nib_status median_norm(const search *s, float *median)
{
    int64_t step = (s->V + SAMPLES - 1) / SAMPLES, count = 0;
    for (int64_t token = 0; token < s->V; token += step) {
        NIB_TRY(read_row(s, token, s->row));
        s->norms[count++] = (float)sqrt(product(s, s->row, s->row));
    }
    qsort(s->norms, (size_t)count, sizeof *s->norms, by_size);
    *median = s->norms[count / 2];
    return NIB_OK;
}

/* Of the row in s->row, whose squared norm is given. */
static nib_status is_parallel(const search *s, int64_t token, double square, bool *parallel)
{
    *parallel = false;
    for (int64_t next = token - 1; next <= token + 1 && !*parallel; next += 2) {
        if (next < 0 || next >= s->V) continue;
        NIB_TRY(read_row(s, next, s->other));
        double along = product(s, s->row, s->other), sizes = sqrt(square * product(s, s->other, s->other));
        *parallel = sizes > 0 && along > NIB_UNTRAINED_COSINE * sizes;
    }
    return NIB_OK;
}

static nib_status search_all(const search *s, nib_untrained_rows *rows)
{
    size_t capacity = 0;
    NIB_TRY(median_norm(s, &rows->median));
    for (int32_t token = 0; token < s->V; token++) {
        if (s->occurrences[token] == 0) continue;
        NIB_TRY(read_row(s, token, s->row));
        double square = product(s, s->row, s->row);
        nib_untrained_row found = {.token = token, .norm = (float)sqrt(square), .occurrences = s->occurrences[token]};
        NIB_TRY(is_parallel(s, token, square, &found.parallel));
        if (!found.parallel && found.norm >= NIB_UNTRAINED_NORM * rows->median) continue;
        if (!nib_grow(&rows->row, &capacity, (size_t)rows->count + 1, sizeof *rows->row))
            return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a list of %lld tokens", (long long)rows->count);
        rows->row[rows->count++] = found;
    }
    return NIB_OK;
}

static nib_status count_tokens(const nib_dataset *data, int64_t *occurrences)
{
    int64_t size = nib_dataset_size(data), wanted = size < MOST_SAMPLES ? size : MOST_SAMPLES;
    for (int64_t i = 0; i < wanted; i += AT_ONCE) {
        int64_t index[AT_ONCE], count = wanted - i < AT_ONCE ? wanted - i : AT_ONCE;
        nib_rows rows;
        /* Neighbours together: of packed data they stand in one frame, which is then decoded once. */
        int64_t first = wanted == size ? i : (int64_t)((double)i / (double)wanted * (double)size);
        for (int64_t k = 0; k < count; k++) index[k] = first + k;
        NIB_TRY(nib_dataset_rows(data, index, count, &rows));
        for (int64_t k = 0; k < count; k++)
            for (int32_t t = 0; t < rows.row[k].length; t++) occurrences[rows.row[k].ids[t]]++;
        nib_rows_free(&rows);
    }
    return NIB_OK;
}

nib_status nib_untrained_rows_find(const nib_weight_source *source, const nib_dataset *data, nib_untrained_rows *rows)
{
    search s = {.source = source, .V = source->config.vocabulary, .C = source->config.hidden};
    size_t C = (size_t)s.C;
    nib_status status;
    *rows = (nib_untrained_rows){0};
    s.occurrences = nib_calloc((size_t)s.V, sizeof *s.occurrences);
    s.values = nib_calloc(C, sizeof *s.values);
    s.row = nib_calloc(C, sizeof *s.row);
    s.other = nib_calloc(C, sizeof *s.other);
    s.norms = nib_calloc(SAMPLES, sizeof *s.norms);
    if (s.occurrences == NULL || s.values == NULL || s.row == NULL || s.other == NULL || s.norms == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to look at the rows of %lld tokens", (long long)s.V);
    } else {
        status = count_tokens(data, s.occurrences);
        if (status == NIB_OK) status = search_all(&s, rows);
    }
    if (status != NIB_OK) {
        nib_free(rows->row);
        *rows = (nib_untrained_rows){0};
    }
    nib_free(s.norms);
    nib_free(s.other);
    nib_free(s.row);
    nib_free(s.values);
    nib_free(s.occurrences);
    return status;
}
