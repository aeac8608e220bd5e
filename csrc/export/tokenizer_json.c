#include "export/tokenizer_json.h"
#include "base/buffer.h"
#include "formats/gguf.h"
#include "tokenizer/gguf_pretokenizer.h"
#include "tokenizer/tokenizer.h"

#include <string.h>

/* tokenizer.ggml.token_type of tokens that are found in text before it is split */
enum { TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4 };

static void string(nib_buffer *out, const char *text) { nib_buffer_json_string(out, text, strlen(text), false); }

static void gguf_string(nib_buffer *out, nib_gguf_string text)
{
    nib_buffer_json_string(out, text.data, text.length, false);
}

static void write_added_tokens(const nib_gguf *gguf, uint64_t count, nib_buffer *out)
{
    const char *separator = "\n    ";
    nib_gguf_type type;
    uint64_t types;
    nib_buffer_text(out, "  \"added_tokens\": [");
    if (!nib_gguf_array(gguf, "tokenizer.ggml.token_type", &type, &types)) types = 0;
    for (uint64_t i = 0; i < count && i < types; i++) {
        int64_t kind = nib_gguf_array_int(gguf, "tokenizer.ggml.token_type", i);
        if (kind != TOKEN_UNKNOWN && kind != TOKEN_CONTROL && kind != TOKEN_USER_DEFINED) continue;
        nib_buffer_format(out, "%s{\"id\": %llu, \"content\": ", separator, (unsigned long long)i);
        gguf_string(out, nib_gguf_array_string(gguf, "tokenizer.ggml.tokens", i));
        nib_buffer_format(out,
                          ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, "
                          "\"special\": %s}",
                          kind == TOKEN_USER_DEFINED ? "false" : "true");
        separator = ",\n    ";
    }
    nib_buffer_text(out, "\n  ],\n");
}

static void write_pretokenizer(const nib_gguf_pretokenizer *p, nib_buffer *out)
{
    nib_buffer_format(out, "  \"normalizer\": %s,\n", p->nfc ? "{\"type\": \"NFC\"}" : "null");
    nib_buffer_text(out, "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [");
    for (int i = 0; i < 4 && p->patterns[i] != NULL; i++) {
        nib_buffer_text(out, "\n    {\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        string(out, p->patterns[i]);
        nib_buffer_text(out, "}, \"behavior\": \"Isolated\", \"invert\": false},");
    }
    nib_buffer_text(out, "\n    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
                         "\"use_regex\": false}\n  ]},\n");
}

static void special_item(nib_buffer *out, const char *token)
{
    nib_buffer_text(out, "{\"SpecialToken\": {\"id\": ");
    string(out, token);
    nib_buffer_text(out, ", \"type_id\": 0}}");
}

/* before, after: tokens around every text, or NULL. */
static void write_postprocessor(const nib_tokenizer *tokenizer, const char *before, const char *after, nib_buffer *out)
{
    const char *tokens[] = {before, after}, *separator = "";
    if (before == NULL && after == NULL) {
        nib_buffer_text(out, "  \"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
                             "\"trim_offsets\": false, \"use_regex\": true},\n");
        return;
    }
    nib_buffer_text(out, "  \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [");
    if (before != NULL) special_item(out, before);
    nib_buffer_format(out, "%s{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}", before != NULL ? ", " : "");
    if (after != NULL) nib_buffer_text(out, ", ");
    if (after != NULL) special_item(out, after);
    nib_buffer_text(out, "], \"pair\": [{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, "
                         "{\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}], \"special_tokens\": {");
    for (int i = 0; i < 2; i++) {
        if (tokens[i] == NULL || (i == 1 && before != NULL && strcmp(before, after) == 0)) continue;
        nib_buffer_text(out, separator);
        string(out, tokens[i]);
        nib_buffer_text(out, ": {\"id\": ");
        string(out, tokens[i]);
        nib_buffer_format(out, ", \"ids\": [%d], \"tokens\": [", nib_tokenizer_id(tokenizer, tokens[i]));
        string(out, tokens[i]);
        nib_buffer_text(out, "]}");
        separator = ", ";
    }
    nib_buffer_text(out, "}},\n");
}

static void write_model(const nib_gguf *gguf, uint64_t count, bool ignore_merges, nib_buffer *out)
{
    nib_gguf_type type;
    uint64_t merges;
    nib_buffer_format(out,
                      "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, "
                      "\"use_regex\": true},\n"
                      "  \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
                      "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, "
                      "\"byte_fallback\": false, \"ignore_merges\": %s,\n  \"vocab\": {",
                      ignore_merges ? "true" : "false");
    for (uint64_t i = 0; i < count; i++) {
        nib_buffer_text(out, i == 0 ? "\n    " : ",\n    ");
        gguf_string(out, nib_gguf_array_string(gguf, "tokenizer.ggml.tokens", i));
        nib_buffer_format(out, ": %llu", (unsigned long long)i);
    }
    nib_buffer_text(out, "\n  },\n  \"merges\": [");
    if (!nib_gguf_array(gguf, "tokenizer.ggml.merges", &type, &merges)) merges = 0;
    for (uint64_t i = 0; i < merges; i++) {
        nib_buffer_text(out, i == 0 ? "\n    " : ",\n    ");
        gguf_string(out, nib_gguf_array_string(gguf, "tokenizer.ggml.merges", i));
    }
    nib_buffer_text(out, "\n  ]}\n}\n");
}

static nib_status write_config(const char *bos, const char *eos, const char *folder)
{
    nib_buffer out = {0};
    nib_buffer_text(&out, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n");
    if (bos != NULL) {
        nib_buffer_text(&out, "  \"bos_token\": ");
        string(&out, bos);
        nib_buffer_text(&out, ",\n");
    }
    if (eos != NULL) {
        nib_buffer_text(&out, "  \"eos_token\": ");
        string(&out, eos);
        nib_buffer_text(&out, ",\n");
    }
    nib_buffer_text(&out, "  \"clean_up_tokenization_spaces\": false\n}\n");
    nib_status status = nib_file_replace_text(folder, "tokenizer_config.json", &out);
    nib_buffer_free(&out);
    return status;
}

static nib_status write_tokenizer(const char *path, const nib_gguf *gguf, const nib_tokenizer *tokenizer,
                                  const char *folder)
{
    const char *kind = nib_gguf_text(gguf, "tokenizer.ggml.model");
    const nib_gguf_pretokenizer *p = nib_gguf_pretokenizer_find(nib_gguf_text(gguf, "tokenizer.ggml.pre"));
    nib_gguf_type type;
    uint64_t count = 0;
    bool add_eos = false;
    if (kind == NULL || strcmp(kind, "gpt2") != 0 || p == NULL)
        return NIB_FAIL(
            NIB_ERROR_DATA,
            "%s: its vocabulary is of kind \"%s\"; a tokenizer.json is made of \"gpt2\" ones only: give the "
            "model's tokenizer.json with --tokenizer, or as \"tokenizer\" of a configuration",
            path, kind == NULL ? "none" : kind);
    if (folder == NULL) return NIB_OK;
    nib_gguf_array(gguf, "tokenizer.ggml.tokens", &type, &count);
    bool add_bos = p->add_bos;
    nib_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &add_bos);
    nib_gguf_bool(gguf, "tokenizer.ggml.add_eos_token", &add_eos);
    int32_t bos_id = nib_tokenizer_bos(tokenizer), eos_id = nib_tokenizer_eos(tokenizer);
    const char *bos = bos_id >= 0 ? nib_tokenizer_text(tokenizer, bos_id) : NULL;
    const char *eos = eos_id >= 0 ? nib_tokenizer_text(tokenizer, eos_id) : NULL;
    nib_buffer out = {0};
    nib_buffer_text(&out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    write_added_tokens(gguf, count, &out);
    write_pretokenizer(p, &out);
    write_postprocessor(tokenizer, add_bos ? bos : NULL, add_eos ? eos : NULL, &out);
    write_model(gguf, count, p->ignore_merges, &out);
    nib_status status = nib_file_replace_text(folder, "tokenizer.json", &out);
    nib_buffer_free(&out);
    return status == NIB_OK ? write_config(bos, eos, folder) : status;
}

nib_status nib_export_tokenizer_json(const char *path, const char *folder)
{
    nib_file file = {0};
    nib_gguf *gguf = NULL;
    nib_tokenizer *tokenizer = NULL;
    nib_status status;
    NIB_TRY_GOTO(nib_file_map(&file, path), done);
    NIB_TRY_GOTO(nib_gguf_parse(&file, &gguf), done);
    NIB_TRY_GOTO(nib_tokenizer_open(path, &tokenizer), done); /* checks the vocabulary */
    status = write_tokenizer(path, gguf, tokenizer, folder);
done:
    nib_tokenizer_free(tokenizer);
    nib_gguf_free(gguf);
    nib_file_unmap(&file);
    return status;
}
