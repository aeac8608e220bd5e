/* Filters, tests, methods and global functions: how they are described, found and called. */
#ifndef NIB_JINJA_BUILTIN_H
#define NIB_JINJA_BUILTIN_H

#include "tokenizer/jinja_value.h"

typedef struct {
    nib_jinja_value *positional;
    size_t count;
    nib_jinja_value *names, *named; /* keyword arguments */
    size_t named_count;
} nib_jinja_arguments;

enum { NIB_JINJA_MAX_PARAMETERS = 8 };

typedef struct {
    nib_jinja_value subject;                          /* the value piped in, tested, or that owns the method */
    nib_jinja_value values[NIB_JINJA_MAX_PARAMETERS]; /* by parameter; UNDEFINED if not given */
    bool given[NIB_JINJA_MAX_PARAMETERS];
    const nib_jinja_arguments *arguments; /* as they were written, for functions that take any */
    const char *function;                 /* its name, for messages */
} nib_jinja_call;

typedef nib_status (*nib_jinja_builtin_run)(nib_jinja_render *render, const nib_jinja_call *call,
                                            nib_jinja_value *result);

typedef struct {
    const char *name;
    const char *parameters; /* names separated by blanks, required ones first; "*": any arguments */
    int required;
    nib_jinja_builtin_run run;
} nib_jinja_builtin;

/* A builtin as a value. subject is UNDEFINED for a global function. */
struct nib_jinja_function {
    const nib_jinja_builtin *builtin;
    nib_jinja_value subject;
};

/* Binds arguments to parameters and runs. */
nib_status nib_jinja_run_builtin(nib_jinja_render *render, const nib_jinja_builtin *builtin, nib_jinja_value subject,
                                 const nib_jinja_arguments *arguments, nib_jinja_value *result);

/* NULL if there is none of that name. */
const nib_jinja_builtin *nib_jinja_find_filter(const char *name, size_t length);
const nib_jinja_builtin *nib_jinja_find_test(const char *name, size_t length);
const nib_jinja_builtin *nib_jinja_find_global(const char *name, size_t length);
const nib_jinja_builtin *nib_jinja_find_method(nib_jinja_kind kind, const char *name, size_t length);
/* Whether Python has a method of that name that the sandbox refuses since it changes the object or is not safe. */
bool nib_jinja_is_refused_method(nib_jinja_kind kind, const char *name, size_t length);

/* The tables that these look in, each in its own file; ended by a row without a name. */
extern const nib_jinja_builtin nib_jinja_text_filters[];
extern const nib_jinja_builtin nib_jinja_sequence_filters[];
extern const nib_jinja_builtin nib_jinja_selection_filters[];
extern const nib_jinja_builtin nib_jinja_number_filters[];
extern const nib_jinja_builtin nib_jinja_tests[];
extern const nib_jinja_builtin nib_jinja_globals[];
extern const nib_jinja_builtin nib_jinja_string_methods[];
extern const nib_jinja_builtin nib_jinja_string_predicates[];
extern const nib_jinja_builtin nib_jinja_dict_methods[];
extern const nib_jinja_builtin nib_jinja_sequence_methods[];
extern const nib_jinja_builtin nib_jinja_loop_methods[];

#endif
