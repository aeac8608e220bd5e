/* replay.jsonl: {"quantization", "compute", "prompt": [ids], "answer": [ids], "ended"} a line, and in the one that was
 * rendered from a message its "content" and the time "now" of the rendering. */
#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "export/replay.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define MAX_BYTES ((size_t)1 << 20)

static void put_ids(nib_buffer *out, const char *key, const nib_token_list *list)
{
    nib_buffer_format(out, "\"%s\": [", key);
    for (size_t i = 0; i < list->count; i++) nib_buffer_format(out, i > 0 ? ", %d" : "%d", list->ids[i]);
    nib_buffer_text(out, "], ");
}

nib_status nib_replay_write(const nib_replay *replay, const char *folder)
{
    nib_buffer out = {0};
    char *path = nib_path_join(folder, NIB_REPLAY_FILE);
    for (int i = 0; i < replay->count; i++) {
        const nib_replay_item *item = &replay->item[i];
        nib_buffer_format(&out, "{\"quantization\": \"%s\", \"compute\": \"%s\", ",
                          replay->quantization == NIB_QUANT_NF4 ? "nf4" : "none",
                          replay->compute == NIB_DTYPE_F32 ? "fp32" : "bf16");
        put_ids(&out, "prompt", &item->prompt);
        put_ids(&out, "answer", &item->answer);
        nib_buffer_format(&out, "\"ended\": %s", item->ended ? "true" : "false");
        if (item->content != NULL) {
            nib_buffer_text(&out, ", \"content\": ");
            nib_buffer_json_string(&out, item->content, strlen(item->content), false);
            nib_buffer_format(&out, ", \"now\": %lld", (long long)item->now);
        }
        nib_buffer_text(&out, "}\n");
    }
    nib_status status = path == NULL || out.failed ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a replay", folder)
                                                   : nib_file_replace(path, out.data, out.length);
    nib_buffer_free(&out);
    nib_free(path);
    return status;
}

nib_status nib_replay_remove(const char *folder)
{
    char *path = nib_path_join(folder, NIB_REPLAY_FILE);
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", folder);
    nib_status status = NIB_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be removed: %s", path, strerror(errno));
    nib_free(path);
    return status;
}

static nib_status read_ids(const char *where, const nib_json *line, const char *key, size_t most, nib_token_list *list)
{
    const nib_json *ids = nib_json_get(line, key);
    if (!nib_json_is(ids, NIB_JSON_ARRAY) || ids->length > most)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: expected \"%s\", a list of at most %zu ids", where, key, most);
    for (const nib_json *id = ids->first; id != NULL; id = id->next) {
        if (!id->is_integer || id->integer < 0 || id->integer > INT32_MAX)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: \"%s\" holds what is no id", where, key);
        if (!nib_grow(&list->ids, &list->capacity, list->count + 1, sizeof *list->ids))
            return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its ids", where);
        list->ids[list->count++] = (int32_t)id->integer;
    }
    return NIB_OK;
}

static nib_status read_item(const char *where, const nib_json *line, nib_replay *replay)
{
    nib_replay_item *item = &replay->item[replay->count++]; /* freed with the others, whatever is in it */
    const char *quantization, *compute, *content;
    NIB_TRY(nib_json_read_string(where, line, "quantization", "", &quantization));
    NIB_TRY(nib_json_read_string(where, line, "compute", "", &compute));
    NIB_TRY(nib_json_read_string(where, line, "content", "", &content));
    NIB_TRY(nib_json_read_bool(where, line, "ended", false, &item->ended));
    NIB_TRY(nib_json_read_int(where, line, "now", INT64_MIN, INT64_MAX, 0, &item->now));
    NIB_TRY(read_ids(where, line, "prompt", NIB_REPLAY_PROMPT, &item->prompt));
    NIB_TRY(read_ids(where, line, "answer", NIB_REPLAY_ANSWER, &item->answer));
    bool nf4 = strcmp(quantization, "nf4") == 0, fp32 = strcmp(compute, "fp32") == 0;
    if ((!nf4 && strcmp(quantization, "none") != 0) || (!fp32 && strcmp(compute, "bf16") != 0) ||
        item->prompt.count == 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: no prompt, or \"quantization\" or \"compute\" of no known kind", where);
    replay->quantization = nf4 ? NIB_QUANT_NF4 : NIB_QUANT_NONE;
    replay->compute = fp32 ? NIB_DTYPE_F32 : NIB_DTYPE_BF16;
    if (*content == 0) return NIB_OK;
    item->content = nib_calloc(strlen(content) + 1, 1);
    if (item->content == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its content", where);
    memcpy(item->content, content, strlen(content));
    return NIB_OK;
}

nib_status nib_replay_read(const char *folder, nib_replay *replay)
{
    char *path = nib_path_join(folder, NIB_REPLAY_FILE), *text = NULL;
    size_t length;
    nib_pool pool = {0};
    nib_status status = NIB_OK;
    *replay = (nib_replay){0};
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", folder);
    if (!nib_file_exists(path)) goto done;
    NIB_TRY_GOTO(nib_file_read(path, MAX_BYTES, &text, &length), done);
    for (char *line = text, *end; *line != 0; line = end + 1) {
        nib_json *root;
        end = strchr(line, '\n');
        if (end == NULL || replay->count == NIB_REPLAY_ITEMS) {
            status =
                NIB_FAIL(NIB_ERROR_DATA, "%s: line %d is cut short, or one too many; train again, or remove the file",
                         path, replay->count + 1);
            goto done;
        }
        NIB_TRY_GOTO(nib_json_parse(path, line, (size_t)(end - line), (nib_json_options){0}, &pool, &root), done);
        NIB_TRY_GOTO(read_item(path, root, replay), done);
    }
done:
    nib_pool_free(&pool);
    nib_free(text);
    nib_free(path);
    if (status != NIB_OK) nib_replay_free(replay);
    return status;
}
