/* What a data set is made of: for dataset.c, which loads it, and dataset_samples.c, which reads from it. */
#ifndef NIB_DATASET_INTERNAL_H
#define NIB_DATASET_INTERNAL_H

#include "data/dataset.h"
#include "data/packed_data.h"

typedef struct {
    int64_t first;     /* of its tokens in the store */
    int64_t reference; /* byte in the text store; -1: none */
    int64_t line;
    uint64_t fingerprint;
    int32_t length, prompt_length, supervised, file;
    float weight;
} nib_stored_sample;

/* A source's samples are numbered first_index .. first_index of the next source. */
typedef struct {
    int64_t first_index;
    int64_t first_stored;    /* of its samples in the store, if they are there */
    nib_packed_data *packed; /* NULL: its samples are in the store */
    double weight;
    nib_source_report report;
} nib_dataset_part;

struct nib_dataset {
    nib_data_options options; /* of rows that are encoded on demand */
    int64_t vocabulary;
    nib_dataset_part *part; /* [sources + 1] the last one only has first_index */
    int sources;
    nib_stored_sample *samples;
    size_t count, capacity;
    int32_t *ids;
    uint8_t *supervised;
    size_t tokens, ids_capacity, supervised_capacity;
    nib_buffer references;
    const char **file; /* [files] that rows in the store came from */
    size_t files, file_capacity;
    nib_pool names;
    int32_t terminator[NIB_MAX_TERMINATORS];
    int terminators;
    char hash[65];
};

#endif
