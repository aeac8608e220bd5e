/* A chat template as a Go template. The Jinja template is rendered over marked messages; the texts between the marks
 * are what the Go template writes around each message:
 *
 *   preamble U m A e u U m A e ...        without a system message
 *   first S user U m A e u U ...          with one
 *
 * where U, A and S are contents, m ends the user's turn and opens the assistant's, e ends that, u opens the next of the
 * user. */
#include "base/file.h"
#include "export_files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SYSTEM_MARK    "(system-content)"
#define USER_MARK      "(user-content)"
#define ASSISTANT_MARK "(assistant-content)"

static const char conversation_text[] = "[{\"role\": \"user\", \"content\": \"" USER_MARK
                                        "\"}, {\"role\": \"assistant\", \"content\": \"" ASSISTANT_MARK "\"}, "
                                        "{\"role\": \"user\", \"content\": \"" USER_MARK "\"}]";
static const char system_text[] = "[{\"role\": \"system\", \"content\": \"" SYSTEM_MARK "\"}, "
                                  "{\"role\": \"user\", \"content\": \"" USER_MARK "\"}]";

typedef struct {
    nib_buffer plain, with_system; /* renderings */
    const char *preamble, *middle, *between, *first, *second;
    size_t preamble_length, middle_length, between_length, first_length, second_length;
} parts;

static nib_status render(const nib_text *text, const char *json, nib_buffer *out)
{
    nib_pool pool = {0};
    nib_json *messages;
    nib_status status;
    NIB_TRY_GOTO(nib_json_parse("example", json, strlen(json), (nib_json_options){0}, &pool, &messages), done);
    nib_chat_inputs inputs = {.messages = messages,
                              .bos_token = text->bos_token,
                              .eos_token = text->eos_token,
                              .add_generation_prompt = true};
    status = nib_chat_template_render(text->chat_template, &inputs, out);
    if (status == NIB_OK && (out->failed || out->length == 0))
        status = NIB_FAIL(NIB_ERROR_DATA, "the chat template renders nothing");
done:
    nib_pool_free(&pool);
    return status;
}

/* The text up to the next mark; *at moves behind the mark. false: it is not there. */
static bool take(const char **at, const char *mark, const char **text, size_t *length)
{
    const char *found = strstr(*at, mark);
    if (found == NULL) return false;
    *text = *at;
    *length = (size_t)(found - *at);
    *at = found + strlen(mark);
    return true;
}

/* How many bytes two texts have in common at their ends. */
static size_t common_end(const char *a, size_t a_length, const char *b, size_t b_length)
{
    size_t n = 0;
    while (n < a_length && n < b_length && a[a_length - 1 - n] == b[b_length - 1 - n]) n++;
    return n;
}

static bool split(parts *p)
{
    const char *at = p->plain.data, *system = p->with_system.data;
    const char *middle_again;
    if (!take(&at, USER_MARK, &p->preamble, &p->preamble_length) ||
        !take(&at, ASSISTANT_MARK, &p->middle, &p->middle_length) ||
        !take(&at, USER_MARK, &p->between, &p->between_length))
        return false;
    middle_again = at; /* the generation prompt has to be what opened the first answer */
    if (strlen(middle_again) != p->middle_length || memcmp(middle_again, p->middle, p->middle_length) != 0)
        return false;
    return take(&system, SYSTEM_MARK, &p->first, &p->first_length) &&
           take(&system, USER_MARK, &p->second, &p->second_length) && strcmp(system, middle_again) == 0;
}

static bool plain(const char *text, size_t length)
{
    return memmem(text, length, "{{", 2) == NULL && memmem(text, length, "\"\"\"", 3) == NULL;
}

static void piece(nib_buffer *out, const char *text, size_t length) { nib_buffer_append(out, text, length); }

/* Every user turn but the first follows `between`: the first of it that is not the end of the assistant's turn is what
 * opens a user's turn, and stands at the end of preamble and second too. */
static void write_template(const parts *p, nib_buffer *out)
{
    size_t opens = common_end(p->between, p->between_length, p->preamble, p->preamble_length);
    size_t also = common_end(p->between, p->between_length, p->second, p->second_length);
    opens = opens < also ? opens : also;
    nib_buffer_text(out, "TEMPLATE \"\"\"{{ if .System }}");
    piece(out, p->first, p->first_length);
    nib_buffer_text(out, "{{ .System }}");
    piece(out, p->second, p->second_length - opens);
    nib_buffer_text(out, "{{ else }}");
    piece(out, p->preamble, p->preamble_length - opens);
    nib_buffer_text(out, "{{ end }}{{ range .Messages }}{{ if eq .Role \"user\" }}");
    piece(out, p->between + p->between_length - opens, opens);
    nib_buffer_text(out, "{{ .Content }}");
    piece(out, p->middle, p->middle_length);
    nib_buffer_text(out, "{{ else if eq .Role \"assistant\" }}{{ .Content }}");
    piece(out, p->between, p->between_length - opens);
    nib_buffer_text(out, "{{ end }}{{ end }}\"\"\"\n");
}

static nib_status derive_template(const nib_text *text, nib_buffer *out)
{
    parts p = {0};
    nib_status status;
    NIB_TRY_GOTO(render(text, conversation_text, &p.plain), done);
    NIB_TRY_GOTO(render(text, system_text, &p.with_system), done);
    if (!split(&p) || !plain(p.plain.data, p.plain.length) || !plain(p.with_system.data, p.with_system.length)) {
        status = NIB_FAIL(NIB_ERROR_DATA, "the chat template does not write fixed texts around its messages, so it has "
                                          "no counterpart in Ollama; merge the model and let Ollama convert it");
        goto done;
    }
    write_template(&p, out);
done:
    nib_buffer_free(&p.plain);
    nib_buffer_free(&p.with_system);
    return status;
}

/* KEYWORD PATH. Ollama takes paths relative to the Modelfile: that folder itself is ".", so that it can be moved, and
 * all else is absolute. */
static nib_status write_place(const char *keyword, const char *path, const char *folder, nib_buffer *out)
{
    char *absolute = realpath(path, NULL);
    if (absolute == NULL) return NIB_FAIL(NIB_ERROR_DATA, "%s: cannot be opened: %s", path, strerror(errno));
    nib_buffer_format(out, "%s %s\n", keyword, nib_file_is_same(path, folder) ? "." : absolute);
    free(absolute);
    return NIB_OK;
}

nib_status nib_export_modelfile(const char *model, const char *adapter, const nib_text *text,
                                const nib_model_config *config, const nib_conversation *conversation,
                                const char *folder)
{
    nib_buffer out = {0};
    nib_status status;
    if (text->tokenizer == NULL || text->chat_template == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: no chat template; give one with --chat-template", model);
    NIB_TRY_GOTO(write_place("FROM", model, folder, &out), done);
    if (adapter != NULL) NIB_TRY_GOTO(write_place("ADAPTER", adapter, folder, &out), done);
    NIB_TRY_GOTO(derive_template(text, &out), done);
    for (int i = 0; i < conversation->stop_count; i++)
        nib_buffer_format(&out, "PARAMETER stop \"%s\"\n", nib_tokenizer_text(text->tokenizer, conversation->stop[i]));
    if (config->max_positions > 0)
        nib_buffer_format(&out, "PARAMETER num_ctx %lld\n", (long long)config->max_positions);
    NIB_TRY_GOTO(nib_file_make_folders(folder), done);
    char *path = nib_path_join(folder, "Modelfile");
    if (path == NULL || out.failed)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a Modelfile", folder);
    else
        status = nib_file_replace(path, out.data, out.length);
    if (status == NIB_OK) printf("%s\n", path);
    nib_free(path);
done:
    nib_buffer_free(&out);
    return status;
}
