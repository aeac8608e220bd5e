#include "check_print.h"

#include "base/buffer.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Of a stretch of equal mask, at most this many tokens are printed at either end. */
enum { SHOWN_TOKENS = 40 };

void nib_check_print_header(void)
{
    printf("%-6s %-24s %9s %9s %11s %11s %6s %6s %6s %7s %9s %10s\n", "", "source", "rows", "samples", "tokens",
           "supervised", "p50", "p90", "p99", "longest", "over-long", "duplicates");
}

static int by_length(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: the least length that `percent` of the samples do not exceed. */
static int32_t percentile(const int32_t *sorted, int64_t count, int percent)
{
    return count == 0 ? 0 : sorted[(count * percent + 99) / 100 - 1];
}

nib_status nib_check_print_sources(const char *role, const nib_dataset *dataset)
{
    int64_t size = nib_dataset_size(dataset), begin = 0;
    int32_t *lengths = nib_calloc((size_t)size, sizeof *lengths);
    if (lengths == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld lengths", (long long)size);
    for (int64_t i = 0; i < size; i++) {
        int64_t tokens, supervised;
        nib_status status = nib_dataset_counts(dataset, i, &tokens, &supervised);
        if (status != NIB_OK) nib_free(lengths);
        NIB_TRY(status);
        lengths[i] = (int32_t)tokens;
    }
    for (int s = 0; s < nib_dataset_sources(dataset); s++) {
        const nib_source_report *r = nib_dataset_report(dataset, s);
        int32_t *own = lengths + begin;
        qsort(own, (size_t)r->samples, sizeof *own, by_length);
        printf("%-6s %-24.24s %9lld %9lld %11lld %11lld %6d %6d %6d %7lld %9lld %10lld\n", role, r->name,
               (long long)r->rows, (long long)r->samples, (long long)r->tokens, (long long)r->supervised_tokens,
               percentile(own, r->samples, 50), percentile(own, r->samples, 90), percentile(own, r->samples, 99),
               (long long)r->longest, (long long)(r->dropped + r->truncated + r->split), (long long)r->duplicates);
        if (r->dropped + r->truncated + r->split > 0)
            printf("%-6s   over-long: %lld dropped, %lld truncated, %lld split\n", "", (long long)r->dropped,
                   (long long)r->truncated, (long long)r->split);
        begin += r->samples;
    }
    nib_free(lengths);
    return NIB_OK;
}

/* Samples of a weighted source that have one token of the weighted sources' share. */
static double rate(const nib_dataset *dataset, const nib_mixture *mixture, int source)
{
    const nib_source_report *r = nib_dataset_report(dataset, source);
    if (mixture->share[source] <= 0) return 0;
    return mixture->share[source] * (double)r->samples / (double)r->supervised_tokens;
}

void nib_check_print_shares(const nib_dataset *dataset, const nib_mixture *mixture)
{
    double rates = 0, all = 0;
    if (mixture->count < 2) return;
    for (int s = 0; s < mixture->count; s++) rates += rate(dataset, mixture, s);
    for (int pass = 0; pass < 2; pass++)
        for (int s = 0; s < mixture->count; s++) {
            const nib_source_report *r = nib_dataset_report(dataset, s);
            double mean = r->samples == 0 ? 0 : (double)r->supervised_tokens / (double)r->samples;
            double draws = mixture->share[s] > 0 ? (double)mixture->shared * rate(dataset, mixture, s) / rates
                                                 : (double)r->samples;
            if (pass == 0)
                all += draws * mean;
            else
                printf("mix: %-24.24s %9.0f draws an epoch, %5.1f %% of the supervised tokens\n", r->name, draws,
                       100 * draws * mean / all);
        }
}

void nib_check_print_terminators(const nib_tokenizer *tokenizer, const nib_dataset *dataset)
{
    const int32_t *ids;
    int count = nib_dataset_terminators(dataset, &ids);
    for (int i = 0; i < count; i++) {
        const char *text = nib_tokenizer_text(tokenizer, ids[i]);
        printf("a turn ends with: %s (id %d), supervised\n", text == NULL ? "?" : text, ids[i]);
    }
}

static nib_status append_text(const nib_tokenizer *tokenizer, const int32_t *ids, int32_t count, nib_buffer *text)
{
    if (tokenizer != NULL) return nib_tokenizer_decode(tokenizer, ids, (size_t)count, false, text);
    for (int32_t i = 0; i < count; i++) nib_buffer_format(text, "%d ", ids[i]);
    return NIB_OK;
}

/* A stretch of tokens with one mask, its middle left out if it is long. */
static nib_status append_stretch(const nib_tokenizer *tokenizer, const int32_t *ids, int32_t count, nib_buffer *text)
{
    if (count <= 3 * SHOWN_TOKENS) return append_text(tokenizer, ids, count, text);
    NIB_TRY(append_text(tokenizer, ids, SHOWN_TOKENS, text));
    nib_buffer_format(text, " ... (%d tokens) ... ", count - 2 * SHOWN_TOKENS);
    return append_text(tokenizer, ids + count - SHOWN_TOKENS, SHOWN_TOKENS, text);
}

static nib_status print_mask(const nib_tokenizer *tokenizer, nib_row row, bool color)
{
    nib_buffer text = {0};
    nib_status status = NIB_OK;
    for (int32_t begin = 0, end; begin < row.length && status == NIB_OK; begin = end) {
        bool supervised = row.supervised[begin];
        for (end = begin; end < row.length && row.supervised[end] == supervised; end++) {
        }
        nib_buffer_clear(&text);
        status = append_stretch(tokenizer, row.ids + begin, end - begin, &text);
        if (supervised) fputs(color ? "\x1b[32m" : "[[", stdout);
        nib_utf8_print(stdout, text.data, text.length);
        if (supervised) fputs(color ? "\x1b[0m" : "]]", stdout);
    }
    if (status == NIB_OK && text.failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to show a sample");
    nib_buffer_free(&text);
    putchar('\n');
    return status;
}

nib_status nib_check_print_masks(const nib_tokenizer *tokenizer, const nib_dataset *dataset)
{
    const char *no_color = getenv("NO_COLOR");
    bool color = isatty(STDOUT_FILENO) && (no_color == NULL || *no_color == 0);
    int64_t index = 0;
    for (int s = 0; s < nib_dataset_sources(dataset); s++) {
        int64_t line, samples = nib_dataset_report(dataset, s)->samples;
        if (samples == 0) continue;
        const char *file = nib_dataset_file(dataset, index, &line);
        printf("\n%s:%lld, supervised text %s:\n", file, (long long)line, color ? "in green" : "in [[ ]]");
        nib_rows rows;
        NIB_TRY(nib_dataset_rows(dataset, &index, 1, &rows));
        nib_status status = print_mask(tokenizer, rows.row[0], color);
        nib_rows_free(&rows);
        NIB_TRY(status);
        index += samples;
    }
    return NIB_OK;
}
