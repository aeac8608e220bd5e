#include "open.h"
#include "base/file.h"
#include "formats/tensor_set.h"

#include <string.h>

#define MAX_TEMPLATE_BYTES (4u << 20)

static nib_status has_tokenizer(const char *model, bool *has)
{
    size_t length = strlen(model);
    *has = true;
    if (length > 5 && strcmp(model + length - 5, ".gguf") == 0) return NIB_OK;
    if (!nib_file_exists(model))
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: no such file or folder; expected a model folder or a .gguf on this machine", model);
    if (!nib_file_is_folder(model))
        return NIB_FAIL(NIB_ERROR_DATA, "%s: found another file, expected a model folder or a .gguf", model);
    char *path = nib_path_join(model, "tokenizer.json");
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", model);
    *has = nib_file_exists(path);
    nib_free(path);
    return NIB_OK;
}

static const char *token_text(const nib_tokenizer *tokenizer, int32_t id)
{
    const char *text = id < 0 ? NULL : nib_tokenizer_text(tokenizer, id);
    return text == NULL ? "" : text;
}

nib_status nib_text_open(const char *model, const char *tokenizer, const char *chat_template, nib_text *text)
{
    *text = (nib_text){.bos_token = "", .eos_token = ""};
    nib_status status = NIB_OK;
    size_t length;
    bool has = true;
    if (tokenizer == NULL) NIB_TRY(has_tokenizer(model, &has));
    if (!has) return NIB_OK;
    NIB_TRY_GOTO(nib_tokenizer_open(tokenizer == NULL ? model : tokenizer, &text->tokenizer), done);
    text->bos_token = token_text(text->tokenizer, nib_tokenizer_bos(text->tokenizer));
    text->eos_token = token_text(text->tokenizer, nib_tokenizer_eos(text->tokenizer));
    text->template_source = nib_tokenizer_chat_template(text->tokenizer);
    if (chat_template != NULL) {
        NIB_TRY_GOTO(nib_file_read(chat_template, MAX_TEMPLATE_BYTES, &text->template_file, &length), done);
        text->template_source = text->template_file;
    }
    if (text->template_source != NULL)
        status = nib_chat_template_compile(chat_template == NULL ? "chat_template" : chat_template,
                                           text->template_source, &text->chat_template);
done:
    if (status != NIB_OK) nib_text_close(text);
    return status;
}

nib_status nib_text_open_for(const char *model, const char *adapter, const char *tokenizer, const char *chat_template,
                             nib_text *text)
{
    *text = (nib_text){.bos_token = "", .eos_token = ""};
    if (adapter == NULL || chat_template != NULL) return nib_text_open(model, tokenizer, chat_template, text);
    char *path = nib_path_join(adapter, "chat_template.jinja");
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", adapter);
    nib_status status = nib_text_open(model, tokenizer, nib_file_exists(path) ? path : NULL, text);
    nib_free(path);
    return status;
}

void nib_text_close(nib_text *text)
{
    if (text->chat_template != NULL) nib_chat_template_free(text->chat_template);
    if (text->tokenizer != NULL) nib_tokenizer_free(text->tokenizer);
    nib_free(text->template_file);
    *text = (nib_text){0};
}

nib_status nib_open_model_config(const char *path, nib_model_config *config)
{
    if (nib_file_is_folder(path)) return nib_model_config_read(path, config);
    nib_tensor_set *set;
    NIB_TRY(nib_tensor_set_open(path, &set));
    const struct nib_gguf *gguf = nib_tensor_set_gguf(set);
    nib_status status = gguf == NULL ? NIB_FAIL(NIB_ERROR_DATA,
                                                "%s: a safetensors file alone is no model; give the folder that holds "
                                                "it and config.json",
                                                path)
                                     : nib_model_config_from_gguf(path, gguf, config);
    nib_tensor_set_close(set);
    return status;
}

nib_status nib_open_data(const nib_config *config, const nib_source_list *sources, const nib_text *text,
                         int64_t vocabulary, bool on_demand, nib_dataset **dataset)
{
    nib_data_options options = {
        .max_length = config->data.max_length,
        .over_long = (nib_over_long)config->data.over_long,
        .on_demand = on_demand,
        .train_on_all = config->data.train_on == 1,
        .tokenizer = text->tokenizer,
        .chat_template = text->chat_template,
        .bos_token = text->bos_token,
        .eos_token = text->eos_token,
    };
    return nib_dataset_load(sources->source, sources->count, &options, vocabulary, dataset);
}
