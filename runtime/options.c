#include "options.h"

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_OPTIONS = 32 };

static nib_status read_number(const nib_option *option, const char *text, double *number)
{
    char *end;
    errno = 0;
    *number = strtod(text, &end);
    if (end == text || *end != 0 || errno != 0 || !isfinite(*number))
        return NIB_FAIL(NIB_ERROR_USAGE, "%s: found '%s', expected a number", option->name, text);
    if (*number < option->low || *number > option->high)
        return NIB_FAIL(NIB_ERROR_USAGE, "%s: found %s, expected %g to %g", option->name, text, option->low,
                        option->high);
    return NIB_OK;
}

static nib_status read_integer(const nib_option *option, const char *text, int64_t *integer)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != 0 || errno != 0)
        return NIB_FAIL(NIB_ERROR_USAGE, "%s: found '%s', expected an integer", option->name, text);
    if ((double)value < option->low || (double)value > option->high)
        return NIB_FAIL(NIB_ERROR_USAGE, "%s: found %s, expected %.0f to %.0f", option->name, text, option->low,
                        option->high);
    *integer = value;
    return NIB_OK;
}

static nib_status read_choice(const nib_option *option, const char *text, const char *first, const char *second,
                              bool *is_second)
{
    *is_second = strcmp(text, second) == 0;
    if (*is_second || strcmp(text, first) == 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_USAGE, "%s: found '%s', expected %s or %s", option->name, text, first, second);
}

/* A path that a shell's variable should have held. */
static nib_status check_path(const nib_option *option, const char *text)
{
    if (*text != 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_USAGE, "%s: found an empty text, expected a path; is a variable of the shell unset?",
                    option->name);
}

static nib_status read_value(const nib_option *option, const char *text)
{
    bool second;
    switch (option->kind) {
    case NIB_OPTION_PATH:
        NIB_TRY(check_path(option, text));
        *(const char **)option->value = text;
        return NIB_OK;
    case NIB_OPTION_TEXT:
        *(const char **)option->value = text;
        return NIB_OK;
    case NIB_OPTION_INTEGER:
        return read_integer(option, text, option->value);
    case NIB_OPTION_NUMBER:
        return read_number(option, text, option->value);
    case NIB_OPTION_QUANT:
        NIB_TRY(read_choice(option, text, "nf4", "none", &second));
        *(nib_quantization *)option->value = second ? NIB_QUANT_NONE : NIB_QUANT_NF4;
        return NIB_OK;
    case NIB_OPTION_COMPUTE:
        NIB_TRY(read_choice(option, text, "fp32", "bf16", &second));
        *(nib_dtype *)option->value = second ? NIB_DTYPE_BF16 : NIB_DTYPE_F32;
        return NIB_OK;
    case NIB_OPTION_DEVICE:
        return nib_parse_device(text, option->value);
    default:
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s takes no single value", option->name);
    }
}

static bool is_option(const char *text) { return text[0] == '-' && text[1] == '-'; }

static nib_status add_to_list(nib_option_list *list, const char *value)
{
    if (!nib_grow(&list->items, &list->capacity, list->count + 1, sizeof *list->items))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the command line");
    list->items[list->count++] = value;
    return NIB_OK;
}

/* The option at argv[*i] and its values, of which *i becomes the last. */
static nib_status read_option(const nib_option *option, int argc, char **argv, int *i)
{
    int last = *i;
    if (option->kind == NIB_OPTION_ARGUMENT) {
        NIB_TRY(check_path(option, argv[*i]));
        *(const char **)option->value = argv[*i];
        return NIB_OK;
    }
    if (option->kind == NIB_OPTION_FLAG) {
        *(bool *)option->value = true;
        return NIB_OK;
    }
    if (option->kind == NIB_OPTION_LIST)
        while (last + 1 < argc && !is_option(argv[last + 1])) {
            NIB_TRY(check_path(option, argv[++last]));
            NIB_TRY(add_to_list(option->value, argv[last]));
        }
    else if (last + 1 < argc)
        last++;
    if (last == *i) return NIB_FAIL(NIB_ERROR_USAGE, "%s needs a value", option->name);
    *i = last;
    if (option->kind == NIB_OPTION_LIST) return NIB_OK;
    return option->kind == NIB_OPTION_REPEATED ? add_to_list(option->value, argv[last])
                                               : read_value(option, argv[last]);
}

static bool is_named(const nib_option *option, const char *text)
{
    return option->kind == NIB_OPTION_ARGUMENT ? text[0] != '-' : strcmp(text, option->name) == 0;
}

nib_status nib_options_read(int argc, char **argv, const nib_option *options, size_t count)
{
    bool given[MAX_OPTIONS] = {false};
    for (int i = 0; i < argc; i++) {
        size_t o = 0;
        while (o < count && !is_named(&options[o], argv[i])) o++;
        if (o == count) return NIB_FAIL(NIB_ERROR_USAGE, "unknown argument '%s'; see --help", argv[i]);
        const nib_option *option = &options[o];
        if (given[o] && option->kind != NIB_OPTION_LIST && option->kind != NIB_OPTION_REPEATED)
            return NIB_FAIL(NIB_ERROR_USAGE, "%s is given twice", option->name);
        given[o] = true;
        NIB_TRY(read_option(option, argc, argv, &i));
    }
    for (size_t o = 0; o < count; o++)
        if (options[o].required && !given[o])
            return NIB_FAIL(NIB_ERROR_USAGE, "%s is missing; see --help", options[o].name);
    return NIB_OK;
}

static nib_status check_no_input(const char *out, const char *const *inputs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (inputs[i] != NULL && nib_file_is_same(out, inputs[i]))
            return NIB_FAIL(NIB_ERROR_USAGE,
                            "--out %s: found the input %s, which it would overwrite; give another path", out,
                            inputs[i]);
    return NIB_OK;
}

nib_status nib_check_output_folder(const char *out, const char *const *inputs, size_t count)
{
    NIB_TRY(check_no_input(out, inputs, count));
    if (!nib_file_exists(out)) return NIB_OK;
    DIR *folder = opendir(out);
    if (folder == NULL)
        return NIB_FAIL(NIB_ERROR_IO, "--out %s: expected a folder: %s; give another path", out, strerror(errno));
    const struct dirent *entry = readdir(folder);
    while (entry != NULL && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0))
        entry = readdir(folder);
    nib_status status = entry == NULL ? NIB_OK
                                      : NIB_FAIL(NIB_ERROR_USAGE,
                                                 "--out %s: found a folder that holds \"%s\", expected a new or empty "
                                                 "one; remove it, or give another path",
                                                 out, entry->d_name);
    closedir(folder);
    return status;
}

nib_status nib_check_output_file(const char *out, const char *const *inputs, size_t count)
{
    NIB_TRY(check_no_input(out, inputs, count));
    if (nib_file_is_folder(out))
        return NIB_FAIL(NIB_ERROR_IO, "--out %s: found a folder, expected a file; give the name of one in it", out);
    char *folder = nib_path_folder(out);
    if (folder == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "--out %s: no memory to look at it", out);
    const char *there = access(out, F_OK) == 0 ? out : folder; /* a device is written in place */
    nib_status status = NIB_OK;
    if (access(there, W_OK) != 0)
        status = NIB_FAIL(NIB_ERROR_IO, "--out %s: %s: %s; give a path in a folder that is there and writable", out,
                          there, strerror(errno));
    nib_free(folder);
    return status;
}
