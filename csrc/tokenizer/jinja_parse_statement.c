/* Statements, and the parser's common parts. */
#include "tokenizer/jinja_parser.h"

#include <string.h>

static nib_status parse_body(nib_jinja_parser *p, const char *const *ends, nib_jinja_nodes *body);

nib_status nib_jinja_parse_fail(const nib_jinja_parser *p, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    nib_status status = nib_fail_v(NIB_ERROR_DATA, format, arguments);
    va_end(arguments);
    return nib_error_context(status, "%s:%u", p->name, nib_jinja_current(p)->line);
}

nib_status nib_jinja_parse_unexpected(const nib_jinja_parser *p, const char *expected)
{
    const nib_jinja_token *token = nib_jinja_current(p);
    switch (token->kind) {
    case NIB_JINJA_TOKEN_TEXT:
        return nib_jinja_parse_fail(p, "unexpected text, expected %s", expected);
    case NIB_JINJA_TOKEN_OUTPUT_END:
        return nib_jinja_parse_fail(p, "unexpected '}}', expected %s", expected);
    case NIB_JINJA_TOKEN_BLOCK_END:
        return nib_jinja_parse_fail(p, "unexpected '%%}', expected %s", expected);
    case NIB_JINJA_TOKEN_INTEGER:
    case NIB_JINJA_TOKEN_FLOAT:
        return nib_jinja_parse_fail(p, "unexpected number, expected %s", expected);
    case NIB_JINJA_TOKEN_END:
        return nib_jinja_parse_fail(p, "unexpected end of template, expected %s", expected);
    default:
        return nib_jinja_parse_fail(p, "unexpected '%.*s', expected %s", (int)(token->length < 60 ? token->length : 60),
                                    token->text != NULL ? token->text : "", expected);
    }
}

nib_status nib_jinja_parse_enter(nib_jinja_parser *p)
{
    if (++p->nesting > NIB_JINJA_MAX_NESTING)
        return nib_jinja_parse_fail(p, "nested deeper than %d", NIB_JINJA_MAX_NESTING);
    return NIB_OK;
}

void nib_jinja_parse_leave(nib_jinja_parser *p) { p->nesting--; }

static bool is_token(const nib_jinja_token *token, nib_jinja_token_kind kind, const char *text)
{
    return token->kind == kind && token->length == strlen(text) && memcmp(token->text, text, token->length) == 0;
}

bool nib_jinja_at_operator(const nib_jinja_parser *p, const char *text)
{
    return is_token(nib_jinja_current(p), NIB_JINJA_TOKEN_OPERATOR, text);
}

bool nib_jinja_at_name(const nib_jinja_parser *p, const char *text)
{
    return is_token(nib_jinja_current(p), NIB_JINJA_TOKEN_NAME, text);
}

bool nib_jinja_skip_operator(nib_jinja_parser *p, const char *text)
{
    bool there = nib_jinja_at_operator(p, text);
    p->at += there;
    return there;
}

bool nib_jinja_skip_name(nib_jinja_parser *p, const char *text)
{
    bool there = nib_jinja_at_name(p, text);
    p->at += there;
    return there;
}

nib_status nib_jinja_expect_operator(nib_jinja_parser *p, const char *text)
{
    char expected[8] = {'\'', text[0], '\'', 0};
    return nib_jinja_skip_operator(p, text) ? NIB_OK : nib_jinja_parse_unexpected(p, expected);
}

nib_status nib_jinja_expect_name(nib_jinja_parser *p, nib_jinja_name *name)
{
    const nib_jinja_token *token = nib_jinja_current(p);
    if (token->kind != NIB_JINJA_TOKEN_NAME) return nib_jinja_parse_unexpected(p, "a name");
    *name = (nib_jinja_name){token->text, token->length};
    p->at++;
    return NIB_OK;
}

nib_status nib_jinja_new_node(nib_jinja_parser *p, nib_jinja_node_kind kind, uint32_t line, nib_jinja_node **node)
{
    *node = nib_pool_alloc(p->pool, sizeof **node);
    if (*node == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", p->name);
    (*node)->kind = kind;
    (*node)->line = line;
    (*node)->depth = 1;
    return NIB_OK;
}

nib_status nib_jinja_add_node(nib_jinja_parser *p, nib_jinja_nodes *nodes, const nib_jinja_node *node)
{
    if (nodes->count == nodes->capacity) {
        size_t capacity = nodes->capacity ? 2 * nodes->capacity : 4;
        const nib_jinja_node **items = nib_pool_alloc(p->pool, capacity * sizeof *items);
        if (items == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", p->name);
        if (nodes->count > 0) memcpy(items, nodes->items, nodes->count * sizeof *items);
        nodes->items = items;
        nodes->capacity = capacity;
    }
    nodes->items[nodes->count++] = node;
    return NIB_OK;
}

nib_status nib_jinja_deepen(const nib_jinja_parser *p, nib_jinja_node *node, const nib_jinja_node *child)
{
    if (node->depth <= child->depth) node->depth = child->depth + 1;
    if (node->depth > NIB_JINJA_MAX_NESTING)
        return nib_jinja_parse_fail(p, "an expression deeper than %d operations", NIB_JINJA_MAX_NESTING);
    return NIB_OK;
}

static nib_status expect_block_end(nib_jinja_parser *p)
{
    if (nib_jinja_current(p)->kind != NIB_JINJA_TOKEN_BLOCK_END) return nib_jinja_parse_unexpected(p, "'%}'");
    p->at++;
    return NIB_OK;
}

static nib_status expect_word(nib_jinja_parser *p, const char *word)
{
    return nib_jinja_skip_name(p, word) ? NIB_OK : nib_jinja_parse_unexpected(p, word);
}

/* A body, its end tag and the end of that tag. */
static nib_status parse_block(nib_jinja_parser *p, const char *end, nib_jinja_nodes *body)
{
    const char *const ends[] = {end, NULL};
    NIB_TRY(expect_block_end(p));
    NIB_TRY(parse_body(p, ends, body));
    NIB_TRY(expect_word(p, end));
    return expect_block_end(p);
}

/* A name, or names with commas between them, with or without brackets. */
static nib_status parse_target(nib_jinja_parser *p, const nib_jinja_node **target)
{
    uint32_t line = nib_jinja_current(p)->line;
    nib_jinja_node *tuple = NULL;
    NIB_TRY(nib_jinja_parse_enter(p));
    for (;;) {
        nib_jinja_node *name = NULL;
        if (nib_jinja_skip_operator(p, "(")) {
            const nib_jinja_node *inner;
            NIB_TRY(parse_target(p, &inner));
            NIB_TRY(nib_jinja_expect_operator(p, ")"));
            *target = inner;
        } else {
            NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_NAME, nib_jinja_current(p)->line, &name));
            NIB_TRY(nib_jinja_expect_name(p, &name->name));
            *target = name;
        }
        bool comma = nib_jinja_skip_operator(p, ",");
        if (comma && tuple == NULL) NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_TUPLE, line, &tuple));
        if (tuple != NULL) NIB_TRY(nib_jinja_add_node(p, &tuple->items, *target));
        bool more = nib_jinja_current(p)->kind == NIB_JINJA_TOKEN_NAME && !nib_jinja_at_name(p, "in");
        if (!comma || (!more && !nib_jinja_at_operator(p, "("))) break;
    }
    nib_jinja_parse_leave(p);
    if (tuple != NULL) *target = tuple;
    return NIB_OK;
}

static nib_status parse_if(nib_jinja_parser *p, uint32_t line, const nib_jinja_node **node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    nib_jinja_node *branch, *first = NULL, *previous = NULL;
    for (;;) {
        NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_IF, line, &branch));
        if (first == NULL) first = branch;
        if (previous != NULL) previous->branch.elif = branch;
        NIB_TRY(nib_jinja_parse_tuple(p, false, NULL, &branch->branch.test));
        NIB_TRY(expect_block_end(p));
        NIB_TRY(parse_body(p, ends, &branch->branch.body));
        line = nib_jinja_current(p)->line;
        if (!nib_jinja_skip_name(p, "elif")) break;
        previous = branch;
    }
    *node = first;
    if (nib_jinja_skip_name(p, "else")) return parse_block(p, "endif", &branch->branch.otherwise);
    NIB_TRY(expect_word(p, "endif"));
    return expect_block_end(p);
}

static nib_status parse_for(nib_jinja_parser *p, nib_jinja_node *node)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    NIB_TRY(parse_target(p, &node->loop.target));
    NIB_TRY(expect_word(p, "in"));
    NIB_TRY(nib_jinja_parse_tuple(p, false, "recursive", &node->loop.iterable));
    if (nib_jinja_skip_name(p, "if")) NIB_TRY(nib_jinja_parse_expression(p, true, &node->loop.filter));
    node->loop.recursive = nib_jinja_skip_name(p, "recursive");
    NIB_TRY(expect_block_end(p));
    p->loops++;
    NIB_TRY(parse_body(p, ends, &node->loop.body));
    p->loops--;
    if (nib_jinja_skip_name(p, "else")) return parse_block(p, "endfor", &node->loop.otherwise);
    NIB_TRY(expect_word(p, "endfor"));
    return expect_block_end(p);
}

static nib_status parse_set(nib_jinja_parser *p, uint32_t line, const nib_jinja_node **node)
{
    nib_jinja_node *set, *attribute;
    const nib_jinja_node *target;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_SET, line, &set));
    NIB_TRY(parse_target(p, &target));
    if (target->kind == NIB_JINJA_NODE_NAME && nib_jinja_skip_operator(p, ".")) {
        NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_ATTRIBUTE, line, &attribute));
        attribute->attribute.object = target;
        NIB_TRY(nib_jinja_expect_name(p, &attribute->attribute.name));
        target = attribute;
    }
    set->set.target = target;
    *node = set;
    if (nib_jinja_skip_operator(p, "=")) {
        NIB_TRY(nib_jinja_parse_tuple(p, true, NULL, &set->set.value));
        return expect_block_end(p);
    }
    set->kind = NIB_JINJA_NODE_SET_BLOCK;
    NIB_TRY(nib_jinja_parse_filters(p, NULL, true, &set->set.value));
    return parse_block(p, "endset", &set->set.body);
}

static nib_status parse_with(nib_jinja_parser *p, nib_jinja_node *node)
{
    while (nib_jinja_current(p)->kind != NIB_JINJA_TOKEN_BLOCK_END) {
        if (node->with.targets.count > 0) NIB_TRY(nib_jinja_expect_operator(p, ","));
        const nib_jinja_node *value;
        nib_jinja_node *target;
        NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_NAME, node->line, &target));
        NIB_TRY(nib_jinja_expect_name(p, &target->name));
        NIB_TRY(nib_jinja_expect_operator(p, "="));
        NIB_TRY(nib_jinja_parse_expression(p, true, &value));
        NIB_TRY(nib_jinja_add_node(p, &node->with.targets, target));
        NIB_TRY(nib_jinja_add_node(p, &node->with.values, value));
    }
    return parse_block(p, "endwith", &node->with.body);
}

/* (a, b=1) */
static nib_status parse_parameters(nib_jinja_parser *p, nib_jinja_parameters *parameters)
{
    NIB_TRY(nib_jinja_expect_operator(p, "("));
    size_t capacity = 0;
    while (!nib_jinja_at_operator(p, ")")) {
        if (parameters->count > 0) NIB_TRY(nib_jinja_expect_operator(p, ","));
        if (parameters->count == capacity) {
            capacity = capacity ? 2 * capacity : 4;
            nib_jinja_name *names = nib_pool_alloc(p->pool, capacity * sizeof *names);
            if (names == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", p->name);
            if (parameters->count > 0) memcpy(names, parameters->names, parameters->count * sizeof *names);
            parameters->names = names;
        }
        NIB_TRY(nib_jinja_expect_name(p, &parameters->names[parameters->count++]));
        if (nib_jinja_skip_operator(p, "=")) {
            const nib_jinja_node *value;
            NIB_TRY(nib_jinja_parse_expression(p, true, &value));
            NIB_TRY(nib_jinja_add_node(p, &parameters->defaults, value));
        } else if (parameters->defaults.count > 0) {
            return nib_jinja_parse_fail(p, "non-default argument follows default argument");
        }
    }
    return nib_jinja_expect_operator(p, ")");
}

/* The body of a macro or call block: loops around it are not its own. */
static nib_status parse_macro_body(nib_jinja_parser *p, const char *end, nib_jinja_node *node)
{
    int loops = p->loops;
    nib_jinja_node *outer = p->macro;
    p->loops = 0;
    p->macro = node;
    NIB_TRY(parse_block(p, end, &node->macro.body));
    p->loops = loops;
    p->macro = outer;
    return NIB_OK;
}

static nib_status parse_macro(nib_jinja_parser *p, nib_jinja_node *node)
{
    NIB_TRY(nib_jinja_expect_name(p, &node->macro.name));
    NIB_TRY(parse_parameters(p, &node->macro.parameters));
    return parse_macro_body(p, "endmacro", node);
}

static nib_status parse_call_block(nib_jinja_parser *p, nib_jinja_node *node)
{
    node->macro.name = (nib_jinja_name){"caller", 6};
    if (nib_jinja_at_operator(p, "(")) NIB_TRY(parse_parameters(p, &node->macro.parameters));
    NIB_TRY(nib_jinja_parse_unary(p, &node->macro.call));
    if (node->macro.call->kind != NIB_JINJA_NODE_CALL) return nib_jinja_parse_fail(p, "expected call");
    return parse_macro_body(p, "endcall", node);
}

static nib_status parse_generation(nib_jinja_parser *p, nib_jinja_node *node)
{
    int loops = p->loops;
    p->loops = 0;
    NIB_TRY(parse_block(p, "endgeneration", &node->body));
    p->loops = loops;
    return NIB_OK;
}

static nib_status parse_jump(nib_jinja_parser *p, nib_jinja_node *node)
{
    (void)node;
    if (p->loops == 0) return nib_jinja_parse_fail(p, "break or continue outside of a loop");
    return expect_block_end(p);
}

static nib_status parse_filter_block(nib_jinja_parser *p, nib_jinja_node *node)
{
    NIB_TRY(nib_jinja_parse_filters(p, NULL, false, &node->filter_block.filter));
    return parse_block(p, "endfilter", &node->filter_block.body);
}

static nib_status parse_statement(nib_jinja_parser *p, const nib_jinja_node **node)
{
    static const struct {
        const char *word;
        nib_jinja_node_kind kind;
        nib_status (*parse)(nib_jinja_parser *, nib_jinja_node *);
    } statements[] = {
        {"for", NIB_JINJA_NODE_FOR, parse_for},
        {"with", NIB_JINJA_NODE_WITH, parse_with},
        {"macro", NIB_JINJA_NODE_MACRO, parse_macro},
        {"call", NIB_JINJA_NODE_CALL_BLOCK, parse_call_block},
        {"filter", NIB_JINJA_NODE_FILTER_BLOCK, parse_filter_block},
        {"generation", NIB_JINJA_NODE_GENERATION, parse_generation},
        {"break", NIB_JINJA_NODE_BREAK, parse_jump},
        {"continue", NIB_JINJA_NODE_CONTINUE, parse_jump},
    };
    uint32_t line = nib_jinja_current(p)->line;
    if (nib_jinja_skip_name(p, "if")) return parse_if(p, line, node);
    if (nib_jinja_skip_name(p, "set")) return parse_set(p, line, node);
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (!nib_jinja_skip_name(p, statements[i].word)) continue;
        nib_jinja_node *made;
        NIB_TRY(nib_jinja_new_node(p, statements[i].kind, line, &made));
        *node = made;
        return statements[i].parse(p, made);
    }
    const nib_jinja_token *token = nib_jinja_current(p);
    if (token->kind != NIB_JINJA_TOKEN_NAME) return nib_jinja_parse_unexpected(p, "a statement");
    return nib_jinja_parse_fail(
        p, "unknown tag '%.*s'; expected if, for, set, with, macro, call, filter, break, continue or generation",
        (int)(token->length < 60 ? token->length : 60), token->text);
}

static nib_status parse_output(nib_jinja_parser *p, const nib_jinja_node **node)
{
    nib_jinja_node *output;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_OUTPUT, nib_jinja_current(p)->line, &output));
    NIB_TRY(nib_jinja_parse_tuple(p, true, NULL, &output->output));
    if (nib_jinja_current(p)->kind != NIB_JINJA_TOKEN_OUTPUT_END) return nib_jinja_parse_unexpected(p, "'}}'");
    p->at++;
    *node = output;
    return NIB_OK;
}

/* Whether the tag at the current position, behind its "{%", is one of the words that end the body. */
static bool at_end_word(const nib_jinja_parser *p, const char *const *ends)
{
    for (; ends != NULL && *ends != NULL; ends++)
        if (nib_jinja_at_name(p, *ends)) return true;
    return false;
}

/* Statements up to one of the end words, which stays unread; ends NULL: up to the end of the template. */
static nib_status parse_body(nib_jinja_parser *p, const char *const *ends, nib_jinja_nodes *body)
{
    NIB_TRY(nib_jinja_parse_enter(p));
    for (;;) {
        const nib_jinja_token *token = nib_jinja_current(p);
        const nib_jinja_node *statement = NULL;
        if (token->kind == NIB_JINJA_TOKEN_END) {
            if (ends == NULL) break;
            return nib_jinja_parse_unexpected(p, ends[1] == NULL ? ends[0] : ends[2] == NULL ? ends[1] : ends[2]);
        }
        p->at++;
        if (token->kind == NIB_JINJA_TOKEN_TEXT) {
            nib_jinja_node *text;
            NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_TEXT, token->line, &text));
            text->text = (nib_jinja_name){token->text, token->length};
            statement = text;
        } else if (token->kind == NIB_JINJA_TOKEN_OUTPUT_BEGIN) {
            NIB_TRY(parse_output(p, &statement));
        } else {
            if (at_end_word(p, ends)) break;
            NIB_TRY(parse_statement(p, &statement));
        }
        NIB_TRY(nib_jinja_add_node(p, body, statement));
    }
    nib_jinja_parse_leave(p);
    return NIB_OK;
}

nib_status nib_jinja_parse(const char *name, const char *source, size_t length, nib_pool *pool, nib_jinja_nodes *body)
{
    nib_jinja_tokens tokens;
    NIB_TRY(nib_jinja_tokenize(name, source, length, pool, &tokens));
    nib_jinja_parser parser = {.name = name, .pool = pool, .tokens = tokens.items};
    return parse_body(&parser, NULL, body);
}
