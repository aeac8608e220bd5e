/* nibble inspect: what is in a safetensors file or folder, a GGUF, an adapter, a checkpoint, packed data. Nothing is
 * loaded: what is printed comes from headers, tables and small JSON files. */
#include "command.h"
#include "inspect_shards.h"
#include "options.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "data/manifest.h"
#include "formats/gguf.h"
#include "formats/tensor_set.h"

#include <stdio.h>
#include <string.h>

enum { MAX_JSON = 16 << 20, MAX_TEXT = 60, MAX_ITEMS = 6 };

/* Text of a file as a JSON string, so that no control character reaches the terminal; long text is cut. */
static void append_text(nib_buffer *out, const char *text, size_t length)
{
    size_t valid = nib_utf8_invalid_at(text, length), shown = 0;
    if (valid < length) {
        nib_buffer_format(out, "(%zu bytes, not UTF-8)", length);
        return;
    }
    while (shown < length && shown < MAX_TEXT) {
        uint32_t codepoint;
        shown += nib_utf8_decode(text + shown, length - shown, &codepoint);
    }
    nib_buffer_json_string(out, text, shown, false);
    if (shown < length) nib_buffer_format(out, " ... (%zu bytes)", length);
}

/* A name of a file's choosing stays within its line. */
static void append_name(nib_buffer *out, const char *name)
{
    for (; *name != 0; name++) nib_buffer_char(out, *name == '\n' || *name == '\t' ? '?' : *name);
}

static void append_bytes(nib_buffer *out, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KB", "MB", "GB", "TB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1000 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    nib_buffer_format(out, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
}

static void append_shape(nib_buffer *out, const nib_tensor_view *tensor)
{
    if (tensor->rank == 0) nib_buffer_text(out, "scalar");
    for (int i = 0; i < tensor->rank; i++)
        nib_buffer_format(out, i > 0 ? " x %lld" : "%lld", (long long)tensor->shape[i]);
}

static size_t shape_width(const nib_tensor_view *tensor)
{
    nib_buffer text = {0};
    append_shape(&text, tensor);
    size_t width = text.length;
    nib_buffer_free(&text);
    return width;
}

static void pad(nib_buffer *out, size_t start, size_t width)
{
    while (out->length < start + width && !out->failed) nib_buffer_char(out, ' ');
}

/* One line a tensor: name, type, shape, size. */
static void append_tensors(nib_buffer *out, const nib_tensor_set *set)
{
    size_t count = nib_tensor_set_count(set), name_width = 0, size_width = 0;
    for (size_t i = 0; i < count; i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(set, i);
        size_t name = strlen(tensor->name), size = shape_width(tensor);
        if (name > name_width) name_width = name;
        if (size > size_width) size_width = size;
    }
    if (count > 0) nib_buffer_text(out, "\ntensors\n");
    for (size_t i = 0; i < count; i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(set, i);
        nib_buffer_text(out, "  ");
        size_t start = out->length;
        append_name(out, tensor->name);
        pad(out, start, name_width);
        nib_buffer_format(out, "  %-6s  ", nib_dtype_name(tensor->dtype));
        start = out->length;
        append_shape(out, tensor);
        pad(out, start, size_width);
        nib_buffer_text(out, "  ");
        append_bytes(out, tensor->bytes);
        nib_buffer_char(out, '\n');
    }
}

static void append_summary(nib_buffer *out, const char *path, const char *kind, const nib_tensor_set *set)
{
    uint64_t elements = 0, bytes = 0;
    size_t count = nib_tensor_set_count(set);
    for (size_t i = 0; i < count; i++) {
        elements += (uint64_t)nib_tensor_set_at(set, i)->count;
        bytes += nib_tensor_set_at(set, i)->bytes;
    }
    nib_buffer_format(out, "%s: %s, %zu tensor%s, %llu elements, ", path, kind, count, count == 1 ? "" : "s",
                      (unsigned long long)elements);
    append_bytes(out, bytes);
    nib_buffer_char(out, '\n');
}

/* A scalar, or an array of them; anything deeper is only named. */
static void append_json(nib_buffer *out, const nib_json *value)
{
    if (value->kind == NIB_JSON_STRING) {
        append_text(out, value->string, value->length);
    } else if (value->kind == NIB_JSON_NUMBER) {
        if (value->is_integer)
            nib_buffer_format(out, "%lld", (long long)value->integer);
        else
            nib_buffer_format(out, "%.17g", value->number);
    } else if (value->kind == NIB_JSON_ARRAY) {
        for (const nib_json *item = value->first; item != NULL; item = item->next) {
            if (item != value->first) nib_buffer_text(out, ", ");
            append_json(out, item);
        }
    } else {
        nib_buffer_text(out, nib_json_kind_name(value->kind));
    }
}

/* Members of an object in its order, or those of a list of keys in the list's. */
static void append_members(nib_buffer *out, const nib_json *object, const char *const *keys)
{
    size_t width = 0;
    for (const nib_json *m = object->first; m != NULL; m = m->next)
        if (m->key_length > width) width = m->key_length;
    if (keys != NULL)
        for (size_t i = width = 0; keys[i] != NULL; i++)
            if (strlen(keys[i]) > width) width = strlen(keys[i]);
    const nib_json *member = object->first;
    for (size_t i = 0; keys == NULL ? member != NULL : keys[i] != NULL; i++) {
        const nib_json *shown = keys == NULL ? member : nib_json_get(object, keys[i]);
        if (keys == NULL) member = member->next;
        if (shown == NULL || shown->kind == NIB_JSON_NULL) continue;
        nib_buffer_text(out, "  ");
        size_t start = out->length;
        append_name(out, shown->key);
        pad(out, start, width);
        nib_buffer_text(out, "  ");
        append_json(out, shown);
        nib_buffer_char(out, '\n');
    }
}

static void append_gguf_array(nib_buffer *out, const nib_gguf *gguf, const char *key)
{
    nib_gguf_type type = NIB_GGUF_U8;
    uint64_t count = 0;
    nib_gguf_array(gguf, key, &type, &count);
    nib_buffer_format(out, "[%llu]", (unsigned long long)count);
    if (type == NIB_GGUF_ARRAY) {
        nib_buffer_text(out, " arrays");
        return;
    }
    for (uint64_t i = 0; i < count && i < MAX_ITEMS; i++) {
        nib_buffer_text(out, i > 0 ? ", " : " ");
        if (type == NIB_GGUF_STRING) {
            nib_gguf_string item = nib_gguf_array_string(gguf, key, i);
            append_text(out, item.data, item.length);
        } else if (type == NIB_GGUF_F32 || type == NIB_GGUF_F64) {
            nib_buffer_format(out, "%g", nib_gguf_array_double(gguf, key, i));
        } else {
            nib_buffer_format(out, "%lld", (long long)nib_gguf_array_int(gguf, key, i));
        }
    }
    if (count > MAX_ITEMS) nib_buffer_text(out, ", ...");
}

static void append_gguf_metadata(nib_buffer *out, const nib_gguf *gguf)
{
    size_t count = nib_gguf_key_count(gguf), width = 0;
    nib_gguf_type type;
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(nib_gguf_key_at(gguf, i, &type));
        if (length > width) width = length;
    }
    if (count > 0) nib_buffer_text(out, "\nmetadata\n");
    for (size_t i = 0; i < count; i++) {
        const char *key = nib_gguf_key_at(gguf, i, &type), *text = nib_gguf_text(gguf, key);
        int64_t integer;
        double real;
        bool flag;
        nib_buffer_text(out, "  ");
        size_t start = out->length;
        append_name(out, key);
        pad(out, start, width);
        nib_buffer_text(out, "  ");
        if (text != NULL)
            append_text(out, text, strlen(text));
        else if (nib_gguf_bool(gguf, key, &flag))
            nib_buffer_text(out, flag ? "true" : "false");
        else if (nib_gguf_int(gguf, key, &integer))
            nib_buffer_format(out, "%lld", (long long)integer);
        else if (nib_gguf_double(gguf, key, &real))
            nib_buffer_format(out, "%g", real);
        else if (type == NIB_GGUF_ARRAY)
            append_gguf_array(out, gguf, key);
        else
            nib_buffer_text(out, "an integer beyond 64 bits with sign");
        nib_buffer_char(out, '\n');
    }
}

/* FOLDER/name, an object, into *root; its text lives in the pool. */
static nib_status read_object(const char *folder, const char *name, nib_pool *pool, nib_json **root)
{
    char *text = NULL, *path = nib_path_join(folder, name);
    size_t length;
    nib_status status;
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", folder);
    NIB_TRY_GOTO(nib_file_read(path, MAX_JSON, &text, &length), done);
    NIB_TRY_GOTO(nib_json_parse(path, text, length, (nib_json_options){0}, pool, root), done);
    if ((*root)->kind != NIB_JSON_OBJECT)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: %s, expected an object", path, nib_json_kind_name((*root)->kind));
done:
    nib_free(text);
    nib_free(path);
    return status;
}

static bool folder_has(const char *folder, const char *name)
{
    char *path = nib_path_join(folder, name);
    bool found = path != NULL && nib_file_exists(path);
    nib_free(path);
    return found;
}

/* What kind of thing lies at the path, and the file that says most about it (NULL: none). */
typedef struct {
    const char *kind, *description, *tensors;
    const char *const *keys; /* of the description, to show; NULL: all */
} contents;

static contents recognise(const char *path)
{
    static const char *const adapter[] = {"peft_type",
                                          "base_model_name_or_path",
                                          "r",
                                          "lora_alpha",
                                          "lora_dropout",
                                          "target_modules",
                                          "use_dora",
                                          "use_rslora",
                                          "modules_to_save",
                                          "task_type",
                                          NULL};
    static const char *const model[] = {"model_type",
                                        "hidden_size",
                                        "num_hidden_layers",
                                        "num_attention_heads",
                                        "num_key_value_heads",
                                        "intermediate_size",
                                        "vocab_size",
                                        "tie_word_embeddings",
                                        "torch_dtype",
                                        "dtype",
                                        NULL};
    if (!nib_file_is_folder(path)) return (contents){.kind = "safetensors"};
    if (folder_has(path, "adapter_config.json")) return (contents){"adapter", "adapter_config.json", NULL, adapter};
    if (folder_has(path, "state.json")) return (contents){"checkpoint", "state.json", "tensors.safetensors", NULL};
    return (contents){"model", folder_has(path, "config.json") ? "config.json" : NULL, NULL, model};
}

static nib_status describe_tensors(const char *path, nib_buffer *out)
{
    contents found = recognise(path);
    nib_pool pool = {0};
    nib_tensor_set *set = NULL;
    nib_json *description = NULL;
    nib_status status = NIB_OK;
    char *tensors = found.tensors != NULL ? nib_path_join(path, found.tensors) : NULL;
    if (found.tensors != NULL && tensors == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path);
    if (found.description != NULL) NIB_TRY_GOTO(read_object(path, found.description, &pool, &description), done);
    NIB_TRY_GOTO(nib_tensor_set_open(tensors != NULL ? tensors : path, &set), done);

    const nib_gguf *gguf = nib_tensor_set_gguf(set);
    const nib_json *metadata = nib_tensor_set_metadata(set);
    append_summary(out, path, gguf != NULL ? "GGUF" : found.kind, set);
    if (description != NULL) {
        nib_buffer_format(out, "\n%s\n", found.description);
        append_members(out, description, found.keys);
    }
    if (gguf != NULL) append_gguf_metadata(out, gguf);
    if (metadata != NULL && metadata->first != NULL) {
        nib_buffer_text(out, "\nmetadata\n");
        append_members(out, metadata, NULL);
    }
    append_tensors(out, set);
    if (out->failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to describe it", path);
done:
    nib_tensor_set_close(set);
    nib_pool_free(&pool);
    nib_free(tensors);
    return status;
}

static nib_status describe(const char *path, nib_buffer *out)
{
    /* a checkpoint has a manifest too, of another kind */
    if (nib_manifest_exists(path) && !folder_has(path, "state.json")) return nib_inspect_packed(path, out);
    if (nib_inspect_is_shard(path)) return nib_inspect_shard(path, out);
    return describe_tensors(path, out);
}

static nib_status run(int argc, char **argv)
{
    nib_buffer out = {0};
    const char *path = NULL;
    const nib_option option = {.name = "FILE", .kind = NIB_OPTION_ARGUMENT, .value = &path, .required = true};
    NIB_TRY(nib_options_read(argc, argv, &option, 1));
    nib_status status = describe(path, &out);
    if (status == NIB_OK) nib_utf8_print(stdout, out.data, out.length);
    nib_buffer_free(&out);
    return status;
}

const nib_command nib_command_inspect = {
    .name = "inspect",
    .summary = "shows what is in a model, adapter, checkpoint or packed data",
    .usage =
        "usage: nibble inspect FILE\n"
        "\n"
        "FILE is a .safetensors or .gguf file, or the folder of a model, an adapter or a checkpoint: prints its kind,\n"
        "its metadata or configuration, and name, type, shape and size of every tensor. Or FILE is a folder of\n"
        "nibble pack: prints what its manifest states; or one of its shards (.zst): its frames.\n"
        "Nothing is loaded: a file of any size takes a moment. Exit code 65 if the file is damaged.\n",
    .run = run,
};
