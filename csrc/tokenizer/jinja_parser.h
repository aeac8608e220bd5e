/* What the two halves of the parser share: jinja_parse_statement.c and jinja_parse_expression.c. */
#ifndef NIB_JINJA_PARSER_H
#define NIB_JINJA_PARSER_H

#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_lexer.h"

typedef struct {
    const char *name;
    nib_pool *pool;
    const nib_jinja_token *tokens;
    size_t at;
    int nesting;
    int loops;             /* for-loops around the current position, for break and continue */
    nib_jinja_node *macro; /* the macro around it, to note uses of varargs and kwargs */
} nib_jinja_parser;

nib_status nib_jinja_parse_fail(const nib_jinja_parser *parser, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
nib_status nib_jinja_parse_unexpected(const nib_jinja_parser *parser, const char *expected);
nib_status nib_jinja_parse_enter(nib_jinja_parser *parser);
void nib_jinja_parse_leave(nib_jinja_parser *parser);

static inline const nib_jinja_token *nib_jinja_current(const nib_jinja_parser *parser)
{
    return &parser->tokens[parser->at];
}
bool nib_jinja_at_operator(const nib_jinja_parser *parser, const char *text);
bool nib_jinja_at_name(const nib_jinja_parser *parser, const char *text);
bool nib_jinja_skip_operator(nib_jinja_parser *parser, const char *text);
bool nib_jinja_skip_name(nib_jinja_parser *parser, const char *text);
nib_status nib_jinja_expect_operator(nib_jinja_parser *parser, const char *text);
nib_status nib_jinja_expect_name(nib_jinja_parser *parser, nib_jinja_name *name);

nib_status nib_jinja_new_node(nib_jinja_parser *parser, nib_jinja_node_kind kind, uint32_t line, nib_jinja_node **node);
nib_status nib_jinja_add_node(nib_jinja_parser *parser, nib_jinja_nodes *nodes, const nib_jinja_node *node);
/* Notes that child is below node. Fails if that makes a tree deeper than can be evaluated (a chain of a thousand +). */
nib_status nib_jinja_deepen(const nib_jinja_parser *parser, nib_jinja_node *node, const nib_jinja_node *child);

/* A full expression, with or without "a if b else c". */
nib_status nib_jinja_parse_expression(nib_jinja_parser *parser, bool with_condition, const nib_jinja_node **node);
/* One expression, or a tuple without brackets. end_word: a name that ends it ("in", "recursive"), or NULL. */
nib_status nib_jinja_parse_tuple(nib_jinja_parser *parser, bool with_condition, const char *end_word,
                                 const nib_jinja_node **node);
/* name(...)|name|...: applied to subject, which is NULL for a block's text. pipe_first: "|" comes before the first
 * name. */
nib_status nib_jinja_parse_filters(nib_jinja_parser *parser, const nib_jinja_node *subject, bool pipe_first,
                                   const nib_jinja_node **node);
/* An operand with its subscripts, calls, filters and tests. */
nib_status nib_jinja_parse_unary(nib_jinja_parser *parser, const nib_jinja_node **node);

#endif
