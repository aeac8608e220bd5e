/* Speed of reading packed data, and what it takes to open it, for profiling/bench_shards: read_shards FOLDER TOKENIZER.
 * One thread. Prints one JSON object; speeds are of processor time, which other work on the machine does not change. */
#include "base/file.h"
#include "data/dataset.h"
#include "data/packed_data.h"

#include <stdio.h>
#include <time.h>

enum { SAMPLES = 10000, PIECE = 1 << 20 };

static double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Bytes of the process that are in memory now. */
static long resident(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL && fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    if (file != NULL) fclose(file);
    return pages * 4096;
}

static nib_status read_through(const char *folder)
{
    nib_manifest m;
    static char piece[PIECE];
    uint64_t bytes = 0;
    NIB_TRY(nib_manifest_read(folder, &m));
    double begun = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < m.shards && i < 4; i++) {
        nib_zstd_reader *reader;
        char *path = nib_path_join(folder, m.shard[i].file);
        NIB_TRY(nib_zstd_reader_open(path, &reader));
        for (uint64_t at = 0, n; at < m.shard[i].content_bytes; at += n, bytes += n) {
            n = m.shard[i].content_bytes - at < PIECE ? m.shard[i].content_bytes - at : PIECE;
            NIB_TRY(nib_zstd_reader_read(reader, at, piece, n));
        }
        nib_zstd_reader_close(reader);
        nib_free(path);
    }
    printf("{\"read_bytes\": %llu, \"read_mb_per_cpu_second\": %.1f", (unsigned long long)bytes,
           (double)bytes / 1e6 / (seconds(CLOCK_PROCESS_CPUTIME_ID) - begun));
    nib_manifest_free(&m);
    return NIB_OK;
}

static nib_status read_samples(const char *folder, const nib_tokenizer *tokenizer)
{
    const nib_data_source source = {folder, NULL, 0};
    const nib_data_options options = {
        .max_length = INT32_MAX, .on_demand = true, .tokenizer = tokenizer, .bos_token = "", .eos_token = ""};
    nib_dataset *data;
    nib_mixture mixture;
    int64_t tokens = 0;
    double begun = seconds(CLOCK_MONOTONIC), begun_cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    NIB_TRY(nib_dataset_load(&source, 1, &options, INT32_MAX, &data));
    double opened = seconds(CLOCK_MONOTONIC), opened_cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    NIB_TRY(nib_dataset_mixture(data, 1, true, &mixture));
    long before = 0;
    begun_cpu = opened_cpu - begun_cpu;
    for (int64_t i = 0; i < SAMPLES; i++) {
        nib_rows rows;
        int64_t index;
        NIB_TRY(nib_mixture_sample(&mixture, i, &index));
        NIB_TRY(nib_dataset_rows(data, &index, 1, &rows));
        tokens += rows.row[0].length;
        nib_rows_free(&rows);
        if (i == 99) before = resident(); /* buffers have their size */
    }
    printf(", \"samples\": %lld, \"open_seconds\": %.6f, \"open_cpu_seconds\": %.6f, \"samples_read\": %d, "
           "\"tokens_read\": "
           "%lld, \"cpu_seconds_per_sample\": %.6f, \"resident_bytes\": %ld, \"resident_growth_bytes\": %ld}\n",
           (long long)nib_dataset_size(data), opened - begun, begun_cpu, SAMPLES, (long long)tokens,
           (seconds(CLOCK_PROCESS_CPUTIME_ID) - opened_cpu) / SAMPLES, resident(), resident() - before);
    nib_mixture_free(&mixture);
    nib_dataset_free(data);
    return NIB_OK;
}

int main(int argc, char **argv)
{
    nib_tokenizer *tokenizer = NULL;
    if (argc != 3) {
        fprintf(stderr, "usage: read_shards FOLDER TOKENIZER\n");
        return 64;
    }
    nib_status status = nib_tokenizer_open(argv[2], &tokenizer);
    if (status == NIB_OK) status = read_through(argv[1]);
    if (status == NIB_OK) status = read_samples(argv[1], tokenizer);
    if (status != NIB_OK) fprintf(stderr, "read_shards: %s\n", nib_error_message());
    nib_tokenizer_free(tokenizer);
    return nib_exit_code(status);
}
