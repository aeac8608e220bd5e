#include "tokenizer/chat_template.h"

#include "base/sha256.h"
#include "tokenizer/jinja_render.h"

#include <string.h>

struct nib_chat_template {
    char *name;
    nib_pool pool;
    nib_jinja_nodes body;
    char hash[65];
};

/* What a template of a model may take when it is compiled; real ones take well under 1 MiB. */
enum { MAX_COMPILED = 256 << 20 };

nib_status nib_chat_template_compile(const char *name, const char *source, nib_chat_template **chat_template)
{
    nib_status status = NIB_OK;
    *chat_template = NULL;
    nib_chat_template *made = nib_calloc(1, sizeof *made);
    if (made == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", name);
    made->pool.limit = MAX_COMPILED;
    made->name = nib_pool_copy(&made->pool, name, strlen(name));
    if (made->name == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the template", name);
        goto done;
    }
    nib_sha256_of(source, strlen(source), made->hash);
    NIB_TRY_GOTO(nib_jinja_parse(made->name, source, strlen(source), &made->pool, &made->body), done);
    *chat_template = made;
    made = NULL;
done:
    nib_chat_template_free(made);
    return status;
}

void nib_chat_template_free(nib_chat_template *chat_template)
{
    if (chat_template == NULL) return;
    nib_pool_free(&chat_template->pool);
    nib_free(chat_template);
}

const char *nib_chat_template_hash(const nib_chat_template *chat_template) { return chat_template->hash; }

static nib_status define(nib_jinja_render *render, const char *name, nib_jinja_value value)
{
    return nib_jinja_define(render, (nib_jinja_name){name, strlen(name)}, value);
}

/* json NULL: the variable is none. */
static nib_status define_json(nib_jinja_render *render, const char *name, const nib_json *json)
{
    nib_jinja_value value = nib_jinja_none();
    if (json != NULL) NIB_TRY(nib_jinja_from_json(render, json, &value));
    return define(render, name, value);
}

/* The variables that transformers' apply_chat_template passes. */
static nib_status define_inputs(nib_jinja_render *render, const nib_chat_inputs *inputs)
{
    NIB_TRY(define_json(render, "messages", inputs->messages));
    NIB_TRY(define_json(render, "tools", inputs->tools));
    NIB_TRY(define_json(render, "documents", NULL));
    NIB_TRY(define(render, "add_generation_prompt", nib_jinja_bool(inputs->add_generation_prompt)));
    NIB_TRY(define(render, "bos_token", nib_jinja_literal(inputs->bos_token)));
    NIB_TRY(define(render, "eos_token", nib_jinja_literal(inputs->eos_token)));
    const nib_json *extra = nib_json_is(inputs->extra, NIB_JSON_OBJECT) ? inputs->extra->first : NULL;
    for (; extra != NULL; extra = extra->next) NIB_TRY(define_json(render, extra->key, extra));
    return NIB_OK;
}

nib_status nib_chat_template_render(const nib_chat_template *chat_template, const nib_chat_inputs *inputs,
                                    nib_buffer *text)
{
    nib_pool pool = {.limit = NIB_JINJA_MAX_MEMORY};
    nib_jinja_render render = {.name = chat_template->name, .pool = &pool, .line = 1, .now = inputs->now};
    nib_jinja_text output = {.render = &render};
    nib_status status;
    render.output = &output;
    NIB_TRY_GOTO(nib_jinja_push_scope(&render, NULL), done);
    NIB_TRY_GOTO(define_inputs(&render, inputs), done);
    NIB_TRY_GOTO(nib_jinja_execute(&render, &chat_template->body), done);
    nib_buffer_append(text, output.data != NULL ? output.data : "", output.length);
    if (text->failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the conversation", chat_template->name);
done:
    nib_pool_free(&pool);
    return status;
}
