/* One rendering: its state, and the evaluator's parts that builtins call back into. */
#ifndef NIB_JINJA_RENDER_H
#define NIB_JINJA_RENDER_H

#include "tokenizer/jinja_ast.h"

typedef struct nib_jinja_scope nib_jinja_scope;

typedef struct {
    nib_jinja_name name;
    nib_jinja_value value;
} nib_jinja_variable;

/* Variables of the template, of a loop's turn, of a macro's call. Looked up from the inside out. */
struct nib_jinja_scope {
    nib_jinja_scope *parent;
    nib_jinja_variable *variables;
    size_t count, capacity;
    bool kept; /* a macro sees it, so that a loop's next turn may not reuse it */
};

struct nib_jinja_render {
    const char *name; /* of the template, for messages */
    nib_pool *pool;
    uint32_t line; /* of what is being evaluated */
    size_t steps;
    int depth;
    int64_t now; /* seconds since the epoch */
    nib_jinja_scope *scope;
    nib_jinja_text *output;
    nib_status no_memory; /* what the last failed allocation is reported as */
};

struct nib_jinja_macro {
    const nib_jinja_node *node; /* MACRO or CALL_BLOCK */
    nib_jinja_scope *scope;     /* where it was defined */
};

struct nib_jinja_loop {
    const nib_jinja_node *node;
    nib_jinja_scope *scope; /* around the loop, for a recursive call */
    const nib_jinja_value *items;
    size_t count, index;
    int level;               /* 1-based, of recursion */
    nib_jinja_value changed; /* arguments of the last loop.changed(), NONE before the first */
};

/* ---- jinja_evaluate.c ---- */
nib_status nib_jinja_evaluate(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value);
/* The innermost variable of that name, or a global function; UNDEFINED if there is none. */
nib_status nib_jinja_lookup(nib_jinja_render *render, nib_jinja_name name, nib_jinja_value *value);
/* Runs `callee(arguments)`. */
nib_status nib_jinja_invoke(nib_jinja_render *render, nib_jinja_value callee, const nib_jinja_arguments *arguments,
                            nib_jinja_value *result);
nib_status nib_jinja_evaluate_arguments(nib_jinja_render *render, const nib_jinja_call_arguments *source,
                                        nib_jinja_arguments *arguments);
/* Applies the filters of a filter block, or of a set block, to its text. */
nib_status nib_jinja_apply_filters(nib_jinja_render *render, const nib_jinja_node *filter, nib_jinja_value text,
                                   nib_jinja_value *result);

/* ---- jinja_execute.c ---- */
nib_status nib_jinja_execute(nib_jinja_render *render, const nib_jinja_nodes *body);
nib_status nib_jinja_define(nib_jinja_render *render, nib_jinja_name name, nib_jinja_value value);
nib_status nib_jinja_push_scope(nib_jinja_render *render, nib_jinja_scope *parent);
nib_status nib_jinja_call_macro(nib_jinja_render *render, nib_jinja_macro *macro, const nib_jinja_arguments *arguments,
                                nib_jinja_value *result);
/* loop(items) of a recursive loop: its text. */
nib_status nib_jinja_call_loop(nib_jinja_render *render, const nib_jinja_loop *loop, nib_jinja_value iterable,
                               nib_jinja_value *result);

/* ---- jinja_operators.c ---- */
nib_status nib_jinja_binary(nib_jinja_render *render, nib_jinja_operator op, nib_jinja_value a, nib_jinja_value b,
                            nib_jinja_value *result);
nib_status nib_jinja_negate(nib_jinja_render *render, nib_jinja_value value, nib_jinja_value *result);
/* One comparison, `in` and `not in` included. */
nib_status nib_jinja_relation(nib_jinja_render *render, nib_jinja_operator op, nib_jinja_value a, nib_jinja_value b,
                              bool *holds);
nib_status nib_jinja_contains(nib_jinja_render *render, nib_jinja_value container, nib_jinja_value item, bool *found);

/* ---- jinja_access.c ---- */
/* object.name: an attribute or method first, then an item. object[key]: the other way round. UNDEFINED if neither. */
nib_status nib_jinja_attribute(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value name,
                               nib_jinja_value *value);
nib_status nib_jinja_subscript(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value key,
                               nib_jinja_value *value);
/* object[start:stop:step]; NONE for a part that is not given. */
nib_status nib_jinja_slice(nib_jinja_render *render, nib_jinja_value object, const nib_jinja_value parts[3],
                           nib_jinja_value *value);
/* "a.b.0" looked up part by part, as the filters with an attribute parameter do; an integer is an index. fallback, if
 * not NULL, is taken wherever a part is undefined. */
nib_status nib_jinja_path(nib_jinja_render *render, nib_jinja_value object, nib_jinja_value path,
                          const nib_jinja_value *fallback, nib_jinja_value *value);
/* Byte offset of code point `index`, or the length. */
size_t nib_jinja_codepoint_offset(nib_jinja_value string, size_t index);

/* ---- jinja_json.c ---- */
/* json.dumps(value, ensure_ascii, indent, separators, sort_keys). indent NULL: on one line. */
typedef struct {
    bool ascii_only, sort_keys;
    const char *indent;
    size_t indent_length;
    nib_jinja_value item_separator, key_separator; /* UNDEFINED: json.dumps' own */
} nib_jinja_json_format;
nib_status nib_jinja_write_json(nib_jinja_render *render, nib_jinja_value value, const nib_jinja_json_format *format,
                                nib_jinja_value *string);

/* ---- jinja_format.c ---- */
/* format % values, printf-style as Python's. */
nib_status nib_jinja_percent_format(nib_jinja_render *render, nib_jinja_value format, nib_jinja_value values,
                                    nib_jinja_value *string);
/* format.format(...), with the fields {}, {0} and {name}. */
nib_status nib_jinja_brace_format(nib_jinja_render *render, nib_jinja_value format,
                                  const nib_jinja_arguments *arguments, nib_jinja_value *string);

/* ---- jinja_case.c ---- */
typedef enum { NIB_JINJA_LOWER, NIB_JINJA_UPPER, NIB_JINJA_SWAP, NIB_JINJA_CAPITALIZE, NIB_JINJA_TITLE } nib_jinja_case;
nib_status nib_jinja_change_case(nib_jinja_render *render, nib_jinja_value string, nib_jinja_case to,
                                 nib_jinja_value *changed);

/* ---- jinja_sort.c ---- */
/* Sorts values by keys, stable; both arrays are reordered. */
nib_status nib_jinja_sort(nib_jinja_render *render, nib_jinja_value *keys, nib_jinja_value *values, size_t count,
                          bool reverse);

#endif
