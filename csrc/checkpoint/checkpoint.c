#include "checkpoint/checkpoint.h"
#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "formats/safetensors_writer.h"
#include "model/ops.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_JSON_BYTES (1u << 20)
#define PATH_BYTES     4096
#define FORMAT_VERSION 2 /* 1, and one that states none: without the hash of the evaluation data */

static const char *const files[] = {"state.json", "tensors.safetensors"};
#define FILES 2

static const struct {
    const char *key;
    size_t offset;
} integers[] =
    {
        {"step", offsetof(nib_checkpoint_state, step)},
        {"cursor", offsetof(nib_checkpoint_state, cursor)},
        {"seed", offsetof(nib_checkpoint_state, seed)},
        {"slots", offsetof(nib_checkpoint_state, slots)},
        {"micro_batch_tokens", offsetof(nib_checkpoint_state, micro_batch_tokens)},
        {"updates", offsetof(nib_checkpoint_state, updates)},
        {"nonfinite_steps", offsetof(nib_checkpoint_state, nonfinite_steps)},
        {"evaluations_since_best", offsetof(nib_checkpoint_state, evaluations_since_best)},
        {"best_step", offsetof(nib_checkpoint_state, best_step)},
},
  hashes[] = {
      {"config_hash", offsetof(nib_checkpoint_state, config_hash)},
      {"base_hash", offsetof(nib_checkpoint_state, base_hash)},
      {"tokenizer_hash", offsetof(nib_checkpoint_state, tokenizer_hash)},
      {"data_hash", offsetof(nib_checkpoint_state, data_hash)},
      {"evaluation_hash", offsetof(nib_checkpoint_state, evaluation_hash)},
};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static nib_status path_of(char path[PATH_BYTES], const char *format, ...) __attribute__((format(printf, 2, 3)));
static nib_status path_of(char path[PATH_BYTES], const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(path, PATH_BYTES, format, arguments);
    va_end(arguments);
    if (length >= PATH_BYTES) return NIB_FAIL(NIB_ERROR_IO, "%.100s...: path longer than %d bytes", path, PATH_BYTES);
    return NIB_OK;
}

static nib_status write_state(const char *folder, const nib_checkpoint_state *state)
{
    nib_buffer text = {0};
    nib_buffer_format(&text, "{\n  \"version\": %d,\n", FORMAT_VERSION);
    for (size_t i = 0; i < COUNT(integers); i++)
        nib_buffer_format(&text, "  \"%s\": %" PRId64 ",\n", integers[i].key,
                          *(const int64_t *)((const char *)state + integers[i].offset));
    for (size_t i = 0; i < COUNT(hashes); i++)
        nib_buffer_format(&text, "  \"%s\": \"%s\",\n", hashes[i].key, (const char *)state + hashes[i].offset);
    nib_buffer_format(&text, "  \"best_loss\": %.17g,\n  \"finished\": %s\n}\n", state->best_loss,
                      state->finished ? "true" : "false");
    nib_status status = nib_file_replace_text(folder, files[0], &text);
    nib_buffer_free(&text);
    return status;
}

static const char *const kinds[NIB_CHECKPOINT_KINDS] = {"master", "first_moment", "second_moment", "first_absmax",
                                                        "second_absmax"};

static bool is_code(bool moments_8bit, nib_checkpoint_kind kind)
{
    return moments_8bit && (kind == NIB_CHECKPOINT_FIRST || kind == NIB_CHECKPOINT_SECOND);
}

static bool is_absmax(nib_checkpoint_kind kind) { return kind >= NIB_CHECKPOINT_FIRST_ABSMAX; }

static int64_t blocks_of(int64_t n) { return (n + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK; }

size_t nib_checkpoint_bytes(bool moments_8bit, nib_checkpoint_kind kind, int64_t n)
{
    if (is_code(moments_8bit, kind)) return (size_t)n;
    if (is_absmax(kind)) return moments_8bit ? (size_t)blocks_of(n) * sizeof(float) : 0;
    return (size_t)n * sizeof(float);
}

/* One tensor of the file. */
typedef struct {
    int i; /* of the tensors of a run */
    nib_checkpoint_kind kind;
    char name[512];
    nib_dtype dtype;
    int dims;
    int64_t shape[2];
    size_t bytes;
} piece;

static const piece before_all = {.i = -1, .kind = NIB_CHECKPOINT_KINDS - 1};

/* The one after *p in the order of the file, first that after before_all; false: there is none. */
static bool next_piece(const nib_checkpoint_tensor *tensors, int count, piece *p)
{
    do {
        p->kind = (nib_checkpoint_kind)(((int)p->kind + 1) % NIB_CHECKPOINT_KINDS);
        p->i += p->kind == 0;
        if (p->i == count) return false;
        const nib_checkpoint_tensor *t = &tensors[p->i];
        p->bytes = nib_checkpoint_bytes(t->moments_8bit, p->kind, t->rows * t->columns);
    } while (p->bytes == 0);
    const nib_checkpoint_tensor *t = &tensors[p->i];
    snprintf(p->name, sizeof p->name, "%s.%s", kinds[p->kind], t->name);
    p->dtype = is_code(t->moments_8bit, p->kind) ? NIB_DTYPE_U8 : NIB_DTYPE_F32;
    p->dims = is_absmax(p->kind) ? 1 : 2;
    p->shape[0] = is_absmax(p->kind) ? blocks_of(t->rows * t->columns) : t->rows;
    p->shape[1] = t->columns;
    return true;
}

static nib_status write_tensors(const char *path, const nib_checkpoint_tensor *tensors, int count)
{
    nib_safetensors_writer *writer;
    NIB_TRY(nib_safetensors_writer_begin(path, &writer));
    nib_status status = NIB_OK;
    for (piece p = before_all; next_piece(tensors, count, &p);)
        NIB_TRY_GOTO(nib_safetensors_writer_declare(writer, p.name, p.dtype, p.dims, p.shape), failed);
    for (piece p = before_all; next_piece(tensors, count, &p);)
        NIB_TRY_GOTO(nib_safetensors_writer_data(writer, tensors[p.i].values[p.kind], p.bytes), failed);
    return nib_safetensors_writer_finish(writer, NULL);
failed:
    nib_safetensors_writer_abandon(writer);
    return status;
}

static nib_status write_manifest(const char *folder)
{
    char path[PATH_BYTES], hex[65];
    nib_buffer text = {0};
    nib_status status = NIB_OK;
    nib_buffer_text(&text, "{\"files\": [");
    for (int i = 0; i < FILES; i++) {
        nib_file file;
        NIB_TRY_GOTO(path_of(path, "%s/%s", folder, files[i]), done);
        NIB_TRY_GOTO(nib_file_map(&file, path), done);
        nib_file_hash(&file, hex);
        nib_buffer_format(&text, "%s{\"name\": \"%s\", \"bytes\": %llu, \"sha256\": \"%s\"}", i == 0 ? "" : ", ",
                          files[i], (unsigned long long)file.size, hex);
        nib_file_unmap(&file);
    }
    nib_buffer_text(&text, "]}\n");
    status = nib_file_replace_text(folder, "manifest.json", &text);
done:
    nib_buffer_free(&text);
    return status;
}

nib_status nib_checkpoint_write(const char *folder, const nib_checkpoint_state *state,
                                const nib_checkpoint_tensor *tensors, int count)
{
    char temporary[PATH_BYTES], final[PATH_BYTES], path[PATH_BYTES];
    NIB_TRY(path_of(final, "%s/step-%" PRId64, folder, state->step));
    NIB_TRY(path_of(temporary, "%s/step-%" PRId64 ".tmp-%ld", folder, state->step, (long)getpid()));
    nib_status status = nib_file_make_folders(temporary);
    if (status != NIB_OK) goto done;
    NIB_TRY_GOTO(write_state(temporary, state), done);
    NIB_TRY_GOTO(path_of(path, "%s/%s", temporary, files[1]), done);
    NIB_TRY_GOTO(write_tensors(path, tensors, count), done);
    NIB_TRY_GOTO(write_manifest(temporary), done);
    NIB_TRY_GOTO(nib_file_sync_folder(temporary), done);
    /* The same step twice (a last step that is also a periodic one, or a damaged folder): the newer one stays. */
    if (nib_file_exists(final)) NIB_TRY_GOTO(nib_file_remove_tree(final), done);
    if (rename(temporary, final) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be renamed to %s: %s", temporary, final, strerror(errno));
        goto done;
    }
    status = nib_file_sync_folder(folder);
done:
    if (status != NIB_OK) {
        char message[1024];
        snprintf(message, sizeof message, "%s", nib_error_message());
        (void)nib_file_remove_tree(temporary); /* best effort: prune removes leftovers too */
        return NIB_FAIL(status, "checkpoint of step %" PRId64 " was not written, older ones are intact: %s",
                        state->step, message);
    }
    return NIB_OK;
}

/* Step of a folder "step-N"; -1 for any other name. */
static int64_t step_of(const char *name)
{
    char *end;
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return -1;
    errno = 0;
    int64_t step = strtoll(name + 5, &end, 10);
    return *end == 0 && errno == 0 ? step : -1;
}

/* All steps of the folder, highest first; free with nib_free. leftovers: also remove folders of dead writers. */
static nib_status list_steps(const char *folder, bool leftovers, int64_t **steps, size_t *count)
{
    size_t capacity = 0;
    *steps = NULL;
    *count = 0;
    DIR *directory = opendir(folder);
    if (directory == NULL && errno == ENOENT) return NIB_OK;
    if (directory == NULL) return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be listed: %s", folder, strerror(errno));
    nib_status status = NIB_OK;
    for (const struct dirent *entry; status == NIB_OK && (entry = readdir(directory)) != NULL;) {
        int64_t step = step_of(entry->d_name);
        char path[PATH_BYTES];
        if (step < 0 && leftovers && strncmp(entry->d_name, "step-", 5) == 0 && strstr(entry->d_name, ".tmp-")) {
            status = path_of(path, "%s/%s", folder, entry->d_name);
            if (status == NIB_OK) status = nib_file_remove_tree(path);
        } else if (step >= 0 && !nib_grow(steps, &capacity, *count + 1, sizeof **steps)) {
            status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to list it", folder);
        } else if (step >= 0) {
            size_t at = (*count)++;
            for (; at > 0 && (*steps)[at - 1] < step; at--) (*steps)[at] = (*steps)[at - 1];
            (*steps)[at] = step;
        }
    }
    closedir(directory);
    if (status != NIB_OK) nib_free(*steps);
    if (status != NIB_OK) *steps = NULL;
    return status;
}

nib_status nib_checkpoint_prune(const char *folder, int64_t keep)
{
    int64_t *steps;
    size_t count;
    char path[PATH_BYTES];
    NIB_TRY(list_steps(folder, true, &steps, &count));
    nib_status status = NIB_OK;
    for (size_t i = (size_t)keep; i < count && status == NIB_OK; i++) {
        status = path_of(path, "%s/step-%" PRId64, folder, steps[i]);
        if (status == NIB_OK) status = nib_file_remove_tree(path);
    }
    nib_free(steps);
    return status;
}

static nib_status verify_file(const char *folder, const char *manifest, const nib_json *entry, const char *expected)
{
    char path[PATH_BYTES], hex[65];
    const char *name, *want;
    int64_t bytes;
    nib_file file;
    NIB_TRY(nib_json_read_string(manifest, entry, "name", "", &name));
    NIB_TRY(nib_json_read_string(manifest, entry, "sha256", "", &want));
    NIB_TRY(nib_json_read_int(manifest, entry, "bytes", 0, INT64_MAX, -1, &bytes));
    if (strcmp(name, expected) != 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: file \"%s\", expected \"%s\"", manifest, name, expected);
    NIB_TRY(path_of(path, "%s/%s", folder, name));
    NIB_TRY(nib_file_map(&file, path));
    nib_file_hash(&file, hex);
    nib_status status = NIB_OK;
    if ((int64_t)file.size != bytes || strcmp(hex, want) != 0)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: %llu bytes with SHA-256 %.12s..., expected %lld with %.12s...", path,
                          (unsigned long long)file.size, hex, (long long)bytes, want);
    nib_file_unmap(&file);
    return status;
}

static nib_status read_json(const char *path, nib_pool *pool, const nib_json **root)
{
    char *text;
    size_t length;
    nib_json *parsed = NULL;
    NIB_TRY(nib_file_read(path, MAX_JSON_BYTES, &text, &length));
    nib_status status = nib_json_parse(path, text, length, (nib_json_options){0}, pool, &parsed);
    nib_free(text);
    *root = parsed;
    return status;
}

static nib_status read_state(const char *path, nib_checkpoint_state *state)
{
    nib_pool pool = {0};
    const nib_json *root;
    int64_t version;
    nib_status status = read_json(path, &pool, &root);
    if (status != NIB_OK) goto done;
    NIB_TRY_GOTO(nib_json_read_int(path, root, "version", 0, INT64_MAX, 1, &version), done);
    if (version != FORMAT_VERSION) { /* no damage, which would be passed over: its SHA-256 is right */
        status = NIB_FAIL(NIB_ERROR_CONFIG,
                          "%s: a checkpoint of format version %" PRId64 ", expected %d; go on with the nibble that "
                          "wrote it, or give another \"output\"",
                          path, version, FORMAT_VERSION);
        goto done;
    }
    for (size_t i = 0; i < COUNT(integers); i++)
        NIB_TRY_GOTO(nib_json_read_int(path, root, integers[i].key, -1, INT64_MAX, -1,
                                       (int64_t *)((char *)state + integers[i].offset)),
                     done);
    for (size_t i = 0; i < COUNT(hashes); i++) {
        const char *hex;
        NIB_TRY_GOTO(nib_json_read_string(path, root, hashes[i].key, "", &hex), done);
        snprintf((char *)state + hashes[i].offset, 65, "%s", hex);
    }
    NIB_TRY_GOTO(nib_json_read_double(path, root, "best_loss", 0, &state->best_loss), done);
    status = nib_json_read_bool(path, root, "finished", false, &state->finished);
done:
    nib_pool_free(&pool);
    return status;
}

static nib_status verify(const char *folder, int64_t step, nib_checkpoint_state *state)
{
    char path[PATH_BYTES], inner[PATH_BYTES];
    nib_pool pool = {0};
    const nib_json *root;
    NIB_TRY(path_of(inner, "%s/step-%" PRId64, folder, step));
    NIB_TRY(path_of(path, "%s/manifest.json", inner));
    nib_status status = read_json(path, &pool, &root);
    if (status != NIB_OK) goto done;
    const nib_json *list = nib_json_get(root, "files");
    if (!nib_json_is(list, NIB_JSON_ARRAY) || list->length != FILES) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: expected a list \"files\" of %d", path, FILES);
        goto done;
    }
    const nib_json *entry = list->first;
    for (int i = 0; i < FILES; i++, entry = entry->next) NIB_TRY_GOTO(verify_file(inner, path, entry, files[i]), done);
    NIB_TRY_GOTO(path_of(path, "%s/%s", inner, files[0]), done);
    NIB_TRY_GOTO(read_state(path, state), done);
    if (state->step != step)
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: step %" PRId64 ", expected %" PRId64, path, state->step, step);
done:
    nib_pool_free(&pool);
    return status;
}

nib_status nib_checkpoint_latest(const char *folder, int64_t *step, nib_checkpoint_state *state)
{
    int64_t *steps;
    size_t count;
    *step = -1;
    NIB_TRY(list_steps(folder, false, &steps, &count));
    nib_status status = NIB_OK;
    for (size_t i = 0; i < count && *step < 0; i++) {
        status = verify(folder, steps[i], state);
        if (status == NIB_OK) {
            *step = steps[i];
        } else if (status == NIB_ERROR_DATA) {
            nib_warn("checkpoint of step %" PRId64 " is damaged and passed over: %s", steps[i], nib_error_message());
            status = NIB_OK;
        } else {
            break;
        }
    }
    nib_free(steps);
    return status;
}

/* The tensor of the file that p is, of its type and shape. */
static nib_status find(const nib_tensor_set *set, const char *path, const piece *p, const nib_tensor_view **view)
{
    *view = nib_tensor_set_find(set, p->name);
    if (*view == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: no tensor \"%s\"; was it written for another model?", path, p->name);
    if ((*view)->dtype != p->dtype)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: \"%s\" is %s, expected %s: moments of 8 bits are the optimizer adamw_8bit's, those of 32 "
                        "adamw's; go on with the \"train.optimizer\" that wrote it",
                        path, p->name, nib_dtype_name((*view)->dtype), nib_dtype_name(p->dtype));
    return nib_tensor_expect_shape(*view, p->dims, p->shape[0], p->shape[1]);
}

/* A file's bytes need not be aligned. */
static nib_status store(nib_checkpoint_carrier carrier, const piece *p, const nib_tensor_view *view)
{
    void *host = nib_calloc(p->bytes, 1);
    if (host == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read tensor \"%s\"", view->file->path, view->name);
    memcpy(host, view->data, p->bytes);
    nib_status status = carrier.store(carrier.context, p->i, p->kind, host);
    nib_free(host);
    return status;
}

nib_status nib_checkpoint_read(const char *folder, int64_t step, nib_checkpoint_carrier carrier,
                               const nib_checkpoint_tensor *tensors, int count)
{
    char path[PATH_BYTES];
    nib_tensor_set *set;
    const nib_tensor_view *view;
    size_t expected = 0;
    NIB_TRY(path_of(path, "%s/step-%" PRId64 "/%s", folder, step, files[1]));
    NIB_TRY(nib_tensor_set_open(path, &set));
    nib_status status = NIB_OK;
    for (piece p = before_all; next_piece(tensors, count, &p); expected++)
        NIB_TRY_GOTO(find(set, path, &p, &view), done);
    if (nib_tensor_set_count(set) != expected) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: %zu tensors, expected %zu", path, nib_tensor_set_count(set), expected);
        goto done;
    }
    for (piece p = before_all; next_piece(tensors, count, &p);) {
        NIB_TRY_GOTO(find(set, path, &p, &view), done);
        NIB_TRY_GOTO(store(carrier, &p, view), done);
    }
done:
    nib_tensor_set_close(set);
    return status;
}
