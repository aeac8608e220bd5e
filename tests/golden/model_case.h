/* A golden model and its documents: opened, packed by hand, compared by tensor. */
#ifndef MODEL_CASE_H
#define MODEL_CASE_H

#include "check.h"

#include "base/memory.h"
#include "cpu/backend.h"
#include "model/model.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A test defines TEST_NAME before: caches of tests that run side by side are apart. */
#define DOCUMENTS     3
#define CACHE_FOLDER  "model_test_cache_" TEST_NAME /* in the working folder of ctest */
#define SCRATCH_BYTES ((size_t)64 << 20)

static inline void must(nib_status status)
{
    if (status != NIB_OK) fail_msg("%s", nib_error_message());
}

typedef struct {
    int64_t T, N;
    int32_t id[1024], position[1024], end[1024], target_row[1024], target_label[1024];
    float target_weight[1024];
} packed;

static inline nib_tensor_set *open_golden(const char *name, const char *file)
{
    char path[4096];
    nib_tensor_set *set;
    snprintf(path, sizeof path, NIB_TEST_DATA "/models/%s/%s", name, file);
    must(nib_tensor_set_open(path, &set));
    return set;
}

static inline const nib_tensor_view *golden(const nib_tensor_set *set, const char *name)
{
    const nib_tensor_view *view = nib_tensor_set_find(set, name);
    if (view == NULL) fail_msg("golden tensor %s is missing", name);
    return view;
}

static inline double golden_number(const nib_tensor_set *set, const char *name, int64_t index)
{
    const nib_tensor_view *view = golden(set, name);
    double wide;
    float narrow;
    if (view->dtype == NIB_DTYPE_F64) {
        memcpy(&wide, view->data + 8 * index, 8);
        return wide;
    }
    memcpy(&narrow, view->data + 4 * index, 4);
    return narrow;
}

/* Appends a document: each attends to itself only and starts at position 0. */
static inline void add_document(packed *batch, const nib_tensor_set *set, const char *prefix)
{
    char name[128];
    snprintf(name, sizeof name, "%s.input_ids", prefix);
    const nib_tensor_view *ids = golden(set, name);
    snprintf(name, sizeof name, "%s.labels", prefix);
    const nib_tensor_view *labels = golden(set, name);
    int64_t first = batch->T;
    for (int64_t i = 0; i < ids->count; i++) {
        int32_t label;
        memcpy(&batch->id[first + i], ids->data + 4 * i, 4);
        memcpy(&label, labels->data + 4 * i, 4);
        batch->position[first + i] = (int32_t)i;
        batch->end[first + i] = (int32_t)(first + ids->count);
        if (label == -100 || i == 0) continue;
        batch->target_row[batch->N] = (int32_t)(first + i - 1);
        batch->target_label[batch->N] = label;
        batch->target_weight[batch->N++] = 1.0f;
    }
    batch->T += ids->count;
}

static inline void pack_documents(packed *batch, const nib_tensor_set *set)
{
    *batch = (packed){0};
    for (int d = 0; d < DOCUMENTS; d++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "doc%d", d);
        add_document(batch, set, prefix);
    }
}

static inline nib_micro_batch as_batch(packed *p)
{
    return (nib_micro_batch){.T = p->T,
                             .id = p->id,
                             .position = p->position,
                             .end = p->end,
                             .N = p->N,
                             .target_row = p->target_row,
                             .target_label = p->target_label,
                             .target_weight = p->target_weight};
}

/* Model NAME for training from its golden adapter (or fully). */
static inline nib_model *open_model(nib_ops *ops, const char *name, nib_quantization quantization, nib_dtype compute,
                                    bool full)
{
    static char path[4096], adapter[4200];
    snprintf(path, sizeof path, NIB_TEST_DATA "/models/%s", name);
    snprintf(adapter, sizeof adapter, "%s/adapter", path);
    nib_model_options options = {.path = path,
                                 .quantization = quantization,
                                 .compute = compute,
                                 .lora = {.rank = full ? 0 : 4, .alpha = 8, .init_adapter = full ? NULL : adapter},
                                 .full = full,
                                 .train = true,
                                 .cache_folder = CACHE_FOLDER};
    nib_model *model;
    must(nib_model_open(ops, &options, &model));
    return model;
}

static inline double train_once(nib_ops *ops, nib_model *model, packed *p)
{
    nib_micro_batch batch = as_batch(p);
    float nll[1024];
    double sum = 0;
    must(nib_model_train_batch(model, &batch, (nib_step_options){.gradient_scale = 1.0f / (float)p->N}, nll));
    must(ops->synchronize(ops));
    for (int64_t i = 0; i < p->N; i++) sum += (double)nll[i];
    return sum / (double)p->N;
}

/* Norm of the difference over norm of b. */
static inline double difference(const float *a, const float *b, int64_t n)
{
    double square = 0, total = 0;
    for (int64_t i = 0; i < n; i++) {
        square += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        total += (double)b[i] * (double)b[i];
    }
    return sqrt(square / (total > 0 ? total : 1));
}

#endif
