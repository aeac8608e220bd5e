/* The syntax tree of a template, and the parser that makes it. Immutable once parsed, so that threads can share it. */
#ifndef NIB_JINJA_AST_H
#define NIB_JINJA_AST_H

#include "tokenizer/jinja_builtin.h"
#include "tokenizer/jinja_value.h"

/* Deepest nesting of statements and expressions that the parser accepts. */
enum { NIB_JINJA_MAX_NESTING = 200 };

typedef struct nib_jinja_node nib_jinja_node;

typedef struct {
    const nib_jinja_node **items;
    size_t count, capacity;
} nib_jinja_nodes;

typedef struct {
    const char *bytes; /* points into the template */
    size_t length;
} nib_jinja_name;

/* f(a, b, *c, x=d, **e) */
typedef struct {
    nib_jinja_nodes positional;
    nib_jinja_nodes named; /* values, in the order of names */
    nib_jinja_name *names;
    const nib_jinja_node *star, *double_star; /* NULL: none */
} nib_jinja_call_arguments;

typedef struct {
    nib_jinja_name *names;
    size_t count;
    nib_jinja_nodes defaults; /* of the last defaults.count parameters */
} nib_jinja_parameters;

typedef enum {
    /* expressions */
    NIB_JINJA_NODE_CONSTANT,
    NIB_JINJA_NODE_NAME,
    NIB_JINJA_NODE_LIST,
    NIB_JINJA_NODE_TUPLE,
    NIB_JINJA_NODE_DICT,
    NIB_JINJA_NODE_UNARY,  /* not - + */
    NIB_JINJA_NODE_BINARY, /* + - * / // % ** */
    NIB_JINJA_NODE_AND,
    NIB_JINJA_NODE_OR,
    NIB_JINJA_NODE_CONCAT,    /* a ~ b ~ c */
    NIB_JINJA_NODE_COMPARE,   /* a < b <= c */
    NIB_JINJA_NODE_CONDITION, /* a if b else c */
    NIB_JINJA_NODE_ATTRIBUTE,
    NIB_JINJA_NODE_SUBSCRIPT,
    NIB_JINJA_NODE_SLICE, /* only as the index of a subscript */
    NIB_JINJA_NODE_CALL,
    NIB_JINJA_NODE_FILTER,
    NIB_JINJA_NODE_TEST,
    /* statements */
    NIB_JINJA_NODE_TEXT,
    NIB_JINJA_NODE_OUTPUT,
    NIB_JINJA_NODE_IF,
    NIB_JINJA_NODE_FOR,
    NIB_JINJA_NODE_BREAK,
    NIB_JINJA_NODE_CONTINUE,
    NIB_JINJA_NODE_SET,
    NIB_JINJA_NODE_SET_BLOCK,
    NIB_JINJA_NODE_WITH,
    NIB_JINJA_NODE_MACRO,
    NIB_JINJA_NODE_CALL_BLOCK,
    NIB_JINJA_NODE_FILTER_BLOCK,
    NIB_JINJA_NODE_GENERATION
} nib_jinja_node_kind;

typedef enum {
    NIB_JINJA_ADD,
    NIB_JINJA_SUBTRACT,
    NIB_JINJA_MULTIPLY,
    NIB_JINJA_DIVIDE,
    NIB_JINJA_FLOOR_DIVIDE,
    NIB_JINJA_MODULO,
    NIB_JINJA_POWER,
    NIB_JINJA_NOT,
    NIB_JINJA_NEGATE,
    NIB_JINJA_PLUS,
    NIB_JINJA_EQUAL,
    NIB_JINJA_NOT_EQUAL,
    NIB_JINJA_LESS,
    NIB_JINJA_LESS_EQUAL,
    NIB_JINJA_GREATER,
    NIB_JINJA_GREATER_EQUAL,
    NIB_JINJA_IN,
    NIB_JINJA_NOT_IN
} nib_jinja_operator;

struct nib_jinja_node {
    nib_jinja_node_kind kind;
    uint32_t line;
    uint32_t depth; /* levels below, itself included: what evaluating it can take of the stack */
    union {
        nib_jinja_value constant;
        nib_jinja_name name;
        nib_jinja_nodes items; /* LIST, TUPLE, CONCAT */
        struct {
            nib_jinja_nodes keys, values;
        } dict;
        struct {
            nib_jinja_operator op;
            const nib_jinja_node *left, *right; /* UNARY: left only */
        } operation;                            /* UNARY, BINARY, AND, OR */
        struct {
            const nib_jinja_node *first;
            nib_jinja_nodes operands;
            nib_jinja_operator *operators; /* operands.count of them */
        } compare;
        struct {
            const nib_jinja_node *test, *then, *otherwise; /* otherwise NULL: undefined */
        } condition;
        struct {
            const nib_jinja_node *object;
            nib_jinja_name name;
        } attribute;
        struct {
            const nib_jinja_node *object, *index;
        } subscript;
        struct {
            const nib_jinja_node *start, *stop, *step; /* each may be NULL */
        } slice;
        struct {
            const nib_jinja_node *callee;
            nib_jinja_call_arguments arguments;
        } call;
        struct {
            const nib_jinja_node *subject;    /* FILTER of a filter block: NULL for the innermost, its text */
            const nib_jinja_builtin *builtin; /* NULL: no such filter or test; an error only if it is reached */
            nib_jinja_name name;
            nib_jinja_call_arguments arguments;
            bool negated; /* is not */
        } apply;          /* FILTER, TEST */

        nib_jinja_name text;
        const nib_jinja_node *output;
        struct {
            const nib_jinja_node *test;
            nib_jinja_nodes body;
            const nib_jinja_node *elif; /* the IF tried next, or NULL */
            nib_jinja_nodes otherwise;
        } branch;
        struct {
            const nib_jinja_node *target, *iterable, *filter; /* filter may be NULL */
            nib_jinja_nodes body, otherwise;
            bool recursive;
        } loop;
        struct {
            const nib_jinja_node *target; /* NAME, TUPLE of them, or ATTRIBUTE of a namespace */
            const nib_jinja_node *value;  /* SET_BLOCK: the filter over its text, or NULL */
            nib_jinja_nodes body;
        } set;
        struct {
            nib_jinja_nodes targets, values, body;
        } with;
        struct {
            nib_jinja_name name; /* "caller" in a CALL_BLOCK */
            nib_jinja_parameters parameters;
            nib_jinja_nodes body;
            const nib_jinja_node *call; /* CALL_BLOCK: the call that gets the caller */
            bool uses_varargs, uses_kwargs;
        } macro;
        struct {
            const nib_jinja_node *filter;
            nib_jinja_nodes body;
        } filter_block;
        nib_jinja_nodes body; /* GENERATION */
    };
};

/* Parses source into the body of a template. All memory is from the pool. NIB_ERROR_DATA, "name:line: ...". */
nib_status nib_jinja_parse(const char *name, const char *source, size_t length, nib_pool *pool, nib_jinja_nodes *body);

#endif
