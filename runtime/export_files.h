/* What lies beside exported weights: config, tokenizer, chat template, generation config, Modelfile. */
#ifndef NIB_EXPORT_FILES_H
#define NIB_EXPORT_FILES_H

#include "conversation.h"

/* FOLDER/config.json: the model folder's own, or one made from a GGUF's metadata. */
nib_status nib_export_config(const char *model, const nib_model_config *config, const char *folder);
/* Whether a model or tokenizer path is a GGUF, by its name. */
bool nib_export_is_gguf(const char *path);
/* The tokenizer's files from a model folder or the folder of a tokenizer.json; one made from the vocabulary inside a
 * GGUF. None is there: nothing happens. */
nib_status nib_export_tokenizer(const char *from, const char *folder);
/* chat_template.jinja, and generation_config.json with every id that ends a turn (stop [stop_count]; none: no file): a
 * server that did not know the terminator would never stop. */
nib_status nib_export_chat_files(const nib_text *text, const nib_model_config *config, const int32_t *stop,
                                 int stop_count, const char *folder);
/* FOLDER/Modelfile for Ollama. The Go template is derived from renderings of the Jinja template and checked against
 * another one; NIB_ERROR_DATA if the template cannot be written so. */
nib_status nib_export_modelfile(const char *model, const char *adapter, const nib_text *text,
                                const nib_model_config *config, const nib_conversation *conversation,
                                const char *folder);

#endif
