/* The set itself: opening whatever lies at a path, finding by name, converting pieces. The formats' own rules are in
 * safetensors.c and gguf.c, the block types in ggml_blocks.c. */
#include "formats/tensor_set.h"
#include "formats/ggml_blocks.h"
#include "formats/tensor_set_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int16_t block, bytes;
} dtypes[NIB_DTYPE_COUNT] = {
    [NIB_DTYPE_F32] = {"F32", 1, 4},         [NIB_DTYPE_F16] = {"F16", 1, 2},
    [NIB_DTYPE_BF16] = {"BF16", 1, 2},       [NIB_DTYPE_F64] = {"F64", 1, 8},
    [NIB_DTYPE_U8] = {"U8", 1, 1},           [NIB_DTYPE_I8] = {"I8", 1, 1},
    [NIB_DTYPE_I32] = {"I32", 1, 4},         [NIB_DTYPE_I64] = {"I64", 1, 8},
    [NIB_DTYPE_Q4_0] = {"Q4_0", 32, 18},     [NIB_DTYPE_Q4_1] = {"Q4_1", 32, 20},
    [NIB_DTYPE_Q5_0] = {"Q5_0", 32, 22},     [NIB_DTYPE_Q5_1] = {"Q5_1", 32, 24},
    [NIB_DTYPE_Q8_0] = {"Q8_0", 32, 34},     [NIB_DTYPE_Q2_K] = {"Q2_K", 256, 84},
    [NIB_DTYPE_Q3_K] = {"Q3_K", 256, 110},   [NIB_DTYPE_Q4_K] = {"Q4_K", 256, 144},
    [NIB_DTYPE_Q5_K] = {"Q5_K", 256, 176},   [NIB_DTYPE_Q6_K] = {"Q6_K", 256, 210},
    [NIB_DTYPE_IQ4_NL] = {"IQ4_NL", 32, 18}, [NIB_DTYPE_IQ4_XS] = {"IQ4_XS", 256, 136},
};

const char *nib_dtype_name(nib_dtype dtype) { return dtypes[dtype].name; }
int64_t nib_dtype_block(nib_dtype dtype) { return dtypes[dtype].block; }
int64_t nib_dtype_block_bytes(nib_dtype dtype) { return dtypes[dtype].bytes; }

nib_status nib_tensor_set_add(nib_tensor_set *set, const nib_tensor_view *view)
{
    if (!nib_grow(&set->tensors, &set->capacity, set->count + 1, sizeof *set->tensors))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its tensor table", view->file->path);
    set->tensors[set->count++] = *view;
    return NIB_OK;
}

nib_status nib_tensor_set_add_file(nib_tensor_set *set, const char *path, nib_file **file)
{
    if (!nib_grow(&set->files, &set->file_capacity, set->file_count + 1, sizeof *set->files))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open it", path);
    *file = nib_pool_alloc(&set->pool, sizeof **file);
    if (*file == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open it", path);
    NIB_TRY(nib_file_map(*file, path));
    set->files[set->file_count++] = *file;
    return NIB_OK;
}

static int compare_names(const void *left, const void *right, void *tensors)
{
    const nib_tensor_view *t = tensors;
    return strcmp(t[*(const size_t *)left].name, t[*(const size_t *)right].name);
}

/* Sorts an index by name, which also finds duplicates. */
static nib_status build_index(nib_tensor_set *set)
{
    set->by_name = nib_calloc(set->count + 1, sizeof *set->by_name);
    if (set->by_name == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the index of %zu tensors", set->count);
    for (size_t i = 0; i < set->count; i++) set->by_name[i] = i;
    qsort_r(set->by_name, set->count, sizeof *set->by_name, compare_names, set->tensors);
    for (size_t i = 1; i < set->count; i++) {
        const nib_tensor_view *a = &set->tensors[set->by_name[i - 1]], *b = &set->tensors[set->by_name[i]];
        if (strcmp(a->name, b->name) == 0)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" occurs twice (also in %s)", b->file->path, b->name,
                            a->file->path);
    }
    return NIB_OK;
}

/* A tensor that the index names lies in the file that it names; listed[] has room for all tensors, and gets those. */
static nib_status check_listed(const nib_tensor_set *set, bool *listed)
{
    for (const nib_json *entry = set->weight_map->first; entry != NULL; entry = entry->next) {
        const nib_tensor_view *tensor = nib_tensor_set_find(set, entry->key);
        if (tensor == NULL)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s:%u: tensor \"%s\" is in none of the folder's files, expected in %s; is that file of "
                            "another checkpoint?",
                            set->index_path, entry->key_line, entry->key, entry->string);
        const char *slash = strrchr(tensor->file->path, '/'), *file = slash != NULL ? slash + 1 : tensor->file->path;
        if (strcmp(file, entry->string) != 0)
            return NIB_FAIL(NIB_ERROR_DATA, "%s:%u: tensor \"%s\" is in %s, expected in %s", set->index_path,
                            entry->key_line, entry->key, file, entry->string);
        listed[tensor - set->tensors] = true;
    }
    return NIB_OK;
}

/* The index of a sharded folder names all tensors of its files, and no other. */
static nib_status check_weight_map(const nib_tensor_set *set)
{
    if (set->weight_map == NULL) return NIB_OK;
    bool *listed = nib_calloc(set->count + 1, sizeof *listed);
    if (listed == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to check it", set->index_path);
    nib_status status = check_listed(set, listed);
    for (size_t i = 0; i < set->count && status == NIB_OK; i++)
        if (!listed[i])
            status =
                NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" of %s is not listed; is that file of another checkpoint?",
                         set->index_path, set->tensors[i].name, set->tensors[i].file->path);
    nib_free(listed);
    return status;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* By the first bytes, whatever the name; a file too short for them by its name, for the sake of the message. */
static nib_status is_gguf(const char *path, bool *gguf)
{
    nib_file file;
    NIB_TRY(nib_file_map(&file, path));
    *gguf = (file.size >= 4 && memcmp(file.data, "GGUF", 4) == 0) || ends_with(path, ".gguf");
    nib_file_unmap(&file);
    return NIB_OK;
}

static nib_status open_file(nib_tensor_set *set, const char *path)
{
    bool gguf;
    NIB_TRY(is_gguf(path, &gguf));
    return gguf ? nib_gguf_open_set(set, path) : nib_safetensors_open_file(set, path);
}

nib_status nib_tensor_set_open(const char *path, nib_tensor_set **out)
{
    *out = NULL;
    nib_tensor_set *set = nib_calloc(1, sizeof *set);
    if (set == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open it", path);
    nib_status status;
    if (!nib_file_exists(path))
        status = NIB_FAIL(NIB_ERROR_DATA,
                          "%s: no such file or folder; expected a model folder, a .safetensors or a .gguf", path);
    else if (nib_file_is_folder(path))
        status = nib_safetensors_open_folder(set, path);
    else
        status = open_file(set, path);
    if (status == NIB_OK) status = build_index(set);
    if (status == NIB_OK) status = check_weight_map(set);
    if (status == NIB_OK)
        *out = set;
    else
        nib_tensor_set_close(set);
    return status;
}

void nib_tensor_set_close(nib_tensor_set *set)
{
    if (set == NULL) return;
    nib_gguf_free(set->gguf);
    for (size_t i = 0; i < set->file_count; i++) nib_file_unmap(set->files[i]);
    nib_free(set->files);
    nib_free(set->tensors);
    nib_free(set->by_name);
    nib_pool_free(&set->pool);
    nib_free(set);
}

size_t nib_tensor_set_count(const nib_tensor_set *set) { return set->count; }

const nib_tensor_view *nib_tensor_set_at(const nib_tensor_set *set, size_t index) { return &set->tensors[index]; }

const nib_tensor_view *nib_tensor_set_find(const nib_tensor_set *set, const char *name)
{
    size_t low = 0, high = set->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const nib_tensor_view *tensor = &set->tensors[set->by_name[middle]];
        int order = strcmp(name, tensor->name);
        if (order == 0) return tensor;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const nib_json *nib_tensor_set_metadata(const nib_tensor_set *set) { return set->metadata; }

const struct nib_gguf *nib_tensor_set_gguf(const nib_tensor_set *set) { return set->gguf; }

static nib_status check_range(const nib_tensor_view *tensor, int64_t first, int64_t count)
{
    int64_t block = nib_dtype_block(tensor->dtype);
    if (first < 0 || count < 0 || first > tensor->count - count || first % block != 0 || count % block != 0)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: elements %lld + %lld of tensor \"%s\" (%lld elements, blocks of %lld)",
                        tensor->file->path, (long long)first, (long long)count, tensor->name, (long long)tensor->count,
                        (long long)block);
    return NIB_OK;
}

nib_status nib_tensor_read_float(const nib_tensor_view *tensor, int64_t first, int64_t count, float *out)
{
    NIB_TRY(check_range(tensor, first, count));
    const uint8_t *data = tensor->data + first / nib_dtype_block(tensor->dtype) * nib_dtype_block_bytes(tensor->dtype);
    switch (tensor->dtype) {
    case NIB_DTYPE_F32:
        memcpy(out, data, (size_t)count * 4);
        return NIB_OK;
    case NIB_DTYPE_BF16:
        for (int64_t i = 0; i < count; i++) {
            nib_bf16 x;
            memcpy(&x, data + 2 * i, 2);
            out[i] = nib_bf16_to_float(x);
        }
        return NIB_OK;
    case NIB_DTYPE_F16:
        for (int64_t i = 0; i < count; i++) {
            nib_f16 x;
            memcpy(&x, data + 2 * i, 2);
            out[i] = nib_f16_to_float(x);
        }
        return NIB_OK;
    case NIB_DTYPE_F64:
        for (int64_t i = 0; i < count; i++) {
            double x;
            memcpy(&x, data + 8 * i, 8);
            out[i] = (float)x;
        }
        return NIB_OK;
    default:
        break;
    }
    if (nib_ggml_dequantize(tensor->dtype, data, count, out)) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" is %s, expected floating point", tensor->file->path,
                    tensor->name, nib_dtype_name(tensor->dtype));
}

nib_status nib_tensor_read_bf16(const nib_tensor_view *tensor, int64_t first, int64_t count, nib_bf16 *out)
{
    if (tensor->dtype == NIB_DTYPE_BF16) {
        NIB_TRY(check_range(tensor, first, count));
        memcpy(out, tensor->data + 2 * first, 2 * (size_t)count);
        return NIB_OK;
    }
    enum { PIECE = 1024 }; /* a multiple of every block size */
    float values[PIECE];
    for (int64_t i = 0; i < count; i += PIECE) {
        int64_t n = count - i < PIECE ? count - i : PIECE;
        NIB_TRY(nib_tensor_read_float(tensor, first + i, n, values));
        for (int64_t j = 0; j < n; j++) out[i + j] = nib_bf16_from_float(values[j]);
    }
    return NIB_OK;
}

nib_status nib_tensor_expect_shape(const nib_tensor_view *tensor, int rank, ...)
{
    char found[128] = "", expected[128] = "";
    bool same = rank == tensor->rank;
    va_list sizes;
    va_start(sizes, rank);
    for (int i = 0, at = 0; i < rank; i++) {
        int64_t size = va_arg(sizes, int64_t);
        at += snprintf(expected + at, sizeof expected - (size_t)at, i ? ", %lld" : "%lld", (long long)size);
        same = same && tensor->shape[i] == size;
    }
    va_end(sizes);
    if (same) return NIB_OK;
    for (int i = 0, at = 0; i < tensor->rank && at < 100; i++)
        at += snprintf(found + at, sizeof found - (size_t)at, i ? ", %lld" : "%lld", (long long)tensor->shape[i]);
    return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" has shape [%s], expected [%s]", tensor->file->path, tensor->name,
                    found, expected);
}
