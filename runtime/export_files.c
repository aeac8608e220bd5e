#include "export_files.h"
#include "base/file.h"
#include "base/log.h"
#include "export/tokenizer_json.h"

#include <stdio.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)512 << 20)

/* The file SOURCE to FOLDER/name; absent is fine. */
static nib_status copy_file(const char *source, const char *name, const char *folder)
{
    char *target = nib_path_join(folder, name), *text = NULL;
    size_t length;
    nib_status status = target == NULL ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", folder) : NIB_OK;
    bool there = nib_file_exists(source);
    if (there && status == NIB_OK) status = nib_file_read(source, MAX_FILE_BYTES, &text, &length);
    if (there && status == NIB_OK) status = nib_file_replace(target, text, length);
    nib_free(text);
    nib_free(target);
    return status;
}

/* FROM/name to FOLDER/name; absent is fine. */
static nib_status copy(const char *from, const char *name, const char *folder)
{
    char *source = nib_path_join(from, name);
    if (source == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", from);
    nib_status status = copy_file(source, name, folder);
    nib_free(source);
    return status;
}

nib_status nib_export_config(const char *model, const nib_model_config *config, const char *folder)
{
    if (nib_file_is_folder(model)) return copy(model, "config.json", folder);
    nib_buffer json = {0};
    nib_status status = nib_model_config_write(config, false, &json);
    if (status == NIB_OK) status = nib_file_replace_text(folder, "config.json", &json);
    nib_buffer_free(&json);
    return status;
}

bool nib_export_is_gguf(const char *path)
{
    size_t length = strlen(path);
    return length >= 5 && strcmp(path + length - 5, ".gguf") == 0;
}

nib_status nib_export_tokenizer(const char *from, const char *folder)
{
    static const char *const beside[] = {"tokenizer_config.json", "special_tokens_map.json"};
    char *holder = NULL;
    nib_status status;
    NIB_TRY(nib_file_make_folders(folder));
    if (nib_export_is_gguf(from)) return nib_export_tokenizer_json(from, folder);
    if (nib_file_is_folder(from)) {
        status = copy(from, "tokenizer.json", folder);
    } else {
        holder = nib_path_folder(from);
        if (holder == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", from);
        status = copy_file(from, "tokenizer.json", folder); /* whatever its name */
        from = holder;
    }
    for (size_t i = 0; i < sizeof beside / sizeof *beside && status == NIB_OK; i++)
        status = copy(from, beside[i], folder);
    nib_free(holder);
    return status;
}

static nib_status write_generation_config(const nib_model_config *config, const int32_t *stop, int stop_count,
                                          const char *folder)
{
    nib_buffer json = {0};
    if (stop_count == 0) return NIB_OK;
    nib_buffer_text(&json, "{\n");
    if (config->bos >= 0) nib_buffer_format(&json, "  \"bos_token_id\": %d,\n", config->bos);
    nib_buffer_text(&json, "  \"eos_token_id\": [");
    for (int i = 0; i < stop_count; i++) nib_buffer_format(&json, "%s%d", i == 0 ? "" : ", ", stop[i]);
    nib_buffer_text(&json, "]\n}\n");
    nib_status status = nib_file_replace_text(folder, "generation_config.json", &json);
    nib_buffer_free(&json);
    return status;
}

nib_status nib_export_chat_files(const nib_text *text, const nib_model_config *config, const int32_t *stop,
                                 int stop_count, const char *folder)
{
    if (text->template_source != NULL) {
        nib_buffer source = {0};
        nib_buffer_text(&source, text->template_source);
        nib_status status = nib_file_replace_text(folder, "chat_template.jinja", &source);
        nib_buffer_free(&source);
        NIB_TRY(status);
    }
    return write_generation_config(config, stop, stop_count, folder);
}
