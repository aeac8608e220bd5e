/* Reading safetensors (the format's own document: 8 bytes of header length, a JSON header, the data). Rules beyond it,
 * as the reference implementation enforces: header at most 100 MB and starting with '{'; the tensors tile the data
 * without hole or overlap up to the end of the file. */
#include "formats/tensor_set_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_HEADER ((uint64_t)100 * 1000 * 1000)
#define MAX_INDEX  ((size_t)64 * 1024 * 1024)
/* An entry of a header in use takes 6 to 13 times its text when parsed, an array of zeros 40 times. */
#define PARSED_RATIO ((size_t)20)
#define MAX_PARSED   ((size_t)1 << 30)
#define LEAST_PARSED ((size_t)1 << 20)

static bool dtype_of(const char *name, nib_dtype *dtype)
{
    for (int i = NIB_DTYPE_F32; i <= NIB_DTYPE_I64; i++)
        if (strcmp(name, nib_dtype_name((nib_dtype)i)) == 0) {
            *dtype = (nib_dtype)i;
            return true;
        }
    return false;
}

/* nib_json_parse into the set's pool, bounded by what a text of this length may need. */
static nib_status parse_bounded(nib_tensor_set *set, const char *path, const char *text, size_t length, nib_json **root)
{
    size_t most = length < MAX_PARSED / PARSED_RATIO ? length * PARSED_RATIO : MAX_PARSED;
    set->pool.limit = set->pool.total + (most < LEAST_PARSED ? LEAST_PARSED : most);
    nib_status status = nib_json_parse(path, text, length, (nib_json_options){0}, &set->pool, root);
    set->pool.limit = 0;
    return status;
}

/* One member of the header. data_size: bytes after the header. */
static nib_status parse_tensor(const nib_file *file, const nib_json *entry, uint64_t data_start, uint64_t data_size,
                               nib_tensor_view *view)
{
    const char *path = file->path, *name = entry->key;
    const nib_json *dtype = nib_json_get(entry, "dtype"), *shape = nib_json_get(entry, "shape");
    const nib_json *offsets = nib_json_get(entry, "data_offsets");
    *view = (nib_tensor_view){.name = name, .file = file, .count = 1};
    if (!nib_json_is(dtype, NIB_JSON_STRING) || !nib_json_is(shape, NIB_JSON_ARRAY) ||
        !nib_json_is(offsets, NIB_JSON_ARRAY) || offsets->length != 2 || entry->length != 3)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: header: tensor \"%s\" needs exactly dtype, shape and two data_offsets",
                        path, name);
    if (!dtype_of(dtype->string, &view->dtype))
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: tensor \"%s\" has dtype %s, expected one of F32 F16 BF16 F64 U8 I8 I32 I64", path, name,
                        dtype->string);
    if (shape->length > NIB_TENSOR_MAX_RANK)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" has %zu dimensions, at most %d are supported", path, name,
                        shape->length, NIB_TENSOR_MAX_RANK);
    for (const nib_json *size = shape->first; size != NULL; size = size->next) {
        if (!size->is_integer || size->integer < 0 || __builtin_mul_overflow(view->count, size->integer, &view->count))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\": its shape is negative or overflows", path, name);
        view->shape[view->rank++] = size->integer;
    }
    const nib_json *begin = offsets->first, *end = begin->next;
    int64_t bytes;
    if (!begin->is_integer || !end->is_integer || begin->integer < 0 || end->integer < begin->integer ||
        (uint64_t)end->integer > data_size)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: tensor \"%s\": data_offsets [%.0f, %.0f] do not lie in the %llu bytes of data; "
                        "is the file truncated?",
                        path, name, begin->number, end->number, (unsigned long long)data_size);
    if (__builtin_mul_overflow(view->count, nib_dtype_block_bytes(view->dtype), &bytes) ||
        bytes != end->integer - begin->integer)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\": %lld bytes of data, expected %lld elements of %s", path,
                        name, (long long)(end->integer - begin->integer), (long long)view->count,
                        nib_dtype_name(view->dtype));
    view->bytes = (uint64_t)bytes;
    view->offset = data_start + (uint64_t)begin->integer;
    view->data = file->data + view->offset;
    return NIB_OK;
}

static int by_offset(const void *left, const void *right)
{
    const nib_tensor_view *a = left, *b = right;
    if (a->offset != b->offset) return a->offset < b->offset ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes); /* empty tensors first */
}

static nib_status check_tiling(nib_tensor_view *views, size_t count, const nib_file *file, uint64_t data_start)
{
    if (count > 0) qsort(views, count, sizeof *views, by_offset);
    uint64_t at = data_start;
    for (size_t i = 0; i < count; i++) {
        if (views[i].offset != at)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" begins at byte %llu, expected %llu: %s", file->path,
                            views[i].name, (unsigned long long)views[i].offset, (unsigned long long)at,
                            views[i].offset > at ? "bytes between tensors" : "tensors overlap");
        at += views[i].bytes;
    }
    if (at != file->size)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: the tensors end at byte %llu, the file at %llu", file->path,
                        (unsigned long long)at, (unsigned long long)file->size);
    return NIB_OK;
}

static nib_status check_metadata(const char *path, const nib_json *metadata)
{
    if (metadata->kind != NIB_JSON_OBJECT)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: __metadata__ is %s, expected an object", path,
                        nib_json_kind_name(metadata->kind));
    for (const nib_json *member = metadata->first; member != NULL; member = member->next)
        if (member->kind != NIB_JSON_STRING)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: __metadata__: \"%s\" is %s, expected a string", path, member->key,
                            nib_json_kind_name(member->kind));
    return NIB_OK;
}

nib_status nib_safetensors_open_file(nib_tensor_set *set, const char *path)
{
    nib_file *file;
    NIB_TRY(nib_tensor_set_add_file(set, path, &file));
    uint64_t header = 0;
    if (file->size < 8)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: %llu bytes, too short for a safetensors file", path,
                        (unsigned long long)file->size);
    for (int i = 0; i < 8; i++) header |= (uint64_t)file->data[i] << (8 * i);
    if (header > MAX_HEADER || header > file->size - 8)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: header of %llu bytes in a file of %llu; truncated, or no safetensors file",
                        path, (unsigned long long)header, (unsigned long long)file->size);
    if (header < 2 || file->data[8] != '{')
        return NIB_FAIL(NIB_ERROR_DATA, "%s: the header does not start with '{'; not a safetensors file", path);
    nib_json *root;
    NIB_TRY(parse_bounded(set, path, (const char *)file->data + 8, header, &root));
    if (root->kind != NIB_JSON_OBJECT) return NIB_FAIL(NIB_ERROR_DATA, "%s: the header is no JSON object", path);
    size_t first = set->count;
    for (const nib_json *entry = root->first; entry != NULL; entry = entry->next) {
        if (strcmp(entry->key, "__metadata__") == 0) {
            NIB_TRY(check_metadata(path, entry));
            if (set->metadata == NULL) set->metadata = entry;
            continue;
        }
        nib_tensor_view view;
        NIB_TRY(parse_tensor(file, entry, 8 + header, file->size - 8 - header, &view));
        NIB_TRY(nib_tensor_set_add(set, &view));
    }
    size_t added = set->count - first;
    return check_tiling(added > 0 ? set->tensors + first : NULL, added, file, 8 + header);
}

/* The distinct file names of the set's index, each opened once, each staying inside the folder. */
static nib_status open_shards(nib_tensor_set *set, const char *folder)
{
    const char *index = set->index_path;
    for (const nib_json *entry = set->weight_map->first; entry != NULL; entry = entry->next) {
        const char *name = entry->kind == NIB_JSON_STRING ? entry->string : nib_json_kind_name(entry->kind);
        if (entry->kind != NIB_JSON_STRING || strchr(name, '/') != NULL || name[0] == '.' || name[0] == 0)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s:%u: tensor \"%s\": found \"%s\", expected the name of a file of this folder", index,
                            entry->key_line, entry->key, name);
        char *path = nib_path_join(folder, name);
        if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", index);
        bool opened = false;
        for (size_t i = 0; i < set->file_count; i++) opened = opened || strcmp(set->files[i]->path, path) == 0;
        nib_status status = NIB_OK;
        if (!opened && !nib_file_exists(path))
            status = NIB_FAIL(NIB_ERROR_DATA,
                              "%s:%u: tensor \"%s\" is expected in %s, which is missing; is the checkpoint complete?",
                              index, entry->key_line, entry->key, path);
        else if (!opened)
            status = nib_safetensors_open_file(set, path);
        nib_free(path);
        NIB_TRY(status);
    }
    return NIB_OK;
}

nib_status nib_safetensors_open_folder(nib_tensor_set *set, const char *folder)
{
    nib_status status = NIB_OK;
    char *text = NULL, *single = nib_path_join(folder, "model.safetensors");
    char *index_path = nib_path_join(folder, "model.safetensors.index.json");
    char *adapter = nib_path_join(folder, "adapter_model.safetensors");
    size_t length;
    if (single == NULL || index_path == NULL || adapter == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open the folder", folder);
        goto done;
    }
    if (nib_file_exists(single) || nib_file_exists(adapter)) {
        status = nib_safetensors_open_file(set, nib_file_exists(single) ? single : adapter);
        goto done;
    }
    if (!nib_file_exists(index_path)) {
        status = NIB_FAIL(NIB_ERROR_DATA,
                          "%s: holds neither model.safetensors nor model.safetensors.index.json; a model folder has "
                          "one (.bin files of PyTorch are not read)",
                          folder);
        goto done;
    }
    nib_json *root;
    NIB_TRY_GOTO(nib_file_read(index_path, MAX_INDEX, &text, &length), done);
    NIB_TRY_GOTO(parse_bounded(set, index_path, text, length, &root), done);
    const nib_json *map = nib_json_get(root, "weight_map");
    if (!nib_json_is(map, NIB_JSON_OBJECT)) {
        status =
            NIB_FAIL(NIB_ERROR_DATA, "%s: has no object \"weight_map\"; expected one from tensor to file", index_path);
        goto done;
    }
    set->weight_map = map;
    set->index_path = nib_pool_copy(&set->pool, index_path, strlen(index_path));
    if (set->index_path == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open it", index_path);
        goto done;
    }
    status = open_shards(set, folder);
done:
    nib_free(text);
    nib_free(single);
    nib_free(index_path);
    nib_free(adapter);
    return status;
}
