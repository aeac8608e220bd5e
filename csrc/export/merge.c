#include "export/merge.h"
#include "base/buffer.h"
#include "formats/safetensors_writer.h"
#include "model/lora_config.h"
#include "model/weight_source.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SHARD_BYTES    ((int64_t)4 << 30)
#define PIECE_ELEMENTS ((int64_t)4 << 20)

typedef struct {
    char name[160];
    int64_t rows, columns; /* columns 0: a vector of `rows` */
    int shard;
} weight;

typedef struct {
    nib_weight_source source;
    const nib_model *trained; /* not NULL: weights are its parameters, and there is no source */
    nib_ops *ops;             /* its backend */
    nib_lora_config *lora;    /* NULL: no adapter */
    nib_tensor_set *adapter;  /* NULL likewise */
    weight *weights;
    size_t count, capacity;
    int64_t shard_bytes; /* of the last shard */
    const char *folder;
    nib_merge_summary *summary;
} merge;

static nib_status list_weight(void *user, const char *name, int64_t rows, int64_t columns, bool linear)
{
    merge *m = user;
    int64_t bytes = rows * (columns > 0 ? columns : 1) * (int64_t)sizeof(nib_bf16);
    (void)linear;
    if (!nib_grow(&m->weights, &m->capacity, m->count + 1, sizeof *m->weights))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a list of %zu tensors", m->count);
    if (m->count == 0 || m->shard_bytes + bytes > SHARD_BYTES) {
        m->summary->shards++;
        m->shard_bytes = 0;
    }
    weight *w = &m->weights[m->count++];
    *w = (weight){.rows = rows, .columns = columns, .shard = m->summary->shards - 1};
    snprintf(w->name, sizeof w->name, "%s", name);
    m->shard_bytes += bytes;
    return NIB_OK;
}

/* One LoRA pair in fp32. a [R, K], b [n, R]; magnitude [n], or NULL without DoRA; rank 0: none. */
typedef struct {
    int64_t rank;
    float scale;
    float *a, *b, *magnitude;
} pair;

static void free_pair(pair *p)
{
    nib_free(p->a);
    nib_free(p->b);
    nib_free(p->magnitude);
    *p = (pair){0};
}

/* columns 0: a vector. */
static nib_status read_tensor(const merge *m, const char *name, int64_t rows, int64_t columns, float **out)
{
    const nib_tensor_view *tensor = nib_tensor_set_find(m->adapter, name);
    if (tensor == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" is missing, which its adapter_config.json asks for",
                        nib_tensor_set_at(m->adapter, 0)->file->path, name);
    nib_status status =
        columns == 0 ? nib_tensor_expect_shape(tensor, 1, rows) : nib_tensor_expect_shape(tensor, 2, rows, columns);
    if (status != NIB_OK) return nib_error_context(status, "adapter of another model, or of another rank");
    *out = nib_calloc((size_t)tensor->count, sizeof **out);
    if (*out == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its values", name);
    NIB_TRY(nib_tensor_read_float(tensor, 0, tensor->count, *out));
    for (int64_t i = 0; i < tensor->count; i++)
        if (!isfinite((*out)[i]))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" holds NaN or Inf; the adapter is damaged",
                            tensor->file->path, name);
    return NIB_OK;
}

static nib_status read_factor(merge *m, const char *module, const char *factor, int64_t rows, int64_t columns,
                              float **out)
{
    char name[224];
    snprintf(name, sizeof name, "base_model.model.%s%s", module, factor);
    return read_tensor(m, name, rows, columns, out);
}

/* The name of the weight's module and what the adapter has for it; *rank 0: nothing. */
static nib_status resolve(const merge *m, const weight *w, char module[160], int64_t *rank, float *scale)
{
    long long layer;
    size_t length = strlen(w->name);
    *rank = 0;
    if (m->lora == NULL || w->columns == 0 || sscanf(w->name, "model.layers.%lld.", &layer) != 1) return NIB_OK;
    snprintf(module, 160, "%.*s", (int)(length - strlen(".weight")), w->name);
    return nib_lora_config_resolve(m->lora, module, layer, rank, scale);
}

/* Every tensor of the adapter has a place in the model: asked before anything is written. */
static nib_status check_adapter(const merge *m)
{
    char module[160];
    float scale;
    const int32_t *token;
    size_t places = m->lora != NULL && nib_lora_config_tokens(m->lora, &token) > 0;
    if (m->adapter == NULL) return NIB_OK;
    for (size_t i = 0; i < m->count; i++) {
        int64_t rank;
        NIB_TRY(resolve(m, &m->weights[i], module, &rank, &scale));
        if (rank > 0) places += nib_lora_config_dora(m->lora) ? 3 : 2;
    }
    if (places >= nib_tensor_set_count(m->adapter)) return NIB_OK; /* one that is missing is named when it is read */
    return NIB_FAIL(NIB_ERROR_DATA, "%s: %zu of its %zu tensors have a place in this model; is it another model's?",
                    nib_tensor_set_at(m->adapter, 0)->file->path, places, nib_tensor_set_count(m->adapter));
}

static nib_status read_pair(merge *m, const weight *w, pair *p)
{
    char module[160];
    *p = (pair){0};
    NIB_TRY(resolve(m, w, module, &p->rank, &p->scale));
    if (p->rank == 0) return NIB_OK;
    NIB_TRY(read_factor(m, module, ".lora_A.weight", p->rank, w->columns, &p->a));
    NIB_TRY(read_factor(m, module, ".lora_B.weight", w->rows, p->rank, &p->b));
    if (nib_lora_config_dora(m->lora)) NIB_TRY(read_factor(m, module, NIB_MAGNITUDE, w->rows, 0, &p->magnitude));
    m->summary->adapted++;
    return NIB_OK;
}

/* What DoRA multiplies a row by, to give it its magnitude; a row that is zero stays so. */
static float gain_of(const pair *p, int64_t row, const float *sum, int64_t K)
{
    double square = 0;
    if (p->magnitude == NULL) return 1.0f;
    for (int64_t k = 0; k < K; k++) square += (double)sum[k] * (double)sum[k];
    return square > 0 ? (float)((double)p->magnitude[row] / sqrt(square)) : 0.0f;
}

/* values [rows, K], rows `first` on of the weight, += scale B A, and their magnitudes. */
static nib_status add_pair(const pair *p, int64_t first, int64_t rows, int64_t K, nib_bf16 *values)
{
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *sum = nib_calloc((size_t)K, sizeof *sum);
        failed = sum == NULL;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            if (sum == NULL) continue;
            memset(sum, 0, (size_t)K * sizeof *sum);
            for (int64_t r = 0; r < p->rank; r++) {
                float factor = p->b[(first + row) * p->rank + r];
                for (int64_t k = 0; k < K; k++) sum[k] += factor * p->a[r * K + k];
            }
            for (int64_t k = 0; k < K; k++) sum[k] = nib_bf16_to_float(values[row * K + k]) + p->scale * sum[k];
            const float gain = gain_of(p, first + row, sum, K);
            for (int64_t k = 0; k < K; k++) values[row * K + k] = nib_bf16_from_float(gain * sum[k]);
        }
        nib_free(sum);
    }
    return failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a row of %lld sums", (long long)K) : NIB_OK;
}

/* Rows first .. first + rows of the embedding, where the adapter has rows of its own. */
static nib_status put_token_rows(merge *m, int64_t first, int64_t rows, int64_t columns, nib_bf16 *values)
{
    const int32_t *token;
    int64_t count = m->lora == NULL ? 0 : nib_lora_config_tokens(m->lora, &token);
    float *delta = NULL;
    nib_status status = NIB_OK;
    if (count == 0) return NIB_OK;
    NIB_TRY_GOTO(read_tensor(m, "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", count,
                             columns, &delta),
                 done);
    for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < columns && token[i] >= first && token[i] < first + rows; c++)
            values[(token[i] - first) * columns + c] = nib_bf16_from_float(delta[i * columns + c]);
done:
    nib_free(delta);
    return status;
}

static const nib_parameter *find_trained(const merge *m, const char *name)
{
    nib_parameter *parameters;
    int count = nib_model_parameters(m->trained, &parameters);
    for (int i = 0; i < count; i++)
        if (strcmp(parameters[i].name, name) == 0) return &parameters[i];
    return NULL;
}

/* The `count` elements of a trained weight from `first` on, from the copy that the forward pass reads. */
static nib_status read_trained(const merge *m, const char *name, int64_t first, int64_t count, nib_bf16 *values)
{
    const nib_parameter *parameter = find_trained(m, name);
    if (parameter == NULL) return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: is no trained weight of the model in memory", name);
    if (parameter->copy.dtype == NIB_DTYPE_BF16)
        return m->ops->download(m->ops, values, (const nib_bf16 *)parameter->copy.data + first,
                                (size_t)count * sizeof *values);
    size_t bytes = (size_t)count * sizeof(float);
    float *host = nib_calloc(1, bytes);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a piece of it", name);
    nib_status status = m->ops->download(m->ops, host, (const float *)parameter->copy.data + first, bytes);
    for (int64_t i = 0; i < count && status == NIB_OK; i++) values[i] = nib_bf16_from_float(host[i]);
    nib_free(host);
    return status;
}

/* Rows first .. first + rows, before an adapter is added. */
static nib_status read_rows(const merge *m, const weight *w, int64_t first, int64_t rows, int64_t columns,
                            nib_bf16 *values)
{
    return m->trained != NULL ? read_trained(m, w->name, first * columns, rows * columns, values)
                              : nib_weight_source_read(&m->source, w->name, first, rows, columns, values);
}

static nib_status write_weight(merge *m, const weight *w, nib_safetensors_writer *writer)
{
    int64_t rows = w->columns > 0 ? w->rows : 1, columns = w->columns > 0 ? w->columns : w->rows;
    int64_t step = PIECE_ELEMENTS / columns > 0 ? PIECE_ELEMENTS / columns : 1;
    pair p = {0};
    nib_status status;
    nib_bf16 *piece = nib_calloc((size_t)((step < rows ? step : rows) * columns), sizeof *piece);
    if (piece == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a piece of it", w->name);
        goto done;
    }
    NIB_TRY_GOTO(read_pair(m, w, &p), done);
    for (int64_t row = 0; row < rows; row += step) {
        int64_t n = rows - row < step ? rows - row : step;
        NIB_TRY_GOTO(read_rows(m, w, row, n, columns, piece), done);
        if (strcmp(w->name, "model.embed_tokens.weight") == 0)
            NIB_TRY_GOTO(put_token_rows(m, row, n, columns, piece), done);
        if (p.rank > 0) NIB_TRY_GOTO(add_pair(&p, row, n, columns, piece), done);
        NIB_TRY_GOTO(nib_safetensors_writer_data(writer, piece, (uint64_t)(n * columns) * sizeof *piece), done);
    }
    if (m->trained == NULL) nib_weight_source_release(&m->source, w->name);
done:
    free_pair(&p);
    nib_free(piece);
    return status;
}

static void shard_name(const merge *m, int shard, char name[64])
{
    if (m->summary->shards == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05d-of-%05d.safetensors", shard + 1, m->summary->shards);
}

static nib_status write_shard(merge *m, int shard)
{
    char name[64];
    nib_safetensors_writer *writer = NULL;
    nib_status status;
    shard_name(m, shard, name);
    char *path = nib_path_join(m->folder, name);
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", m->folder);
    NIB_TRY_GOTO(nib_safetensors_writer_begin(path, &writer), done);
    NIB_TRY_GOTO(nib_safetensors_writer_metadata(writer, "format", "pt"), done);
    for (size_t i = 0; i < m->count; i++) {
        const weight *w = &m->weights[i];
        if (w->shard != shard) continue;
        int64_t shape[] = {w->rows, w->columns};
        NIB_TRY_GOTO(nib_safetensors_writer_declare(writer, w->name, NIB_DTYPE_BF16, w->columns > 0 ? 2 : 1, shape),
                     done);
    }
    for (size_t i = 0; i < m->count; i++)
        if (m->weights[i].shard == shard) NIB_TRY_GOTO(write_weight(m, &m->weights[i], writer), done);
    status = nib_safetensors_writer_finish(writer, NULL);
    writer = NULL;
done:
    if (writer != NULL) nib_safetensors_writer_abandon(writer);
    nib_free(path);
    return status;
}

static nib_status write_index(const merge *m)
{
    nib_buffer json = {0};
    int64_t total = 0;
    for (size_t i = 0; i < m->count; i++) {
        const weight *w = &m->weights[i];
        total += w->rows * (w->columns > 0 ? w->columns : 1) * (int64_t)sizeof(nib_bf16);
    }
    nib_buffer_format(&json, "{\n  \"metadata\": {\"total_size\": %lld},\n  \"weight_map\": {", (long long)total);
    for (size_t i = 0; i < m->count; i++) {
        char name[64];
        shard_name(m, m->weights[i].shard, name);
        nib_buffer_format(&json, "%s\n    \"%s\": \"%s\"", i == 0 ? "" : ",", m->weights[i].name, name);
    }
    nib_buffer_text(&json, "\n  }\n}\n");
    nib_status status = nib_file_replace_text(m->folder, "model.safetensors.index.json", &json);
    nib_buffer_free(&json);
    return status;
}

static nib_status open_adapter(merge *m, const char *folder)
{
    char *path = nib_path_join(folder, "adapter_model.safetensors");
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", folder);
    nib_status status = nib_lora_config_read(folder, &m->lora);
    if (status == NIB_OK) status = nib_tensor_set_open(path, &m->adapter);
    if (status == NIB_OK && nib_tensor_set_count(m->adapter) == 0)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: holds no tensor", path);
    nib_free(path);
    return status;
}

/* Every weight of the architecture, in shards; the index comes last. */
static nib_status write_weights(merge *m, const nib_model_config *config)
{
    nib_merge_summary *summary = m->summary;
    NIB_TRY(nib_weights_visit(config, list_weight, m));
    summary->tensors = (long long)m->count;
    summary->config = *config;
    NIB_TRY(check_adapter(m));
    NIB_TRY(nib_file_make_folders(m->folder));
    for (int shard = 0; shard < summary->shards; shard++) NIB_TRY(write_shard(m, shard));
    return summary->shards > 1 ? write_index(m) : NIB_OK;
}

nib_status nib_export_merged(const char *model, const char *adapter, const char *folder, nib_merge_summary *summary)
{
    merge m = {.folder = folder, .summary = summary};
    nib_status status;
    *summary = (nib_merge_summary){0};
    NIB_TRY_GOTO(nib_weight_source_open(model, &m.source), done);
    if (m.source.quantized) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: its weights are NF4; merging needs the original 16-bit model", model);
        goto done;
    }
    if (adapter != NULL) NIB_TRY_GOTO(open_adapter(&m, adapter), done);
    status = write_weights(&m, &m.source.config);
done:
    nib_weight_source_close(&m.source);
    nib_lora_config_free(m.lora);
    nib_tensor_set_close(m.adapter);
    nib_free(m.weights);
    return status;
}

nib_status nib_export_trained(nib_ops *ops, const nib_model *model, const char *folder, nib_merge_summary *summary)
{
    merge m = {.trained = model, .ops = ops, .folder = folder, .summary = summary};
    *summary = (nib_merge_summary){0};
    nib_status status = write_weights(&m, nib_model_get_config(model));
    nib_free(m.weights);
    return status;
}
