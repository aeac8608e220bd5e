/* What every command opens first: the tokenizer with its chat template, the data. */
#ifndef NIB_RUNTIME_OPEN_H
#define NIB_RUNTIME_OPEN_H

#include "config.h"

/* Both NULL for a model folder without a tokenizer.json: then all rows have to be input_ids. */
typedef struct {
    nib_tokenizer *tokenizer;
    nib_chat_template *chat_template; /* NULL: the model has none */
    const char *template_source;      /* its text; lives in the tokenizer, or in template_file */
    const char *bos_token, *eos_token;
    char *template_file;
} nib_text;

/* model: M of cli.md. tokenizer, chat_template: paths that take precedence, or NULL. */
nib_status nib_text_open(const char *model, const char *tokenizer, const char *chat_template, nib_text *text);
/* The same for a model with an adapter (may be NULL), which is asked with the template that it was trained with, if its
 * folder holds one. */
nib_status nib_text_open_for(const char *model, const char *adapter, const char *tokenizer, const char *chat_template,
                             nib_text *text);
void nib_text_close(nib_text *text);

/* The model's configuration from its folder or GGUF, without opening its weights. */
nib_status nib_open_model_config(const char *path, nib_model_config *config);
/* Loads the sources under the data section's options; on_demand as in nib_data_options. text must outlive the data set.
 */
nib_status nib_open_data(const nib_config *config, const nib_source_list *sources, const nib_text *text,
                         int64_t vocabulary, bool on_demand, nib_dataset **dataset);

#endif
