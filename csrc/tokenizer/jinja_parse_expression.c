/* Expressions, by recursive descent: the precedence and the oddities are those of Jinja 3.1 (** binds to the left,
 * a filter after a unary minus applies to the negated value). */
#include "tokenizer/jinja_parser.h"

#include <string.h>

static nib_status parse_unary(nib_jinja_parser *p, bool with_filters, const nib_jinja_node **node);
static nib_status parse_or(nib_jinja_parser *p, const nib_jinja_node **node);

static nib_status new_operation(nib_jinja_parser *p, nib_jinja_node_kind kind, nib_jinja_operator op, uint32_t line,
                                const nib_jinja_node *left, const nib_jinja_node *right, const nib_jinja_node **node)
{
    nib_jinja_node *made;
    NIB_TRY(nib_jinja_new_node(p, kind, line, &made));
    made->operation.op = op;
    made->operation.left = left;
    made->operation.right = right;
    NIB_TRY(nib_jinja_deepen(p, made, left));
    if (right != NULL) NIB_TRY(nib_jinja_deepen(p, made, right));
    *node = made;
    return NIB_OK;
}

static nib_status new_constant(nib_jinja_parser *p, nib_jinja_value value, uint32_t line, const nib_jinja_node **node)
{
    nib_jinja_node *made;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_CONSTANT, line, &made));
    made->constant = value;
    *node = made;
    return NIB_OK;
}

typedef struct {
    const char *text;
    nib_jinja_operator op;
} operator_row;

/* left (op right)*, where each operand is parsed by `operand`. */
static nib_status parse_left_chain(nib_jinja_parser *p, const operator_row *operators,
                                   nib_status (*operand)(nib_jinja_parser *, const nib_jinja_node **),
                                   const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    NIB_TRY(operand(p, node));
    for (const operator_row *row = operators; row->text != NULL;) {
        if (!nib_jinja_skip_operator(p, row->text)) {
            row++;
            continue;
        }
        const nib_jinja_node *right;
        NIB_TRY(operand(p, &right));
        NIB_TRY(new_operation(p, NIB_JINJA_NODE_BINARY, row->op, line, *node, right, node));
        line = nib_jinja_current(p)->line;
        row = operators;
    }
    return NIB_OK;
}

static nib_status parse_power_operand(nib_jinja_parser *p, const nib_jinja_node **node)
{
    return parse_unary(p, true, node);
}

static nib_status parse_power(nib_jinja_parser *p, const nib_jinja_node **node)
{
    static const operator_row operators[] = {{"**", NIB_JINJA_POWER}, {NULL, 0}};
    return parse_left_chain(p, operators, parse_power_operand, node);
}

static nib_status parse_product(nib_jinja_parser *p, const nib_jinja_node **node)
{
    static const operator_row operators[] = {{"*", NIB_JINJA_MULTIPLY},
                                             {"/", NIB_JINJA_DIVIDE},
                                             {"//", NIB_JINJA_FLOOR_DIVIDE},
                                             {"%", NIB_JINJA_MODULO},
                                             {NULL, 0}};
    return parse_left_chain(p, operators, parse_power, node);
}

static nib_status parse_concat(nib_jinja_parser *p, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    NIB_TRY(parse_product(p, node));
    if (!nib_jinja_at_operator(p, "~")) return NIB_OK;
    nib_jinja_node *concat;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_CONCAT, line, &concat));
    NIB_TRY(nib_jinja_add_node(p, &concat->items, *node));
    NIB_TRY(nib_jinja_deepen(p, concat, *node));
    while (nib_jinja_skip_operator(p, "~")) {
        const nib_jinja_node *item;
        NIB_TRY(parse_product(p, &item));
        NIB_TRY(nib_jinja_add_node(p, &concat->items, item));
        NIB_TRY(nib_jinja_deepen(p, concat, item));
    }
    *node = concat;
    return NIB_OK;
}

static nib_status parse_sum(nib_jinja_parser *p, const nib_jinja_node **node)
{
    static const operator_row operators[] = {{"+", NIB_JINJA_ADD}, {"-", NIB_JINJA_SUBTRACT}, {NULL, 0}};
    return parse_left_chain(p, operators, parse_concat, node);
}

/* A comparison operator at the current position: takes it. */
static bool skip_comparison(nib_jinja_parser *p, nib_jinja_operator *op)
{
    static const operator_row operators[] = {
        {"==", NIB_JINJA_EQUAL},      {"!=", NIB_JINJA_NOT_EQUAL}, {"<", NIB_JINJA_LESS},
        {"<=", NIB_JINJA_LESS_EQUAL}, {">", NIB_JINJA_GREATER},    {">=", NIB_JINJA_GREATER_EQUAL},
    };
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (!nib_jinja_skip_operator(p, operators[i].text)) continue;
        *op = operators[i].op;
        return true;
    }
    if (nib_jinja_skip_name(p, "in")) {
        *op = NIB_JINJA_IN;
        return true;
    }
    if (!nib_jinja_at_name(p, "not")) return false;
    p->at++;
    if (nib_jinja_skip_name(p, "in")) {
        *op = NIB_JINJA_NOT_IN;
        return true;
    }
    p->at--;
    return false;
}

static nib_status parse_compare(nib_jinja_parser *p, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    NIB_TRY(parse_sum(p, node));
    nib_jinja_operator op, *operators = NULL;
    nib_jinja_node *compare = NULL;
    size_t capacity = 0;
    while (skip_comparison(p, &op)) {
        if (compare == NULL) {
            NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_COMPARE, line, &compare));
            compare->compare.first = *node;
            NIB_TRY(nib_jinja_deepen(p, compare, *node));
        }
        size_t count = compare->compare.operands.count;
        if (count == capacity) {
            capacity = capacity ? 2 * capacity : 2;
            operators = nib_pool_alloc(p->pool, capacity * sizeof *operators);
            if (operators == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", p->name);
            if (count > 0) memcpy(operators, compare->compare.operators, count * sizeof *operators);
            compare->compare.operators = operators;
        }
        operators[count] = op;
        const nib_jinja_node *operand;
        NIB_TRY(parse_sum(p, &operand));
        NIB_TRY(nib_jinja_add_node(p, &compare->compare.operands, operand));
        NIB_TRY(nib_jinja_deepen(p, compare, operand));
    }
    if (compare != NULL) *node = compare;
    return NIB_OK;
}

static nib_status parse_not(nib_jinja_parser *p, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    if (!nib_jinja_skip_name(p, "not")) return parse_compare(p, node);
    NIB_TRY(nib_jinja_parse_enter(p));
    NIB_TRY(parse_not(p, node));
    nib_jinja_parse_leave(p);
    return new_operation(p, NIB_JINJA_NODE_UNARY, NIB_JINJA_NOT, line, *node, NULL, node);
}

static nib_status parse_and(nib_jinja_parser *p, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    NIB_TRY(parse_not(p, node));
    while (nib_jinja_skip_name(p, "and")) {
        const nib_jinja_node *right;
        NIB_TRY(parse_not(p, &right));
        NIB_TRY(new_operation(p, NIB_JINJA_NODE_AND, 0, line, *node, right, node));
    }
    return NIB_OK;
}

static nib_status parse_or(nib_jinja_parser *p, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    NIB_TRY(parse_and(p, node));
    while (nib_jinja_skip_name(p, "or")) {
        const nib_jinja_node *right;
        NIB_TRY(parse_and(p, &right));
        NIB_TRY(new_operation(p, NIB_JINJA_NODE_OR, 0, line, *node, right, node));
    }
    return NIB_OK;
}

static nib_status parse_condition(nib_jinja_parser *p, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    NIB_TRY(parse_or(p, node));
    while (nib_jinja_skip_name(p, "if")) {
        nib_jinja_node *made;
        NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_CONDITION, line, &made));
        made->condition.then = *node;
        NIB_TRY(parse_or(p, &made->condition.test));
        if (nib_jinja_skip_name(p, "else")) {
            NIB_TRY(nib_jinja_parse_expression(p, true, &made->condition.otherwise));
            NIB_TRY(nib_jinja_deepen(p, made, made->condition.otherwise));
        }
        NIB_TRY(nib_jinja_deepen(p, made, made->condition.then));
        NIB_TRY(nib_jinja_deepen(p, made, made->condition.test));
        *node = made;
    }
    return NIB_OK;
}

nib_status nib_jinja_parse_expression(nib_jinja_parser *p, bool with_condition, const nib_jinja_node **node)
{
    NIB_TRY(nib_jinja_parse_enter(p));
    NIB_TRY(with_condition ? parse_condition(p, node) : parse_or(p, node));
    nib_jinja_parse_leave(p);
    return NIB_OK;
}

static bool at_tuple_end(const nib_jinja_parser *p, const char *end_word)
{
    nib_jinja_token_kind kind = nib_jinja_current(p)->kind;
    return kind == NIB_JINJA_TOKEN_OUTPUT_END || kind == NIB_JINJA_TOKEN_BLOCK_END || nib_jinja_at_operator(p, ")") ||
           (end_word != NULL && nib_jinja_at_name(p, end_word));
}

/* in_brackets: "()" is the empty tuple. */
static nib_status parse_tuple(nib_jinja_parser *p, bool with_condition, const char *end_word, bool in_brackets,
                              const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    nib_jinja_node *tuple = NULL;
    const nib_jinja_node *item = NULL;
    size_t count = 0;
    bool comma = false;
    while (!at_tuple_end(p, end_word)) {
        NIB_TRY(nib_jinja_parse_expression(p, with_condition, &item));
        comma = nib_jinja_skip_operator(p, ",");
        if (count++ == 0 && !comma) break;
        if (tuple == NULL) NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_TUPLE, line, &tuple));
        NIB_TRY(nib_jinja_add_node(p, &tuple->items, item));
        NIB_TRY(nib_jinja_deepen(p, tuple, item));
        if (!comma) break;
    }
    if (count == 0) {
        if (!in_brackets) return nib_jinja_parse_unexpected(p, "an expression");
        NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_TUPLE, line, &tuple));
    }
    *node = tuple != NULL ? tuple : item;
    return NIB_OK;
}

nib_status nib_jinja_parse_tuple(nib_jinja_parser *p, bool with_condition, const char *end_word,
                                 const nib_jinja_node **node)
{
    return parse_tuple(p, with_condition, end_word, false, node);
}

static nib_status parse_list(nib_jinja_parser *p, const nib_jinja_node **node)
{
    nib_jinja_node *list;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_LIST, nib_jinja_current(p)->line, &list));
    NIB_TRY(nib_jinja_expect_operator(p, "["));
    while (!nib_jinja_at_operator(p, "]")) {
        if (list->items.count > 0) NIB_TRY(nib_jinja_expect_operator(p, ","));
        if (nib_jinja_at_operator(p, "]")) break;
        const nib_jinja_node *item;
        NIB_TRY(nib_jinja_parse_expression(p, true, &item));
        NIB_TRY(nib_jinja_add_node(p, &list->items, item));
        NIB_TRY(nib_jinja_deepen(p, list, item));
    }
    *node = list;
    return nib_jinja_expect_operator(p, "]");
}

static nib_status parse_dict(nib_jinja_parser *p, const nib_jinja_node **node)
{
    nib_jinja_node *dict;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_DICT, nib_jinja_current(p)->line, &dict));
    NIB_TRY(nib_jinja_expect_operator(p, "{"));
    while (!nib_jinja_at_operator(p, "}")) {
        if (dict->dict.keys.count > 0) NIB_TRY(nib_jinja_expect_operator(p, ","));
        if (nib_jinja_at_operator(p, "}")) break;
        const nib_jinja_node *key, *value;
        NIB_TRY(nib_jinja_parse_expression(p, true, &key));
        NIB_TRY(nib_jinja_expect_operator(p, ":"));
        NIB_TRY(nib_jinja_parse_expression(p, true, &value));
        NIB_TRY(nib_jinja_add_node(p, &dict->dict.keys, key));
        NIB_TRY(nib_jinja_add_node(p, &dict->dict.values, value));
        NIB_TRY(nib_jinja_deepen(p, dict, key));
        NIB_TRY(nib_jinja_deepen(p, dict, value));
    }
    *node = dict;
    return nib_jinja_expect_operator(p, "}");
}

static nib_status parse_name(nib_jinja_parser *p, const nib_jinja_node **node)
{
    static const struct {
        const char *name;
        nib_jinja_value value;
    } constants[] = {
        {"true", {.kind = NIB_JINJA_BOOL, .boolean = true}},
        {"True", {.kind = NIB_JINJA_BOOL, .boolean = true}},
        {"false", {.kind = NIB_JINJA_BOOL, .boolean = false}},
        {"False", {.kind = NIB_JINJA_BOOL, .boolean = false}},
        {"none", {.kind = NIB_JINJA_NONE}},
        {"None", {.kind = NIB_JINJA_NONE}},
    };
    uint32_t line = nib_jinja_current(p)->line;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (nib_jinja_skip_name(p, constants[i].name)) return new_constant(p, constants[i].value, line, node);
    nib_jinja_node *name;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_NAME, line, &name));
    if (p->macro != NULL) {
        p->macro->macro.uses_varargs |= nib_jinja_at_name(p, "varargs");
        p->macro->macro.uses_kwargs |= nib_jinja_at_name(p, "kwargs");
    }
    NIB_TRY(nib_jinja_expect_name(p, &name->name));
    *node = name;
    return NIB_OK;
}

/* Strings that stand beside each other are one. */
static nib_status parse_string(nib_jinja_parser *p, const nib_jinja_node **node)
{
    const nib_jinja_token *first = nib_jinja_current(p);
    size_t length = 0, at = p->at;
    while (p->tokens[at].kind == NIB_JINJA_TOKEN_STRING) length += p->tokens[at++].length;
    if (at == p->at + 1) {
        p->at++;
        return new_constant(p, nib_jinja_string(first->text, first->length), first->line, node);
    }
    char *joined = nib_pool_alloc(p->pool, length + 1);
    if (joined == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", p->name);
    for (length = 0; p->at < at; p->at++) {
        memcpy(joined + length, p->tokens[p->at].text, p->tokens[p->at].length);
        length += p->tokens[p->at].length;
    }
    return new_constant(p, nib_jinja_string(joined, length), first->line, node);
}

static nib_status parse_primary(nib_jinja_parser *p, const nib_jinja_node **node)
{
    const nib_jinja_token *token = nib_jinja_current(p);
    switch (token->kind) {
    case NIB_JINJA_TOKEN_NAME:
        return parse_name(p, node);
    case NIB_JINJA_TOKEN_STRING:
        return parse_string(p, node);
    case NIB_JINJA_TOKEN_INTEGER:
        p->at++;
        return new_constant(p, nib_jinja_integer(token->integer), token->line, node);
    case NIB_JINJA_TOKEN_FLOAT:
        p->at++;
        return new_constant(p, nib_jinja_float(token->number), token->line, node);
    default:
        break;
    }
    if (nib_jinja_skip_operator(p, "(")) {
        NIB_TRY(parse_tuple(p, true, NULL, true, node));
        return nib_jinja_expect_operator(p, ")");
    }
    if (nib_jinja_at_operator(p, "[")) return parse_list(p, node);
    if (nib_jinja_at_operator(p, "{")) return parse_dict(p, node);
    return nib_jinja_parse_unexpected(p, "an expression");
}

/* One of the expressions, or a:b:c, between the commas of a subscript. */
static nib_status parse_index(nib_jinja_parser *p, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    const nib_jinja_node *parts[3] = {NULL, NULL, NULL};
    int part = 0;
    if (!nib_jinja_at_operator(p, ":")) NIB_TRY(nib_jinja_parse_expression(p, true, &parts[0]));
    if (!nib_jinja_at_operator(p, ":")) {
        *node = parts[0];
        return NIB_OK;
    }
    while (part < 2 && nib_jinja_skip_operator(p, ":")) {
        part++;
        if (nib_jinja_at_operator(p, ":") || nib_jinja_at_operator(p, "]") || nib_jinja_at_operator(p, ",")) continue;
        NIB_TRY(nib_jinja_parse_expression(p, true, &parts[part]));
    }
    nib_jinja_node *slice;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_SLICE, line, &slice));
    slice->slice.start = parts[0];
    slice->slice.stop = parts[1];
    slice->slice.step = parts[2];
    for (int i = 0; i < 3; i++)
        if (parts[i] != NULL) NIB_TRY(nib_jinja_deepen(p, slice, parts[i]));
    *node = slice;
    return NIB_OK;
}

static nib_status parse_subscript(nib_jinja_parser *p, const nib_jinja_node *object, const nib_jinja_node **node)
{
    nib_jinja_node *made;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_SUBSCRIPT, nib_jinja_current(p)->line, &made));
    made->subscript.object = object;
    NIB_TRY(nib_jinja_deepen(p, made, object));
    NIB_TRY(nib_jinja_expect_operator(p, "["));
    NIB_TRY(parse_index(p, &made->subscript.index));
    if (nib_jinja_at_operator(p, ",")) {
        nib_jinja_node *tuple;
        NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_TUPLE, made->line, &tuple));
        for (const nib_jinja_node *item = made->subscript.index;;) {
            if (item->kind == NIB_JINJA_NODE_SLICE) return nib_jinja_parse_unexpected(p, "']' after a slice");
            NIB_TRY(nib_jinja_add_node(p, &tuple->items, item));
            NIB_TRY(nib_jinja_deepen(p, tuple, item));
            if (!nib_jinja_skip_operator(p, ",")) break;
            NIB_TRY(parse_index(p, &item));
        }
        made->subscript.index = tuple;
    }
    NIB_TRY(nib_jinja_deepen(p, made, made->subscript.index));
    *node = made;
    return nib_jinja_expect_operator(p, "]");
}

/* .name, or .0 which is [0] */
static nib_status parse_attribute(nib_jinja_parser *p, const nib_jinja_node *object, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    NIB_TRY(nib_jinja_expect_operator(p, "."));
    const nib_jinja_token *token = nib_jinja_current(p);
    bool is_index = token->kind == NIB_JINJA_TOKEN_INTEGER;
    nib_jinja_node *made;
    NIB_TRY(nib_jinja_new_node(p, is_index ? NIB_JINJA_NODE_SUBSCRIPT : NIB_JINJA_NODE_ATTRIBUTE, line, &made));
    NIB_TRY(nib_jinja_deepen(p, made, object));
    *node = made;
    if (is_index) {
        p->at++;
        made->subscript.object = object;
        return new_constant(p, nib_jinja_integer(token->integer), line, &made->subscript.index);
    }
    made->attribute.object = object;
    return nib_jinja_expect_name(p, &made->attribute.name);
}

static nib_status add_named_argument(nib_jinja_parser *p, nib_jinja_call_arguments *arguments)
{
    size_t count = arguments->named.count;
    if ((count & (count - 1)) == 0) { /* grows at powers of two */
        nib_jinja_name *names = nib_pool_alloc(p->pool, (count ? 2 * count : 1) * sizeof *names);
        if (names == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", p->name);
        if (count > 0) memcpy(names, arguments->names, count * sizeof *names);
        arguments->names = names;
    }
    NIB_TRY(nib_jinja_expect_name(p, &arguments->names[count]));
    NIB_TRY(nib_jinja_expect_operator(p, "="));
    const nib_jinja_node *value;
    NIB_TRY(nib_jinja_parse_expression(p, true, &value));
    return nib_jinja_add_node(p, &arguments->named, value);
}

static nib_status parse_argument(nib_jinja_parser *p, nib_jinja_call_arguments *arguments)
{
    if (arguments->double_star == NULL && nib_jinja_skip_operator(p, "**"))
        return nib_jinja_parse_expression(p, true, &arguments->double_star);
    if (arguments->star == NULL && arguments->double_star == NULL && nib_jinja_skip_operator(p, "*"))
        return nib_jinja_parse_expression(p, true, &arguments->star);
    const nib_jinja_token *next = nib_jinja_current(p)->kind == NIB_JINJA_TOKEN_NAME ? nib_jinja_current(p) + 1 : NULL;
    if (next != NULL && next->kind == NIB_JINJA_TOKEN_OPERATOR && strcmp(next->text, "=") == 0) {
        if (arguments->double_star != NULL) return nib_jinja_parse_unexpected(p, "')' after **");
        return add_named_argument(p, arguments);
    }
    if (arguments->named.count > 0 || arguments->star != NULL || arguments->double_star != NULL)
        return nib_jinja_parse_fail(p, "invalid syntax for function call expression");
    const nib_jinja_node *value;
    NIB_TRY(nib_jinja_parse_expression(p, true, &value));
    return nib_jinja_add_node(p, &arguments->positional, value);
}

static nib_status parse_call_arguments(nib_jinja_parser *p, nib_jinja_call_arguments *arguments)
{
    NIB_TRY(nib_jinja_expect_operator(p, "("));
    for (bool first = true; !nib_jinja_at_operator(p, ")"); first = false) {
        if (!first) NIB_TRY(nib_jinja_expect_operator(p, ","));
        if (nib_jinja_at_operator(p, ")")) break;
        NIB_TRY(parse_argument(p, arguments));
    }
    return nib_jinja_expect_operator(p, ")");
}

static nib_status deepen_arguments(nib_jinja_parser *p, nib_jinja_node *node, const nib_jinja_call_arguments *arguments)
{
    for (size_t i = 0; i < arguments->positional.count; i++)
        NIB_TRY(nib_jinja_deepen(p, node, arguments->positional.items[i]));
    for (size_t i = 0; i < arguments->named.count; i++) NIB_TRY(nib_jinja_deepen(p, node, arguments->named.items[i]));
    if (arguments->star != NULL) NIB_TRY(nib_jinja_deepen(p, node, arguments->star));
    if (arguments->double_star != NULL) NIB_TRY(nib_jinja_deepen(p, node, arguments->double_star));
    return NIB_OK;
}

static nib_status parse_call(nib_jinja_parser *p, const nib_jinja_node *callee, const nib_jinja_node **node)
{
    nib_jinja_node *call;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_CALL, nib_jinja_current(p)->line, &call));
    call->call.callee = callee;
    NIB_TRY(parse_call_arguments(p, &call->call.arguments));
    NIB_TRY(nib_jinja_deepen(p, call, callee));
    *node = call;
    return deepen_arguments(p, call, &call->call.arguments);
}

static nib_status parse_postfix(nib_jinja_parser *p, const nib_jinja_node **node)
{
    for (;;) {
        if (nib_jinja_at_operator(p, ".")) {
            NIB_TRY(parse_attribute(p, *node, node));
        } else if (nib_jinja_at_operator(p, "[")) {
            NIB_TRY(parse_subscript(p, *node, node));
        } else if (nib_jinja_at_operator(p, "(")) {
            NIB_TRY(parse_call(p, *node, node));
        } else {
            return NIB_OK;
        }
    }
}

/* A filter's or test's name, which may hold dots. */
static nib_status parse_builtin_name(nib_jinja_parser *p, nib_jinja_name *name)
{
    NIB_TRY(nib_jinja_expect_name(p, name));
    while (nib_jinja_skip_operator(p, ".")) {
        nib_jinja_name part;
        NIB_TRY(nib_jinja_expect_name(p, &part));
        name->length = (size_t)(part.bytes + part.length - name->bytes);
    }
    return NIB_OK;
}

nib_status nib_jinja_parse_filters(nib_jinja_parser *p, const nib_jinja_node *subject, bool pipe_first,
                                   const nib_jinja_node **node)
{
    *node = subject;
    while (!pipe_first || nib_jinja_skip_operator(p, "|")) {
        pipe_first = true;
        nib_jinja_node *filter;
        NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_FILTER, nib_jinja_current(p)->line, &filter));
        NIB_TRY(parse_builtin_name(p, &filter->apply.name));
        filter->apply.subject = *node;
        filter->apply.builtin = nib_jinja_find_filter(filter->apply.name.bytes, filter->apply.name.length);
        if (nib_jinja_at_operator(p, "(")) NIB_TRY(parse_call_arguments(p, &filter->apply.arguments));
        if (*node != NULL) NIB_TRY(nib_jinja_deepen(p, filter, *node));
        NIB_TRY(deepen_arguments(p, filter, &filter->apply.arguments));
        *node = filter;
    }
    return NIB_OK;
}

/* Whether the argument of a test follows without brackets: `is divisibleby 3`. */
static bool at_bare_test_argument(const nib_jinja_parser *p)
{
    switch (nib_jinja_current(p)->kind) {
    case NIB_JINJA_TOKEN_STRING:
    case NIB_JINJA_TOKEN_INTEGER:
    case NIB_JINJA_TOKEN_FLOAT:
        return true;
    case NIB_JINJA_TOKEN_NAME:
        return !nib_jinja_at_name(p, "else") && !nib_jinja_at_name(p, "or") && !nib_jinja_at_name(p, "and");
    default:
        return nib_jinja_at_operator(p, "[") || nib_jinja_at_operator(p, "{");
    }
}

static nib_status parse_test(nib_jinja_parser *p, const nib_jinja_node **node)
{
    nib_jinja_node *test;
    NIB_TRY(nib_jinja_new_node(p, NIB_JINJA_NODE_TEST, nib_jinja_current(p)->line, &test));
    test->apply.negated = nib_jinja_skip_name(p, "not");
    NIB_TRY(parse_builtin_name(p, &test->apply.name));
    test->apply.subject = *node;
    test->apply.builtin = nib_jinja_find_test(test->apply.name.bytes, test->apply.name.length);
    if (nib_jinja_at_operator(p, "(")) {
        NIB_TRY(parse_call_arguments(p, &test->apply.arguments));
    } else if (nib_jinja_at_name(p, "is")) {
        return nib_jinja_parse_fail(p, "You cannot chain multiple tests with is");
    } else if (at_bare_test_argument(p)) {
        const nib_jinja_node *argument;
        NIB_TRY(nib_jinja_parse_enter(p));
        NIB_TRY(parse_primary(p, &argument));
        NIB_TRY(parse_postfix(p, &argument));
        nib_jinja_parse_leave(p);
        NIB_TRY(nib_jinja_add_node(p, &test->apply.arguments.positional, argument));
    }
    NIB_TRY(nib_jinja_deepen(p, test, *node));
    NIB_TRY(deepen_arguments(p, test, &test->apply.arguments));
    *node = test;
    return NIB_OK;
}

static nib_status parse_filters_and_tests(nib_jinja_parser *p, const nib_jinja_node **node)
{
    for (;;) {
        if (nib_jinja_at_operator(p, "|")) {
            NIB_TRY(nib_jinja_parse_filters(p, *node, true, node));
        } else if (nib_jinja_skip_name(p, "is")) {
            NIB_TRY(parse_test(p, node));
        } else if (nib_jinja_at_operator(p, "(")) {
            NIB_TRY(parse_call(p, *node, node));
        } else {
            return NIB_OK;
        }
    }
}

static nib_status parse_unary(nib_jinja_parser *p, bool with_filters, const nib_jinja_node **node)
{
    uint32_t line = nib_jinja_current(p)->line;
    bool minus = nib_jinja_at_operator(p, "-");
    NIB_TRY(nib_jinja_parse_enter(p));
    if (minus || nib_jinja_at_operator(p, "+")) {
        p->at++;
        NIB_TRY(parse_unary(p, false, node));
        NIB_TRY(
            new_operation(p, NIB_JINJA_NODE_UNARY, minus ? NIB_JINJA_NEGATE : NIB_JINJA_PLUS, line, *node, NULL, node));
    } else {
        NIB_TRY(parse_primary(p, node));
    }
    NIB_TRY(parse_postfix(p, node));
    if (with_filters) NIB_TRY(parse_filters_and_tests(p, node));
    nib_jinja_parse_leave(p);
    return NIB_OK;
}

nib_status nib_jinja_parse_unary(nib_jinja_parser *p, const nib_jinja_node **node)
{
    return parse_unary(p, true, node);
}
