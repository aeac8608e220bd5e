/* A golden model and its documents: opened, packed by hand, compared by tensor. */
#ifndef MODEL_CASE_H
#define MODEL_CASE_H

#include "check.h"

#include "base/memory.h"
#include "cpu/backend.h"
#include "model/model.h"
#include "optim/optimizer.h"

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

/* The three documents of a golden model. */
static inline void pack_golden(packed *batch, const char *name)
{
    nib_tensor_set *set = open_golden(name, "expected.safetensors");
    pack_documents(batch, set);
    nib_tensor_set_close(set);
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

/* Model NAME for training from its golden adapter (or fully), with what these options leave open. */
static inline nib_model *open_model_with(nib_ops *ops, const char *name, nib_model_options options)
{
    static char path[4096], adapter[4200];
    nib_model *model;
    snprintf(path, sizeof path, NIB_TEST_DATA "/models/%s", name);
    snprintf(adapter, sizeof adapter, "%s/adapter", path);
    options.path = path;
    options.lora.rank = options.full ? 0 : 4;
    options.lora.alpha = 8;
    options.lora.init_adapter = options.full ? NULL : adapter;
    options.train = true;
    options.cache_folder = CACHE_FOLDER;
    must(nib_model_open(ops, &options, &model));
    return model;
}

static inline nib_model *open_model(nib_ops *ops, const char *name, nib_quantization quantization, nib_dtype compute,
                                    bool full)
{
    return open_model_with(ops, name,
                           (nib_model_options){.quantization = quantization, .compute = compute, .full = full});
}

#define TOKEN_ROWS "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"

/* Model NAME in 16-bit weights for training: from an adapter, or with a fresh one (B zero) and these rows. */
static inline nib_model *open_trained(nib_ops *ops, const char *name, nib_dtype compute, const char *adapter,
                                      const int32_t *tokens, int count)
{
    char path[4096];
    nib_model *model;
    snprintf(path, sizeof path, NIB_TEST_DATA "/models/%s", name);
    nib_model_options options = {.path = path,
                                 .quantization = NIB_QUANT_NONE,
                                 .compute = compute,
                                 .train = true,
                                 .lora = {.rank = 4,
                                          .alpha = 8,
                                          .all_linear = true,
                                          .tokens = tokens,
                                          .token_count = count,
                                          .init_adapter = adapter},
                                 .cache_folder = CACHE_FOLDER};
    must(nib_model_open(ops, &options, &model));
    return model;
}

static inline nib_parameter *token_rows_of(nib_model *model)
{
    nib_parameter *p;
    int count = nib_model_parameters(model, &p);
    for (int i = 0; i < count; i++)
        if (strcmp(p[i].name, TOKEN_ROWS) == 0) return &p[i];
    fail_msg("no parameter %s", TOKEN_ROWS);
    return NULL;
}

/* One that begins a document, one that is a label, one that never occurs but in the softmax of a tied head. */
static inline void choose_tokens(const packed *p, int32_t tokens[3])
{
    tokens[0] = p->id[0];
    tokens[1] = p->target_label[3];
    tokens[2] = 0;
    for (bool occurs = true; occurs; tokens[2] += occurs) {
        occurs = tokens[2] == tokens[0] || tokens[2] == tokens[1];
        for (int64_t t = 0; t < p->T; t++) occurs = occurs || p->id[t] == tokens[2];
    }
}

/* The mean loss of a step whose masks are those of a key. */
static inline double train_dropping(nib_ops *ops, nib_model *model, packed *p, uint64_t dropout_key)
{
    nib_micro_batch batch = as_batch(p);
    float nll[1024];
    double sum = 0;
    must(nib_model_train_batch(
        model, &batch, (nib_step_options){.gradient_scale = 1.0f / (float)p->N, .dropout_key = dropout_key}, nll));
    must(ops->synchronize(ops));
    for (int64_t i = 0; i < p->N; i++) sum += (double)nll[i];
    return sum / (double)p->N;
}

static inline double train_once(nib_ops *ops, nib_model *model, packed *p) { return train_dropping(ops, model, p, 0); }

/* All gradients that the model holds, on the host; freed by the caller. */
static inline float *download_gradients(nib_ops *ops, nib_model *model, int64_t *n)
{
    nib_parameter *parameters;
    int count = nib_model_parameters(model, &parameters);
    *n = 0;
    for (int i = 0; i < count; i++) *n += parameters[i].rows * parameters[i].columns;
    float *copy = nib_calloc((size_t)*n, sizeof *copy);
    must(ops->download(ops, copy, parameters[0].gradient, (size_t)*n * sizeof *copy)); /* they are one array */
    return copy;
}

/* Gradients of one batch in a model opened for it; full: every weight is trained. */
static inline float *gradients_of(nib_ops *ops, const char *name, bool full, nib_dtype compute, nib_recompute recompute,
                                  packed *p, int64_t *n)
{
    nib_model *model = open_model(ops, name, full ? NIB_QUANT_NONE : NIB_QUANT_NF4, compute, full);
    must(nib_model_reserve(model, p->T, p->N, recompute, true));
    train_once(ops, model, p);
    float *copy = download_gradients(ops, model, n);
    nib_model_close(model);
    return copy;
}

/* Step s of the golden run, of two documents, from its adapter: AdamW with betas 0.9 and 0.999, epsilon 1e-8, decay
 * 0.01, clipped to norm 1. Its loss. */
static inline double train_golden_step(nib_ops *ops, nib_model *model, const nib_tensor_set *set, int s, double *norm)
{
    packed p = {0};
    nib_optimizer_options options = {
        .adamw = {golden_number(set, "train.learning_rates", s), 0.9, 0.999, 1e-8, 0.01, s + 1}, .max_norm = 1.0};
    for (int d = 0; d < 2; d++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "train.step%d.doc%d", s, d);
        add_document(&p, set, prefix);
    }
    must(nib_optimizer_zero(ops, model));
    const double loss = train_once(ops, model, &p);
    must(nib_optimizer_step(ops, model, &options, norm));
    must(ops->synchronize(ops));
    return loss;
}

/* All eight. Losses and gradient norms must be its, relative to their size. */
#define GOLDEN_STEPS 8
static inline void train_eight_steps(nib_ops *ops, nib_model *model, const char *name, const nib_tensor_set *set,
                                     double loss_tolerance, double norm_tolerance)
{
    for (int s = 0; s < GOLDEN_STEPS; s++) {
        double norm = 0, want = golden_number(set, "train.losses", s);
        const double want_norm = golden_number(set, "train.grad_norms", s);
        const double loss = train_golden_step(ops, model, set, s, &norm);
        if (!(fabs(loss - want) <= loss_tolerance * want) || !(fabs(norm - want_norm) <= norm_tolerance * want_norm))
            fail_msg("%s, step %d: loss %.9g norm %.9g, expected %.9g %.9g", name, s, loss, norm, want, want_norm);
    }
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

/* Set-up and tear-down of a group of tests on the CPU backend. */
static inline int open_cpu(void **state)
{
    nib_file_remove_tree(CACHE_FOLDER);
    return nib_cpu_backend_create(SCRATCH_BYTES, (nib_ops **)state) == NIB_OK ? 0 : -1;
}

static inline int close_cpu(void **state)
{
    nib_cpu_backend_free(*state);
    return nib_file_remove_tree(CACHE_FOLDER) == NIB_OK ? 0 : -1;
}

#endif
