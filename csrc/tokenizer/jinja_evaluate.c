/* Expressions: evaluates a node of the tree to a value. */
#include "tokenizer/jinja_render.h"

#include <string.h>

nib_status nib_jinja_lookup(nib_jinja_render *render, nib_jinja_name name, nib_jinja_value *value)
{
    for (const nib_jinja_scope *scope = render->scope; scope != NULL; scope = scope->parent) {
        for (size_t i = scope->count; i-- > 0;) {
            const nib_jinja_variable *variable = &scope->variables[i];
            if (variable->name.length != name.length || memcmp(variable->name.bytes, name.bytes, name.length) != 0)
                continue;
            *value = variable->value;
            return NIB_OK;
        }
    }
    const nib_jinja_builtin *global = nib_jinja_find_global(name.bytes, name.length);
    if (global == NULL) return nib_jinja_new_undefined(render, nib_jinja_string(name.bytes, name.length), NULL, value);
    nib_jinja_function *function = nib_jinja_alloc(render, 1, sizeof *function);
    if (function == NULL) return nib_jinja_no_memory(render);
    function->builtin = global;
    *value = (nib_jinja_value){.kind = NIB_JINJA_FUNCTION, .function = function};
    return NIB_OK;
}

static nib_status evaluate_sequence(nib_jinja_render *render, nib_jinja_kind kind, const nib_jinja_nodes *nodes,
                                    nib_jinja_value *value)
{
    NIB_TRY(nib_jinja_new_sequence(render, kind, nodes->count, value));
    for (size_t i = 0; i < nodes->count; i++) {
        nib_jinja_value item;
        NIB_TRY(nib_jinja_evaluate(render, nodes->items[i], &item));
        NIB_TRY(nib_jinja_push(render, *value, item));
    }
    return NIB_OK;
}

static nib_status evaluate_dict(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    NIB_TRY(nib_jinja_new_dict(render, NIB_JINJA_DICT, value));
    for (size_t i = 0; i < node->dict.keys.count; i++) {
        nib_jinja_value key, item;
        NIB_TRY(nib_jinja_evaluate(render, node->dict.keys.items[i], &key));
        NIB_TRY(nib_jinja_evaluate(render, node->dict.values.items[i], &item));
        NIB_TRY(nib_jinja_dict_set(render, *value, key, item));
    }
    return NIB_OK;
}

static nib_status evaluate_unary(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value operand;
    NIB_TRY(nib_jinja_evaluate(render, node->operation.left, &operand));
    if (node->operation.op == NIB_JINJA_NOT) {
        *value = nib_jinja_bool(!nib_jinja_truthy(operand));
        return NIB_OK;
    }
    NIB_TRY(nib_jinja_negate(render, operand, value));
    return node->operation.op == NIB_JINJA_PLUS ? nib_jinja_negate(render, *value, value) : NIB_OK;
}

static nib_status evaluate_binary(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value left, right;
    NIB_TRY(nib_jinja_evaluate(render, node->operation.left, &left));
    NIB_TRY(nib_jinja_evaluate(render, node->operation.right, &right));
    return nib_jinja_binary(render, node->operation.op, left, right, value);
}

static nib_status evaluate_concat(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_text text = {.render = render};
    for (size_t i = 0; i < node->items.count; i++) {
        nib_jinja_value item;
        NIB_TRY(nib_jinja_evaluate(render, node->items.items[i], &item));
        nib_jinja_text_str(&text, item);
    }
    return nib_jinja_text_finish(&text, value);
}

static nib_status evaluate_compare(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value left, right;
    bool holds = true;
    NIB_TRY(nib_jinja_evaluate(render, node->compare.first, &left));
    for (size_t i = 0; i < node->compare.operands.count && holds; i++) {
        NIB_TRY(nib_jinja_evaluate(render, node->compare.operands.items[i], &right));
        NIB_TRY(nib_jinja_relation(render, node->compare.operators[i], left, right, &holds));
        left = right;
    }
    *value = nib_jinja_bool(holds);
    return NIB_OK;
}

static nib_status evaluate_condition(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value test;
    NIB_TRY(nib_jinja_evaluate(render, node->condition.test, &test));
    if (nib_jinja_truthy(test)) return nib_jinja_evaluate(render, node->condition.then, value);
    if (node->condition.otherwise != NULL) return nib_jinja_evaluate(render, node->condition.otherwise, value);
    *value = (nib_jinja_value){.kind = NIB_JINJA_UNDEFINED};
    return NIB_OK;
}

static nib_status evaluate_subscript(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value object, index;
    const nib_jinja_node *key = node->subscript.index;
    NIB_TRY(nib_jinja_evaluate(render, node->subscript.object, &object));
    if (key->kind != NIB_JINJA_NODE_SLICE) {
        NIB_TRY(nib_jinja_evaluate(render, key, &index));
        return nib_jinja_subscript(render, object, index, value);
    }
    const nib_jinja_node *const nodes[3] = {key->slice.start, key->slice.stop, key->slice.step};
    nib_jinja_value parts[3];
    for (int i = 0; i < 3; i++) {
        parts[i] = nib_jinja_none();
        if (nodes[i] != NULL) NIB_TRY(nib_jinja_evaluate(render, nodes[i], &parts[i]));
    }
    return nib_jinja_slice(render, object, parts, value);
}

static nib_status add_star(nib_jinja_render *render, const nib_jinja_node *star, nib_jinja_value list)
{
    nib_jinja_value value;
    const nib_jinja_value *items;
    size_t count;
    NIB_TRY(nib_jinja_evaluate(render, star, &value));
    NIB_TRY(nib_jinja_items(render, value, &items, &count));
    for (size_t i = 0; i < count; i++) NIB_TRY(nib_jinja_push(render, list, items[i]));
    return NIB_OK;
}

static nib_status add_double_star(nib_jinja_render *render, const nib_jinja_node *star, nib_jinja_value dict)
{
    nib_jinja_value value;
    NIB_TRY(nib_jinja_evaluate(render, star, &value));
    if (value.kind != NIB_JINJA_DICT)
        return nib_jinja_fail(render, "argument after ** must be a mapping, not %s", nib_jinja_type_name(value));
    for (size_t i = 0; i < value.dict->count; i++) {
        if (value.dict->keys[i].kind != NIB_JINJA_STRING) return nib_jinja_fail(render, "keywords must be strings");
        NIB_TRY(nib_jinja_dict_set(render, dict, value.dict->keys[i], value.dict->values[i]));
    }
    return NIB_OK;
}

nib_status nib_jinja_evaluate_arguments(nib_jinja_render *render, const nib_jinja_call_arguments *source,
                                        nib_jinja_arguments *arguments)
{
    nib_jinja_value list = {0}, dict = {0}, item;
    memset(arguments, 0, sizeof *arguments);
    if (source->positional.count > 0 || source->star != NULL) {
        NIB_TRY(evaluate_sequence(render, NIB_JINJA_LIST, &source->positional, &list));
        if (source->star != NULL) NIB_TRY(add_star(render, source->star, list));
        arguments->positional = list.sequence->items;
        arguments->count = list.sequence->count;
    }
    if (source->named.count > 0 || source->double_star != NULL) {
        NIB_TRY(nib_jinja_new_dict(render, NIB_JINJA_DICT, &dict));
        for (size_t i = 0; i < source->named.count; i++) {
            NIB_TRY(nib_jinja_evaluate(render, source->named.items[i], &item));
            NIB_TRY(nib_jinja_dict_set(render, dict, nib_jinja_string(source->names[i].bytes, source->names[i].length),
                                       item));
        }
        if (source->double_star != NULL) NIB_TRY(add_double_star(render, source->double_star, dict));
        arguments->names = dict.dict->keys;
        arguments->named = dict.dict->values;
        arguments->named_count = dict.dict->count;
    }
    return NIB_OK;
}

nib_status nib_jinja_invoke(nib_jinja_render *render, nib_jinja_value callee, const nib_jinja_arguments *arguments,
                            nib_jinja_value *result)
{
    switch (callee.kind) {
    case NIB_JINJA_FUNCTION:
        return nib_jinja_run_builtin(render, callee.function->builtin, callee.function->subject, arguments, result);
    case NIB_JINJA_MACRO:
        return nib_jinja_call_macro(render, callee.macro, arguments, result);
    case NIB_JINJA_LOOP:
        if (arguments->count != 1) return nib_jinja_fail(render, "loop() takes one argument");
        return nib_jinja_call_loop(render, callee.loop, arguments->positional[0], result);
    case NIB_JINJA_JOINER:
        *result = callee.joiner->used ? callee.joiner->separator : nib_jinja_literal("");
        callee.joiner->used = true;
        return NIB_OK;
    case NIB_JINJA_UNDEFINED:
        return nib_jinja_undefined_error(render, callee);
    default:
        return nib_jinja_fail(render, "'%s' object is not callable", nib_jinja_type_name(callee));
    }
}

static nib_status evaluate_call(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value callee;
    nib_jinja_arguments arguments;
    NIB_TRY(nib_jinja_evaluate(render, node->call.callee, &callee));
    NIB_TRY(nib_jinja_evaluate_arguments(render, &node->call.arguments, &arguments));
    render->line = node->line;
    return nib_jinja_invoke(render, callee, &arguments, value);
}

static nib_status apply(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value subject,
                        nib_jinja_value *value)
{
    nib_jinja_arguments arguments;
    if (node->apply.builtin == NULL)
        return nib_jinja_fail(render, "No %s named '%.*s'.", node->kind == NIB_JINJA_NODE_FILTER ? "filter" : "test",
                              (int)node->apply.name.length, node->apply.name.bytes);
    NIB_TRY(nib_jinja_evaluate_arguments(render, &node->apply.arguments, &arguments));
    render->line = node->line;
    return nib_jinja_run_builtin(render, node->apply.builtin, subject, &arguments, value);
}

static nib_status evaluate_apply(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value subject;
    NIB_TRY(nib_jinja_evaluate(render, node->apply.subject, &subject));
    NIB_TRY(apply(render, node, subject, value));
    if (node->apply.negated) *value = nib_jinja_bool(!nib_jinja_truthy(*value));
    return NIB_OK;
}

nib_status nib_jinja_apply_filters(nib_jinja_render *render, const nib_jinja_node *filter, nib_jinja_value text,
                                   nib_jinja_value *result)
{
    *result = text;
    if (filter == NULL) return NIB_OK;
    NIB_TRY(nib_jinja_enter(render));
    NIB_TRY(nib_jinja_apply_filters(render, filter->apply.subject, text, result));
    NIB_TRY(apply(render, filter, *result, result));
    nib_jinja_leave(render);
    return NIB_OK;
}

static nib_status evaluate_node(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_value operand;
    switch (node->kind) {
    case NIB_JINJA_NODE_CONSTANT:
        *value = node->constant;
        return NIB_OK;
    case NIB_JINJA_NODE_NAME:
        return nib_jinja_lookup(render, node->name, value);
    case NIB_JINJA_NODE_LIST:
        return evaluate_sequence(render, NIB_JINJA_LIST, &node->items, value);
    case NIB_JINJA_NODE_TUPLE:
        return evaluate_sequence(render, NIB_JINJA_TUPLE, &node->items, value);
    case NIB_JINJA_NODE_DICT:
        return evaluate_dict(render, node, value);
    case NIB_JINJA_NODE_UNARY:
        return evaluate_unary(render, node, value);
    case NIB_JINJA_NODE_BINARY:
        return evaluate_binary(render, node, value);
    case NIB_JINJA_NODE_AND:
    case NIB_JINJA_NODE_OR:
        NIB_TRY(nib_jinja_evaluate(render, node->operation.left, value));
        if (nib_jinja_truthy(*value) == (node->kind == NIB_JINJA_NODE_OR)) return NIB_OK;
        return nib_jinja_evaluate(render, node->operation.right, value);
    case NIB_JINJA_NODE_CONCAT:
        return evaluate_concat(render, node, value);
    case NIB_JINJA_NODE_COMPARE:
        return evaluate_compare(render, node, value);
    case NIB_JINJA_NODE_CONDITION:
        return evaluate_condition(render, node, value);
    case NIB_JINJA_NODE_ATTRIBUTE:
        NIB_TRY(nib_jinja_evaluate(render, node->attribute.object, &operand));
        render->line = node->line;
        return nib_jinja_attribute(render, operand,
                                   nib_jinja_string(node->attribute.name.bytes, node->attribute.name.length), value);
    case NIB_JINJA_NODE_SUBSCRIPT:
        return evaluate_subscript(render, node, value);
    case NIB_JINJA_NODE_CALL:
        return evaluate_call(render, node, value);
    case NIB_JINJA_NODE_FILTER:
    case NIB_JINJA_NODE_TEST:
        return evaluate_apply(render, node, value);
    default:
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s:%u: a statement in an expression", render->name, node->line);
    }
}

nib_status nib_jinja_evaluate(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    render->line = node->line;
    NIB_TRY(nib_jinja_charge(render, 1));
    NIB_TRY(nib_jinja_enter(render));
    NIB_TRY(evaluate_node(render, node, value));
    nib_jinja_leave(render);
    return NIB_OK;
}
