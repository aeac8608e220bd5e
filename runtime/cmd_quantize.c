/* nibble quantize: the NF4 form of a model as a folder that transformers and bitsandbytes load. */
#include "command.h"
#include "open.h"
#include "options.h"

#include "base/log.h"
#include "model/nf4_cache.h"

#include <stdio.h>

/* The files of a tokenizer, where the model has them beside its weights. */
static nib_status copy_tokenizer(const char *model, const char *out)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "chat_template.jinja", "generation_config.json"};
    nib_status status = NIB_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names && status == NIB_OK; i++) {
        nib_file file = {0};
        char *from = nib_path_join(model, names[i]), *to = nib_path_join(out, names[i]);
        if (from == NULL || to == NULL) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a file name", model);
        if (status == NIB_OK && nib_file_exists(from)) {
            status = nib_file_map(&file, from);
            if (status == NIB_OK) status = nib_file_replace(to, file.data, file.size);
            nib_file_unmap(&file);
        }
        nib_free(from);
        nib_free(to);
    }
    return status;
}

static nib_status run(int argc, char **argv)
{
    const char *model = NULL, *out = NULL;
    nib_ops *ops = NULL;
    nib_weight_source source = {0};
    char hex[65];
    const nib_option options[] = {
        {.name = "--model", .kind = NIB_OPTION_PATH, .value = &model, .required = true},
        {.name = "--out", .kind = NIB_OPTION_PATH, .value = &out, .required = true},
    };
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    NIB_TRY(nib_check_output_folder(out, &model, 1));
    nib_status status;
    NIB_TRY_GOTO(nib_weight_source_open(model, &source), done);
    if (source.quantized) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: is NF4 already; expected 16-bit or 32-bit weights", model);
        goto done;
    }
    NIB_TRY_GOTO(nib_open_backend(NIB_DEVICE_CPU, NIB_DTYPE_F32, 0, &ops), done);
    NIB_TRY_GOTO(nib_nf4_write(ops, &source, out, hex), done);
    if (nib_file_is_folder(model)) NIB_TRY_GOTO(copy_tokenizer(model, out), done);
    nib_log("%s/model.safetensors, SHA-256 %s", out, hex);
done:
    nib_close_backend(ops);
    nib_weight_source_close(&source);
    return status;
}

const nib_command nib_command_quantize = {
    .name = "quantize",
    .summary = "write a model's NF4 form",
    .usage =
        "usage: nibble quantize --model M --out D\n\n"
        "Writes folder D, new or empty, with every linear but the head in NF4 (blocks of 64, double quantised) in the\n"
        "form of bitsandbytes; transformers loads it, and so does every command here. Training keeps the same in a\n"
        "cache.\n",
    .run = run,
};
