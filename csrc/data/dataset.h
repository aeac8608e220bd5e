/* A data set: rows of JSONL files, recognised (row_format.h), rendered, tokenised and masked (row_encoder.h). */
#ifndef NIB_DATASET_H
#define NIB_DATASET_H

#include "base/memory.h"
#include "data/order.h"
#include "data/pack.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

/* What happens to a row of more than max_length tokens. Nothing is ever put behind a cut. A split row becomes pieces
 * that overlap in one token, so that every supervised token is still predicted once; a piece with nothing supervised is
 * left out. A truncated row that keeps nothing supervised is an error. */
typedef enum { NIB_OVER_LONG_ERROR, NIB_OVER_LONG_SPLIT, NIB_OVER_LONG_DROP, NIB_OVER_LONG_TRUNCATE } nib_over_long;

typedef struct {
    const char *path; /* .jsonl, .jsonl.zst, or a folder of packed data (manifest.h) */
    const char *name; /* NULL: the path */
    double weight;    /* share of the supervised tokens among sources that state one; 0: as they come */
} nib_data_source;

typedef struct {
    int64_t max_length;
    nib_over_long over_long;
    bool on_demand; /* samples of packed data are read from their shards when they are asked for, where that can be */
    bool train_on_all;                      /* every token supervised, not only the assistant's */
    const nib_tokenizer *tokenizer;         /* may be NULL if all rows are input_ids */
    const nib_chat_template *chat_template; /* may be NULL if no row is a conversation */
    const char *bos_token, *eos_token;      /* for the template; "" if none */
} nib_data_options;

/* What became of a source's rows, for the report and `check`. */
typedef struct {
    const char *name, *path;
    int64_t rows, samples, tokens, supervised_tokens;
    int64_t dropped, truncated, split; /* over-long rows */
    int64_t duplicates;                /* rows equal to an earlier one of any source (on demand: of its own); kept */
    int64_t longest;                   /* tokens */
} nib_source_report;

typedef struct nib_dataset nib_dataset;

/* Reads all sources; options' pointers must outlive the data set. Fails with NIB_ERROR_DATA naming file and line:
 * invalid JSON or UTF-8, unknown row format, nothing supervised, over-long (by the option), empty file, an id outside
 * the vocabulary, a second BOS, or a turn's terminator that would not be supervised (contracts.md). vocabulary: ids
 * must be below it. */
nib_status nib_dataset_load(const nib_data_source *sources, int count, const nib_data_options *options,
                            int64_t vocabulary, nib_dataset **dataset);
void nib_dataset_free(nib_dataset *dataset);

int64_t nib_dataset_size(const nib_dataset *dataset);

/* Rows of samples, for one step. */
typedef struct {
    nib_row *row; /* [count] valid as long as this and the data set */
    int64_t count;
    nib_pool memory; /* of rows that were read on demand */
} nib_rows;
/* Reads samples index[0 .. count). Thread-safe on one data set. A corrupt frame or a row that is not the index's is
 * NIB_ERROR_DATA. */
nib_status nib_dataset_rows(const nib_dataset *dataset, const int64_t *index, int64_t count, nib_rows *rows);
void nib_rows_free(nib_rows *rows);
/* Row of a sample of a data set that was not loaded on demand, valid as long as the data set. So for
 * nib_dataset_prompt and nib_dataset_fingerprint. */
nib_row nib_dataset_row(const nib_dataset *dataset, int64_t index);
/* How many tokens a sample has, and how many of them are supervised. */
nib_status nib_dataset_counts(const nib_dataset *dataset, int64_t index, int64_t *tokens, int64_t *supervised);
/* Tokens of the longest sample. */
int64_t nib_dataset_longest(const nib_dataset *dataset);
/* Where a sample came from: file and 1-based line; the folder and 0 if an index cannot be read. */
const char *nib_dataset_file(const nib_dataset *dataset, int64_t index, int64_t *line);
int nib_dataset_source(const nib_dataset *dataset, int64_t index);
int nib_dataset_sources(const nib_dataset *dataset);
const nib_source_report *nib_dataset_report(const nib_dataset *dataset, int source);
/* The ids that end a turn, derived from the rendered template (host array; 0 if no row is a conversation). */
int nib_dataset_terminators(const nib_dataset *dataset, const int32_t **ids);
/* Conversation and prompt/completion samples: the prompt up to the last assistant turn (ids) and that turn's text, for
 * generation and exact match. false if the sample is none. */
bool nib_dataset_prompt(const nib_dataset *dataset, int64_t index, const int32_t **ids, int32_t *length,
                        const char **reference);
/* Hash of the sample's row before any cut: equal rows have equal fingerprints, others (but for chance, 2^-64) not. */
uint64_t nib_dataset_fingerprint(const nib_dataset *dataset, int64_t index);
/* Reads every file of packed data that is read on demand, and compares its SHA-256. */
nib_status nib_dataset_verify(const nib_dataset *dataset);
/* Completes the reports' duplicates where sources are read on demand: compares those with the others too, which loading
 * leaves out, since it takes a pass over every index. Rows that were dropped as over-long are then no part of it. */
nib_status nib_dataset_count_duplicates(nib_dataset *dataset);
/* Samples of `eval`, not loaded on demand, whose row is also in `train`: *indices in eval, ascending (nib_free). */
nib_status nib_dataset_leaks(const nib_dataset *train, const nib_dataset *eval, int64_t **indices, int64_t *count);
/* The mixture of the sources, which must outlive it. Owned by the caller. */
nib_status nib_dataset_mixture(const nib_dataset *dataset, uint64_t seed, bool shuffle, nib_mixture *mixture);
/* SHA-256 over all tokens and masks, and the manifests of what is read on demand, as hex: the checkpoint's check that
 * the data is the same. */
const char *nib_dataset_hash(const nib_dataset *dataset);

#endif
