/* Statements: runs the body of a template, appending to the rendering's output. */
#include "tokenizer/jinja_render.h"

#include <string.h>

/* How a body ended: by its last statement, or by a jump that the loop around it takes. */
typedef enum { COMPLETED, BROKEN, CONTINUED } completion;

static nib_status run_body(nib_jinja_render *render, const nib_jinja_nodes *body, completion *how);

nib_status nib_jinja_push_scope(nib_jinja_render *render, nib_jinja_scope *parent)
{
    nib_jinja_scope *scope = nib_jinja_alloc(render, 1, sizeof *scope);
    if (scope == NULL) return nib_jinja_no_memory(render);
    scope->parent = parent;
    render->scope = scope;
    return NIB_OK;
}

nib_status nib_jinja_define(nib_jinja_render *render, nib_jinja_name name, nib_jinja_value value)
{
    nib_jinja_scope *scope = render->scope;
    for (size_t i = 0; i < scope->count; i++) {
        nib_jinja_variable *variable = &scope->variables[i];
        if (variable->name.length != name.length || memcmp(variable->name.bytes, name.bytes, name.length) != 0)
            continue;
        variable->value = value;
        return NIB_OK;
    }
    if (scope->count == scope->capacity) {
        size_t capacity = scope->capacity ? 2 * scope->capacity : 4;
        nib_jinja_variable *variables = nib_jinja_alloc(render, capacity, sizeof *variables);
        if (variables == NULL) return nib_jinja_no_memory(render);
        if (scope->count > 0) memcpy(variables, scope->variables, scope->count * sizeof *variables);
        scope->variables = variables;
        scope->capacity = capacity;
    }
    scope->variables[scope->count++] = (nib_jinja_variable){name, value};
    return NIB_OK;
}

static nib_jinja_name name_of(const char *text) { return (nib_jinja_name){text, strlen(text)}; }

static nib_status set_namespace(nib_jinja_render *render, const nib_jinja_node *target, nib_jinja_value value)
{
    nib_jinja_value space;
    NIB_TRY(nib_jinja_evaluate(render, target->attribute.object, &space));
    if (space.kind != NIB_JINJA_NAMESPACE)
        return nib_jinja_fail(render, "cannot assign attribute on non-namespace object");
    return nib_jinja_dict_set(render, space,
                              nib_jinja_string(target->attribute.name.bytes, target->attribute.name.length), value);
}

/* Gives value to a name, to an attribute of a namespace, or its items to a tuple of names. */
static nib_status assign(nib_jinja_render *render, const nib_jinja_node *target, nib_jinja_value value)
{
    if (target->kind == NIB_JINJA_NODE_NAME) return nib_jinja_define(render, target->name, value);
    if (target->kind == NIB_JINJA_NODE_ATTRIBUTE) return set_namespace(render, target, value);
    const nib_jinja_value *items;
    size_t count, expected = target->items.count;
    NIB_TRY(nib_jinja_items(render, value, &items, &count));
    if (count < expected)
        return nib_jinja_fail(render, "not enough values to unpack (expected %zu, got %zu)", expected, count);
    if (count > expected) return nib_jinja_fail(render, "too many values to unpack (expected %zu)", expected);
    for (size_t i = 0; i < count; i++) NIB_TRY(assign(render, target->items.items[i], items[i]));
    return NIB_OK;
}

/* Runs a body in a scope of its own and gives its text instead of putting it out. */
static nib_status capture(nib_jinja_render *render, const nib_jinja_nodes *body, nib_jinja_value *text)
{
    nib_jinja_text output = {.render = render}, *outer = render->output;
    nib_jinja_scope *scope = render->scope;
    completion how;
    NIB_TRY(nib_jinja_push_scope(render, scope));
    render->output = &output;
    NIB_TRY(run_body(render, body, &how));
    render->output = outer;
    render->scope = scope;
    return nib_jinja_text_finish(&output, text);
}

/* ---- loops ---- */

/* An empty scope for the next turn of a loop: the one of the turn before, unless a macro keeps it. */
static nib_status next_turn(nib_jinja_render *render, nib_jinja_scope *around)
{
    if (render->scope->kept) return nib_jinja_push_scope(render, around);
    render->scope->count = 0;
    return NIB_OK;
}

/* The items of which `for target in items if filter` keeps those that pass. */
static nib_status filter_items(nib_jinja_render *render, const nib_jinja_node *node, const nib_jinja_value **items,
                               size_t *count)
{
    nib_jinja_value kept, passes;
    nib_jinja_scope *scope = render->scope;
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_LIST, 0, &kept));
    NIB_TRY(nib_jinja_push_scope(render, scope));
    for (size_t i = 0; i < *count; i++) {
        NIB_TRY(next_turn(render, scope));
        NIB_TRY(assign(render, node->loop.target, (*items)[i]));
        NIB_TRY(nib_jinja_evaluate(render, node->loop.filter, &passes));
        if (nib_jinja_truthy(passes)) NIB_TRY(nib_jinja_push(render, kept, (*items)[i]));
    }
    render->scope = scope;
    *items = kept.sequence->items;
    *count = kept.sequence->count;
    return NIB_OK;
}

static nib_status run_loop(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value iterable, int level)
{
    nib_jinja_scope *scope = render->scope;
    nib_jinja_loop *loop = nib_jinja_alloc(render, 1, sizeof *loop);
    if (loop == NULL) return nib_jinja_no_memory(render);
    *loop = (nib_jinja_loop){.node = node, .scope = scope, .level = level, .changed = nib_jinja_none()};
    completion how = COMPLETED;
    NIB_TRY(nib_jinja_items(render, iterable, &loop->items, &loop->count));
    if (node->loop.filter != NULL) NIB_TRY(filter_items(render, node, &loop->items, &loop->count));
    NIB_TRY(nib_jinja_push_scope(render, scope));
    for (loop->index = 0; loop->index < loop->count && how != BROKEN; loop->index++) {
        NIB_TRY(next_turn(render, scope));
        NIB_TRY(nib_jinja_define(render, name_of("loop"), (nib_jinja_value){.kind = NIB_JINJA_LOOP, .loop = loop}));
        NIB_TRY(assign(render, node->loop.target, loop->items[loop->index]));
        NIB_TRY(run_body(render, &node->loop.body, &how));
    }
    render->scope = scope;
    if (loop->count > 0) return NIB_OK;
    NIB_TRY(nib_jinja_push_scope(render, scope));
    NIB_TRY(nib_jinja_execute(render, &node->loop.otherwise));
    render->scope = scope;
    return NIB_OK;
}

nib_status nib_jinja_call_loop(nib_jinja_render *render, const nib_jinja_loop *loop, nib_jinja_value iterable,
                               nib_jinja_value *result)
{
    if (!loop->node->loop.recursive)
        return nib_jinja_fail(render, "The loop must have the 'recursive' marker to be called recursively.");
    nib_jinja_text output = {.render = render}, *outer = render->output;
    nib_jinja_scope *scope = render->scope;
    NIB_TRY(nib_jinja_enter(render));
    render->output = &output;
    render->scope = loop->scope;
    NIB_TRY(run_loop(render, loop->node, iterable, loop->level + 1));
    render->output = outer;
    render->scope = scope;
    nib_jinja_leave(render);
    return nib_jinja_text_finish(&output, result);
}

static nib_status execute_for(nib_jinja_render *render, const nib_jinja_node *node)
{
    nib_jinja_value iterable;
    NIB_TRY(nib_jinja_evaluate(render, node->loop.iterable, &iterable));
    return run_loop(render, node, iterable, 1);
}

/* ---- macros ---- */

static nib_status new_macro(nib_jinja_render *render, const nib_jinja_node *node, nib_jinja_value *value)
{
    nib_jinja_macro *macro = nib_jinja_alloc(render, 1, sizeof *macro);
    if (macro == NULL) return nib_jinja_no_memory(render);
    macro->node = node;
    macro->scope = render->scope;
    for (nib_jinja_scope *scope = render->scope; scope != NULL; scope = scope->parent) scope->kept = true;
    *value = (nib_jinja_value){.kind = NIB_JINJA_MACRO, .macro = macro};
    return NIB_OK;
}

static const nib_jinja_value *find_named(const nib_jinja_arguments *arguments, nib_jinja_name name)
{
    for (size_t i = 0; i < arguments->named_count; i++) {
        nib_jinja_value key = arguments->names[i];
        if (key.string.length == name.length && memcmp(key.string.bytes, name.bytes, name.length) == 0)
            return &arguments->named[i];
    }
    return NULL;
}

/* Defines the parameters from the arguments; defaults are evaluated in order, seeing the parameters before them. */
static nib_status bind_parameters(nib_jinja_render *render, const nib_jinja_node *node,
                                  const nib_jinja_arguments *arguments)
{
    const nib_jinja_parameters *parameters = &node->macro.parameters;
    size_t required = parameters->count - parameters->defaults.count;
    for (size_t i = 0; i < parameters->count; i++) {
        nib_jinja_name name = parameters->names[i];
        const nib_jinja_value *named = find_named(arguments, name);
        nib_jinja_value value;
        if (i < arguments->count) {
            if (named != NULL)
                return nib_jinja_fail(render, "macro '%.*s' got multiple values for argument '%.*s'",
                                      (int)node->macro.name.length, node->macro.name.bytes, (int)name.length,
                                      name.bytes);
            value = arguments->positional[i];
        } else if (named != NULL) {
            value = *named;
        } else if (i >= required) {
            NIB_TRY(nib_jinja_evaluate(render, parameters->defaults.items[i - required], &value));
        } else {
            NIB_TRY(nib_jinja_new_undefined(render, nib_jinja_string(name.bytes, name.length), NULL, &value));
        }
        NIB_TRY(nib_jinja_define(render, name, value));
    }
    return NIB_OK;
}

/* varargs: positional arguments beyond the parameters; refused if the macro does not use them. */
static nib_status bind_varargs(nib_jinja_render *render, const nib_jinja_node *node,
                               const nib_jinja_arguments *arguments)
{
    size_t parameters = node->macro.parameters.count;
    if (!node->macro.uses_varargs) {
        if (arguments->count <= parameters) return NIB_OK;
        return nib_jinja_fail(render, "macro '%.*s' takes not more than %zu argument(s)", (int)node->macro.name.length,
                              node->macro.name.bytes, parameters);
    }
    nib_jinja_value list;
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_TUPLE, 0, &list));
    for (size_t i = parameters; i < arguments->count; i++)
        NIB_TRY(nib_jinja_push(render, list, arguments->positional[i]));
    return nib_jinja_define(render, name_of("varargs"), list);
}

static bool is_parameter(const nib_jinja_parameters *parameters, nib_jinja_value name)
{
    for (size_t i = 0; i < parameters->count; i++)
        if (parameters->names[i].length == name.string.length &&
            memcmp(parameters->names[i].bytes, name.string.bytes, name.string.length) == 0)
            return true;
    return false;
}

/* kwargs: keyword arguments that are no parameters; `caller` is taken out of them. */
static nib_status bind_kwargs(nib_jinja_render *render, const nib_jinja_node *node,
                              const nib_jinja_arguments *arguments)
{
    nib_jinja_value dict;
    NIB_TRY(nib_jinja_new_dict(render, NIB_JINJA_DICT, &dict));
    for (size_t i = 0; i < arguments->named_count; i++) {
        nib_jinja_value name = arguments->names[i];
        if (is_parameter(&node->macro.parameters, name)) continue;
        if (nib_jinja_is_string(name, "caller"))
            NIB_TRY(nib_jinja_define(render, name_of("caller"), arguments->named[i]));
        else if (node->macro.uses_kwargs)
            NIB_TRY(nib_jinja_dict_set(render, dict, name, arguments->named[i]));
        else
            return nib_jinja_fail(render, "macro '%.*s' takes no keyword argument '%.*s'", (int)node->macro.name.length,
                                  node->macro.name.bytes, (int)name.string.length, name.string.bytes);
    }
    return node->macro.uses_kwargs ? nib_jinja_define(render, name_of("kwargs"), dict) : NIB_OK;
}

nib_status nib_jinja_call_macro(nib_jinja_render *render, nib_jinja_macro *macro, const nib_jinja_arguments *arguments,
                                nib_jinja_value *result)
{
    nib_jinja_text output = {.render = render}, *outer = render->output;
    nib_jinja_scope *scope = render->scope;
    completion how;
    NIB_TRY(nib_jinja_enter(render));
    NIB_TRY(nib_jinja_push_scope(render, macro->scope));
    NIB_TRY(bind_varargs(render, macro->node, arguments));
    NIB_TRY(bind_kwargs(render, macro->node, arguments));
    NIB_TRY(bind_parameters(render, macro->node, arguments));
    render->output = &output;
    NIB_TRY(run_body(render, &macro->node->macro.body, &how));
    render->output = outer;
    render->scope = scope;
    nib_jinja_leave(render);
    return nib_jinja_text_finish(&output, result);
}

static nib_status execute_macro(nib_jinja_render *render, const nib_jinja_node *node)
{
    nib_jinja_value macro;
    NIB_TRY(new_macro(render, node, &macro));
    return nib_jinja_define(render, node->macro.name, macro);
}

/* {% call(x) f(y) %}: f gets the block as its keyword argument `caller`. */
static nib_status execute_call_block(nib_jinja_render *render, const nib_jinja_node *node)
{
    const nib_jinja_node *call = node->macro.call;
    nib_jinja_value callee, caller, all, result;
    nib_jinja_arguments arguments;
    NIB_TRY(nib_jinja_evaluate(render, call->call.callee, &callee));
    NIB_TRY(nib_jinja_evaluate_arguments(render, &call->call.arguments, &arguments));
    NIB_TRY(new_macro(render, node, &caller));
    NIB_TRY(nib_jinja_new_dict(render, NIB_JINJA_DICT, &all));
    for (size_t i = 0; i < arguments.named_count; i++)
        NIB_TRY(nib_jinja_dict_set(render, all, arguments.names[i], arguments.named[i]));
    NIB_TRY(nib_jinja_dict_set(render, all, nib_jinja_literal("caller"), caller));
    arguments.names = all.dict->keys;
    arguments.named = all.dict->values;
    arguments.named_count = all.dict->count;
    NIB_TRY(nib_jinja_invoke(render, callee, &arguments, &result));
    nib_jinja_text_str(render->output, result);
    return render->output->status;
}

/* ---- the other statements ---- */

static nib_status execute_if(nib_jinja_render *render, const nib_jinja_node *node, completion *how)
{
    for (;; node = node->branch.elif) {
        nib_jinja_value test;
        NIB_TRY(nib_jinja_evaluate(render, node->branch.test, &test));
        if (nib_jinja_truthy(test)) return run_body(render, &node->branch.body, how);
        if (node->branch.elif == NULL) return run_body(render, &node->branch.otherwise, how);
    }
}

static nib_status execute_set(nib_jinja_render *render, const nib_jinja_node *node)
{
    nib_jinja_value value;
    if (node->kind == NIB_JINJA_NODE_SET) {
        NIB_TRY(nib_jinja_evaluate(render, node->set.value, &value));
    } else {
        NIB_TRY(capture(render, &node->set.body, &value));
        NIB_TRY(nib_jinja_apply_filters(render, node->set.value, value, &value));
    }
    return assign(render, node->set.target, value);
}

static nib_status execute_with(nib_jinja_render *render, const nib_jinja_node *node, completion *how)
{
    nib_jinja_scope *scope = render->scope, *inner;
    NIB_TRY(nib_jinja_push_scope(render, scope));
    inner = render->scope;
    for (size_t i = 0; i < node->with.targets.count; i++) { /* values do not see the targets */
        nib_jinja_value value;
        render->scope = scope;
        NIB_TRY(nib_jinja_evaluate(render, node->with.values.items[i], &value));
        render->scope = inner;
        NIB_TRY(assign(render, node->with.targets.items[i], value));
    }
    NIB_TRY(run_body(render, &node->with.body, how));
    render->scope = scope;
    return NIB_OK;
}

static nib_status execute_output(nib_jinja_render *render, const nib_jinja_node *node)
{
    nib_jinja_value value;
    NIB_TRY(nib_jinja_evaluate(render, node->output, &value));
    nib_jinja_text_str(render->output, value);
    return render->output->status;
}

static nib_status execute_captured(nib_jinja_render *render, const nib_jinja_node *node)
{
    bool is_filter = node->kind == NIB_JINJA_NODE_FILTER_BLOCK;
    nib_jinja_value text;
    NIB_TRY(capture(render, is_filter ? &node->filter_block.body : &node->body, &text));
    if (is_filter) NIB_TRY(nib_jinja_apply_filters(render, node->filter_block.filter, text, &text));
    nib_jinja_text_str(render->output, text);
    return render->output->status;
}

static nib_status execute_node(nib_jinja_render *render, const nib_jinja_node *node, completion *how)
{
    switch (node->kind) {
    case NIB_JINJA_NODE_TEXT:
        nib_jinja_text_append(render->output, node->text.bytes, node->text.length);
        return render->output->status;
    case NIB_JINJA_NODE_OUTPUT:
        return execute_output(render, node);
    case NIB_JINJA_NODE_IF:
        return execute_if(render, node, how);
    case NIB_JINJA_NODE_FOR:
        return execute_for(render, node);
    case NIB_JINJA_NODE_BREAK:
        *how = BROKEN;
        return NIB_OK;
    case NIB_JINJA_NODE_CONTINUE:
        *how = CONTINUED;
        return NIB_OK;
    case NIB_JINJA_NODE_SET:
    case NIB_JINJA_NODE_SET_BLOCK:
        return execute_set(render, node);
    case NIB_JINJA_NODE_WITH:
        return execute_with(render, node, how);
    case NIB_JINJA_NODE_MACRO:
        return execute_macro(render, node);
    case NIB_JINJA_NODE_CALL_BLOCK:
        return execute_call_block(render, node);
    case NIB_JINJA_NODE_FILTER_BLOCK:
    case NIB_JINJA_NODE_GENERATION:
        return execute_captured(render, node);
    default:
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s:%u: an expression as a statement", render->name, node->line);
    }
}

static nib_status run_body(nib_jinja_render *render, const nib_jinja_nodes *body, completion *how)
{
    *how = COMPLETED;
    NIB_TRY(nib_jinja_enter(render));
    for (size_t i = 0; i < body->count && *how == COMPLETED; i++) {
        render->line = body->items[i]->line;
        NIB_TRY(nib_jinja_charge(render, 1));
        NIB_TRY(execute_node(render, body->items[i], how));
    }
    nib_jinja_leave(render);
    return NIB_OK;
}

nib_status nib_jinja_execute(nib_jinja_render *render, const nib_jinja_nodes *body)
{
    completion how;
    return run_body(render, body, &how);
}
