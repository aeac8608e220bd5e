/* The values that a template computes with, with Python's semantics: truthiness, equality, order, str() and repr().
 *
 * A value is small and passed by copy. What it points to lives in the pool of one rendering and is freed with it;
 * strings may also point into the template or into the caller's JSON. Lists and dicts are immutable once a template
 * sees them, as in transformers' sandbox; only namespaces change.
 */
#ifndef NIB_JINJA_VALUE_H
#define NIB_JINJA_VALUE_H

#include "base/json.h"
#include "base/memory.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    NIB_JINJA_UNDEFINED,
    NIB_JINJA_NONE,
    NIB_JINJA_BOOL,
    NIB_JINJA_INTEGER, /* 64 bits; overflow is an error where Python would grow */
    NIB_JINJA_FLOAT,
    NIB_JINJA_STRING, /* UTF-8; lengths, indices and slices count code points */
    NIB_JINJA_LIST,
    NIB_JINJA_TUPLE,
    NIB_JINJA_RANGE,
    NIB_JINJA_VIEW,      /* dict.keys(), values(), items(): has a length but no index */
    NIB_JINJA_GENERATOR, /* result of map, select, ...: always true, no length, read once */
    NIB_JINJA_DICT,
    NIB_JINJA_NAMESPACE,
    NIB_JINJA_FUNCTION, /* a builtin, bound to a subject if it is a method */
    NIB_JINJA_MACRO,
    NIB_JINJA_LOOP,
    NIB_JINJA_CYCLER,
    NIB_JINJA_JOINER
} nib_jinja_kind;

typedef struct nib_jinja_render nib_jinja_render;
typedef struct nib_jinja_value nib_jinja_value;
typedef struct nib_jinja_sequence nib_jinja_sequence;
typedef struct nib_jinja_dict nib_jinja_dict;
typedef struct nib_jinja_function nib_jinja_function;
typedef struct nib_jinja_macro nib_jinja_macro;
typedef struct nib_jinja_loop nib_jinja_loop;
typedef struct nib_jinja_missing nib_jinja_missing;
typedef struct nib_jinja_joiner nib_jinja_joiner;

struct nib_jinja_value {
    nib_jinja_kind kind;
    union {
        bool boolean;
        int64_t integer;
        double number;
        struct {
            const char *bytes; /* not NUL-terminated */
            size_t length;     /* bytes */
        } string;
        nib_jinja_sequence *sequence; /* LIST, TUPLE, RANGE, VIEW, GENERATOR, CYCLER */
        nib_jinja_dict *dict;         /* DICT, NAMESPACE */
        nib_jinja_function *function;
        nib_jinja_macro *macro;
        nib_jinja_loop *loop;
        nib_jinja_joiner *joiner;
        const nib_jinja_missing *missing; /* UNDEFINED: what was looked up; NULL: nothing to tell */
    };
};

struct nib_jinja_sequence {
    nib_jinja_value *items;
    size_t count, capacity;
    size_t next;       /* GENERATOR, CYCLER: the next item to give out */
    int64_t bounds[3]; /* RANGE: start, stop, step, for its repr */
    bool is_group;     /* TUPLE of groupby: .grouper and .list name its items */
};

/* Insertion-ordered; found by comparing keys in order, since the dicts of a conversation are small. Every comparison
 * is charged to the step limit. */
struct nib_jinja_dict {
    nib_jinja_value *keys, *values;
    size_t count, capacity;
};

/* joiner(separator): called, it gives "" the first time and the separator from then on. */
struct nib_jinja_joiner {
    nib_jinja_value separator;
    bool used;
};

struct nib_jinja_missing {
    nib_jinja_value name;
    const char *owner; /* "dict object" if an attribute or element was looked up, NULL for a variable */
};

/* Limits of one rendering. */
enum {
    NIB_JINJA_MAX_STEPS = 10 * 1000 * 1000,
    NIB_JINJA_MAX_DEPTH = 1000, /* nested evaluations; the parser allows NIB_JINJA_MAX_NESTING of source */
    NIB_JINJA_MAX_OUTPUT = 64 << 20,
    NIB_JINJA_MAX_MEMORY = 256 << 20
};

static inline nib_jinja_value nib_jinja_none(void) { return (nib_jinja_value){.kind = NIB_JINJA_NONE}; }
static inline nib_jinja_value nib_jinja_bool(bool x) { return (nib_jinja_value){.kind = NIB_JINJA_BOOL, .boolean = x}; }
static inline nib_jinja_value nib_jinja_integer(int64_t x)
{
    return (nib_jinja_value){.kind = NIB_JINJA_INTEGER, .integer = x};
}
static inline nib_jinja_value nib_jinja_float(double x)
{
    return (nib_jinja_value){.kind = NIB_JINJA_FLOAT, .number = x};
}
static inline nib_jinja_value nib_jinja_string(const char *bytes, size_t length)
{
    return (nib_jinja_value){.kind = NIB_JINJA_STRING, .string = {bytes, length}};
}
nib_jinja_value nib_jinja_literal(const char *text); /* a string value over a C string that outlives the rendering */

/* Sets the message "name:line: ..." of the rendering and returns NIB_ERROR_DATA. */
nib_status nib_jinja_fail(nib_jinja_render *render, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Takes `steps` of the step limit. */
nib_status nib_jinja_charge(nib_jinja_render *render, size_t steps);
/* Enters one level of recursion; pair with nib_jinja_leave where it succeeds. */
nib_status nib_jinja_enter(nib_jinja_render *render);
void nib_jinja_leave(nib_jinja_render *render);
/* Zeroed memory of the rendering. On NULL the message is set: return nib_jinja_no_memory(render). */
void *nib_jinja_alloc(nib_jinja_render *render, size_t count, size_t size);
nib_status nib_jinja_no_memory(const nib_jinja_render *render);

/* Text under construction. A failure (limit, memory) is kept and returned by nib_jinja_text_finish. */
typedef struct {
    nib_jinja_render *render;
    char *data;
    size_t length, capacity;
    nib_status status;
} nib_jinja_text;
void nib_jinja_text_append(nib_jinja_text *text, const char *bytes, size_t length);
void nib_jinja_text_literal(nib_jinja_text *text, const char *literal);
void nib_jinja_text_codepoint(nib_jinja_text *text, uint32_t codepoint);
void nib_jinja_text_str(nib_jinja_text *text, nib_jinja_value value);  /* Python's str(value) */
void nib_jinja_text_repr(nib_jinja_text *text, nib_jinja_value value); /* Python's repr(value) */
nib_status nib_jinja_text_finish(nib_jinja_text *text, nib_jinja_value *string);
/* str(value) as a string value; strings are returned as they are. */
nib_status nib_jinja_to_string(nib_jinja_render *render, nib_jinja_value value, nib_jinja_value *string);
/* repr(x) of a float, NUL-terminated; at most 32 bytes. */
void nib_jinja_format_float(double x, char text[32]);

/* Sequences and dicts. `kind` is LIST, TUPLE, VIEW or GENERATOR. */
nib_status nib_jinja_new_sequence(nib_jinja_render *render, nib_jinja_kind kind, size_t capacity,
                                  nib_jinja_value *sequence);
nib_status nib_jinja_push(nib_jinja_render *render, nib_jinja_value sequence, nib_jinja_value item);
nib_status nib_jinja_new_dict(nib_jinja_render *render, nib_jinja_kind kind, nib_jinja_value *dict);
nib_status nib_jinja_dict_set(nib_jinja_render *render, nib_jinja_value dict, nib_jinja_value key,
                              nib_jinja_value value);
/* *found points into the dict, or is NULL. An unhashable key is an error. */
nib_status nib_jinja_dict_get(nib_jinja_render *render, nib_jinja_value dict, nib_jinja_value key,
                              const nib_jinja_value **found);
/* What iterating over value gives (code points of a string, keys of a dict). Consumes a generator. */
nib_status nib_jinja_items(nib_jinja_render *render, nib_jinja_value value, const nib_jinja_value **items,
                           size_t *count);
/* len(value) in *length; false if it has none. */
bool nib_jinja_length(nib_jinja_value value, size_t *length);

bool nib_jinja_is_sequence_kind(nib_jinja_value value); /* list, tuple, range, view or generator */
bool nib_jinja_is_string(nib_jinja_value value, const char *text);
bool nib_jinja_truthy(nib_jinja_value value);
bool nib_jinja_is_number(nib_jinja_value value); /* bool, integer or float */
double nib_jinja_as_float(nib_jinja_value number);
nib_status nib_jinja_equal(nib_jinja_render *render, nib_jinja_value a, nib_jinja_value b, bool *equal);
/* *order is negative, 0 or positive; an error if the kinds have no order (operator is for that message). */
nib_status nib_jinja_compare(nib_jinja_render *render, const char *operator, nib_jinja_value a, nib_jinja_value b,
                             int *order);

const char *nib_jinja_type_name(nib_jinja_value value); /* Python's: "str", "NoneType", ... */
/* The error of using an undefined value: "'x' is undefined". */
nib_status nib_jinja_undefined_error(nib_jinja_render *render, nib_jinja_value value);
nib_status nib_jinja_new_undefined(nib_jinja_render *render, nib_jinja_value name, const char *owner,
                                   nib_jinja_value *value);
nib_status nib_jinja_from_json(nib_jinja_render *render, const nib_json *json, nib_jinja_value *value);

#endif
