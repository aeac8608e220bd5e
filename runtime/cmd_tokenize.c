/* nibble tokenize: text to ids and back, a line each, for programs and for comparing with other tokenizers. */
#include "command.h"
#include "options.h"

#include "base/buffer.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *tokenizer;
    bool add_special, decode, skip_special;
} arguments;

static nib_status read_arguments(int argc, char **argv, arguments *a)
{
    bool no_special = false;
    *a = (arguments){0};
    const nib_option options[] = {
        {.name = "--tokenizer", .kind = NIB_OPTION_PATH, .value = &a->tokenizer, .required = true},
        {.name = "--no-special", .kind = NIB_OPTION_FLAG, .value = &no_special},
        {.name = "--decode", .kind = NIB_OPTION_FLAG, .value = &a->decode},
        {.name = "--skip-special", .kind = NIB_OPTION_FLAG, .value = &a->skip_special},
    };
    NIB_TRY(nib_options_read(argc, argv, options, sizeof options / sizeof *options));
    a->add_special = !no_special;
    if (a->skip_special && !a->decode) return NIB_FAIL(NIB_ERROR_USAGE, "--skip-special goes with --decode");
    return NIB_OK;
}

static nib_status encode_line(const nib_tokenizer *tokenizer, const arguments *a, const nib_json *value,
                              nib_token_list *ids, nib_buffer *out)
{
    if (value->kind != NIB_JSON_STRING)
        return NIB_FAIL(NIB_ERROR_DATA, "%s, expected a string", nib_json_kind_name(value->kind));
    nib_encode_options options = {.add_special = a->add_special, .parse_special = true};
    ids->count = 0;
    NIB_TRY(nib_tokenizer_encode(tokenizer, value->string, value->length, options, ids));
    nib_buffer_char(out, '[');
    for (size_t i = 0; i < ids->count; i++) nib_buffer_format(out, i > 0 ? ", %d" : "%d", ids->ids[i]);
    nib_buffer_char(out, ']');
    return NIB_OK;
}

static nib_status decode_line(const nib_tokenizer *tokenizer, const arguments *a, const nib_json *value,
                              nib_token_list *ids, nib_buffer *out)
{
    nib_buffer text = {0};
    if (value->kind != NIB_JSON_ARRAY)
        return NIB_FAIL(NIB_ERROR_DATA, "%s, expected an array of ids", nib_json_kind_name(value->kind));
    ids->count = 0;
    for (const nib_json *id = value->first; id != NULL; id = id->next) {
        if (!id->is_integer || id->integer < 0 || id->integer > INT32_MAX)
            return NIB_FAIL(NIB_ERROR_DATA, "item %zu of the array is no id, expected an integer of 0 to %d",
                            ids->count, nib_tokenizer_vocabulary(tokenizer) - 1);
        if (!nib_grow(&ids->ids, &ids->capacity, ids->count + 1, sizeof *ids->ids))
            return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the ids");
        ids->ids[ids->count++] = (int32_t)id->integer;
    }
    nib_status status = nib_tokenizer_decode(tokenizer, ids->ids, ids->count, a->skip_special, &text);
    if (status == NIB_OK) nib_buffer_json_string(out, text.data, text.length, false);
    nib_buffer_free(&text);
    return status;
}

static nib_status convert_line(const nib_tokenizer *tokenizer, const arguments *a, const char *line, size_t length,
                               nib_token_list *ids, nib_buffer *out)
{
    nib_pool pool = {0};
    nib_json *value;
    nib_json_options options = {.allow_nul = true};
    nib_buffer_clear(out);
    if (length > 0 && line[length - 1] == '\n') length--;
    nib_status status = nib_json_parse("the text", line, length, options, &pool, &value);
    if (status == NIB_OK)
        status = a->decode ? decode_line(tokenizer, a, value, ids, out) : encode_line(tokenizer, a, value, ids, out);
    nib_pool_free(&pool);
    nib_buffer_char(out, '\n');
    if (status == NIB_OK && out->failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the line's result");
    return status;
}

static nib_status run(int argc, char **argv)
{
    arguments a;
    nib_tokenizer *tokenizer = NULL;
    nib_token_list ids = {0};
    nib_buffer out = {0};
    char *line = NULL;
    size_t capacity = 0, number = 0;
    nib_status status;
    NIB_TRY(read_arguments(argc, argv, &a));
    NIB_TRY(nib_tokenizer_open(a.tokenizer, &tokenizer));
    for (ssize_t length; (length = getline(&line, &capacity, stdin)) >= 0;) {
        number++;
        status = convert_line(tokenizer, &a, line, (size_t)length, &ids, &out);
        if (status != NIB_OK) {
            nib_error_context(status, "standard input, line %zu", number);
            goto done;
        }
        if (fwrite(out.data, 1, out.length, stdout) != out.length) {
            status = NIB_FAIL(NIB_ERROR_IO, "standard output: cannot be written: %s", strerror(errno));
            goto done;
        }
    }
    status = NIB_OK;
    if (!feof(stdin)) /* getline finds no memory without an error of the stream */
        status = NIB_FAIL(errno == ENOMEM ? NIB_ERROR_MEMORY : NIB_ERROR_IO, "standard input, line %zu: %s", number + 1,
                          strerror(errno));
done:
    free(line);
    nib_token_list_free(&ids);
    nib_buffer_free(&out);
    nib_tokenizer_free(tokenizer);
    return status;
}

const nib_command nib_command_tokenize = {
    .name = "tokenize",
    .summary = "text to token ids and back, a line each",
    .usage = "usage: nibble tokenize --tokenizer T [--no-special]\n"
             "       nibble tokenize --tokenizer T --decode [--skip-special]\n\n"
             "T is a tokenizer.json, a folder that holds one, or a .gguf.\n"
             "Standard input: one JSON string a line; standard output: one JSON array of ids a line.\n"
             "  --no-special    without the tokens that the tokenizer puts around a text (BOS, ...)\n"
             "  --decode        the other way: arrays in, strings out\n"
             "  --skip-special  leave special tokens out of the decoded text\n",
    .run = run,
};
