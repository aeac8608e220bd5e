/* Options of a command line, by a table with one row an option. */
#ifndef NIB_RUNTIME_OPTIONS_H
#define NIB_RUNTIME_OPTIONS_H

#include "model/model.h"
#include "open.h"

typedef struct {
    const char **items; /* borrowed from argv; the array is freed with nib_free */
    size_t count, capacity;
} nib_option_list;

typedef enum {
    NIB_OPTION_FLAG,     /* bool */
    NIB_OPTION_TEXT,     /* const char * */
    NIB_OPTION_PATH,     /* const char *, not empty */
    NIB_OPTION_INTEGER,  /* int64_t in [low, high] */
    NIB_OPTION_NUMBER,   /* double in [low, high] */
    NIB_OPTION_QUANT,    /* nib_quantization: nf4 or none */
    NIB_OPTION_COMPUTE,  /* nib_dtype: fp32 or bf16 */
    NIB_OPTION_DEVICE,   /* nib_device */
    NIB_OPTION_LIST,     /* nib_option_list: one or more paths up to the next option */
    NIB_OPTION_REPEATED, /* nib_option_list: one value, as often as it is given */
    NIB_OPTION_ARGUMENT  /* const char *: the path that belongs to no option */
} nib_option_kind;

typedef struct {
    const char *name; /* "--model"; of an argument what the usage calls it: "CONFIG" */
    nib_option_kind kind;
    void *value;      /* holds the default, gets what the command line says */
    bool required;    /* TEXT, PATH, LIST and ARGUMENT */
    double low, high; /* INTEGER and NUMBER */
} nib_option;

/* NIB_ERROR_USAGE names the option: unknown, without a value, given twice, of a wrong type, out of range, missing. */
nib_status nib_options_read(int argc, char **argv, const nib_option *options, size_t count);

/* What a command will write, looked at before it works for it. NIB_ERROR_USAGE if --out is one of the inputs (NULL: not
 * given), by whatever name, or is to be a folder and holds something: another model may lie there. NIB_ERROR_IO if it
 * cannot become a folder, or a file. */
nib_status nib_check_output_folder(const char *out, const char *const *inputs, size_t count);
nib_status nib_check_output_file(const char *out, const char *const *inputs, size_t count);

#endif
