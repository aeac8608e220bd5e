/* Chat templates: an interpreter of the Jinja that they are written in, run as transformers runs them
 * (trim_blocks, lstrip_blocks, loopcontrols, tojson without ASCII escapes, raise_exception, strftime_now).
 *
 * Templates come from model files and are hostile until checked: steps, nesting and output are limited.
 */
#ifndef NIB_CHAT_TEMPLATE_H
#define NIB_CHAT_TEMPLATE_H

#include "base/buffer.h"
#include "base/json.h"

typedef struct nib_chat_template nib_chat_template;

/* Compiles source. name is used in messages ("name:line: ..."). NIB_ERROR_DATA on a syntax error. */
nib_status nib_chat_template_compile(const char *name, const char *source, nib_chat_template **chat_template);
void nib_chat_template_free(nib_chat_template *chat_template);
const char *nib_chat_template_hash(const nib_chat_template *chat_template); /* SHA-256 of its source, as hex */

typedef struct {
    const nib_json *messages; /* array of objects; required */
    const nib_json *tools;    /* array, or NULL */
    const char *bos_token;    /* "" if none */
    const char *eos_token;
    bool add_generation_prompt;
    int64_t now;           /* seconds since the epoch, UTC, for strftime_now */
    const nib_json *extra; /* object of further variables, or NULL */
} nib_chat_inputs;

/* Appends the rendered conversation. A template that raises gives NIB_ERROR_DATA with its own message; one that
 * exceeds a limit, NIB_ERROR_DATA naming the limit and the line. Thread-safe on one template. */
nib_status nib_chat_template_render(const nib_chat_template *chat_template, const nib_chat_inputs *inputs,
                                    nib_buffer *text);

#endif
