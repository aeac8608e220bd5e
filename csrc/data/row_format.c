#include "data/row_format.h"

#include "base/buffer.h"

#include <stdio.h>
#include <string.h>

/* Beyond this a conversation costs more to render turn by turn than any real one is worth. */
enum { MAX_MESSAGES = 4096 };

static const struct {
    const char *needs[2]; /* second NULL: one key is enough */
    const char *shown;
} formats[] = {
    {{"messages", NULL}, "messages"},
    {{"conversations", NULL}, "conversations"},
    {{"prompt", "completion"}, "prompt and completion"},
    {{"instruction", "output"}, "instruction and output"},
    {{"text", NULL}, "text"},
    {{"input_ids", "labels"}, "input_ids and labels"},
};
enum { MESSAGES, CONVERSATIONS, PROMPT, INSTRUCTION, TEXT, IDS, FORMATS };

static nib_status fail_with_keys(const char *where, const nib_json *row, const char *what)
{
    nib_buffer keys = {0};
    for (const nib_json *member = row->first; member != NULL && keys.length < 300; member = member->next)
        nib_buffer_format(&keys, "%s%.40s", keys.length > 0 ? ", " : "", member->key);
    nib_status status =
        NIB_FAIL(NIB_ERROR_DATA,
                 "%s: %s; its keys are: %s. Expected exactly one of: messages; conversations; prompt and completion; "
                 "instruction and output; text; input_ids and labels",
                 where, what, keys.length > 0 ? keys.data : "(none)");
    nib_buffer_free(&keys);
    return status;
}

nib_status nib_row_read(const char *where, const char *line, size_t length, nib_pool *pool, nib_json **row)
{
    nib_status status = nib_json_parse(where, line, length, (nib_json_options){0}, pool, row);
    if (status == NIB_OK && !nib_json_is(*row, NIB_JSON_OBJECT))
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: expected one JSON object a line, found %s", where,
                          nib_json_kind_name((*row)->kind));
    else if (status == NIB_ERROR_DATA && length > 0 && line[0] != '{')
        status = NIB_FAIL(status, "%s; expected one JSON object a line", nib_error_message());
    if (status != NIB_ERROR_DATA) return status;
    while (length > 0 && (unsigned char)line[length - 1] <= ' ') length--;
    if (length > 0 && line[0] == '[')
        return NIB_FAIL(status, "%s; if the file is one array, jq -c '.[]' makes lines of it", nib_error_message());
    if (length == 1 && line[0] == '{')
        return NIB_FAIL(status, "%s; if objects go over several lines, jq -c . makes one of each", nib_error_message());
    return status;
}

static nib_status recognise(const char *where, const nib_json *row, int *format)
{
    *format = FORMATS;
    for (int f = 0; f < FORMATS; f++) {
        if (nib_json_get(row, formats[f].needs[0]) == NULL) continue;
        if (formats[f].needs[1] != NULL && nib_json_get(row, formats[f].needs[1]) == NULL) continue;
        if (*format != FORMATS) {
            char what[120];
            snprintf(what, sizeof what, "the row could be read in two ways, by %s and by %s", formats[*format].shown,
                     formats[f].shown);
            return fail_with_keys(where, row, what);
        }
        *format = f;
    }
    return *format == FORMATS ? fail_with_keys(where, row, "unknown row format") : NIB_OK;
}

static nib_status need(const char *where, const nib_json *row, const char *key, nib_json_kind kind,
                       const nib_json **value)
{
    *value = nib_json_get(row, key);
    if (nib_json_is(*value, kind)) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: \"%s\" is %s, expected %s", where, key,
                    *value == NULL ? "missing" : nib_json_kind_name((*value)->kind),
                    kind == NIB_JSON_ARRAY ? "an array" : "a string");
}

/* A string node in the pool; key may be NULL. NULL: no memory. */
static nib_json *make_string(nib_pool *pool, const char *key, const char *text, size_t length)
{
    nib_json *node = nib_pool_alloc(pool, sizeof *node);
    if (node == NULL) return NULL;
    *node = (nib_json){.kind = NIB_JSON_STRING, .length = length, .string = nib_pool_copy(pool, text, length)};
    node->key = key;
    node->key_length = key == NULL ? 0 : strlen(key);
    return node->string == NULL ? NULL : node;
}

static bool make_message(nib_pool *pool, const char *role, const nib_json *content, nib_json *message)
{
    nib_json *role_node = make_string(pool, "role", role, strlen(role));
    nib_json *content_node = make_string(pool, "content", content->string, content->length);
    if (role_node == NULL || content_node == NULL) return false;
    role_node->next = content_node;
    *message = (nib_json){.kind = NIB_JSON_OBJECT, .length = 2, .first = role_node};
    return true;
}

static nib_status no_memory(const char *where)
{
    return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the row", where);
}

static nib_status take_array(const char *where, const nib_json *row, const char *key, nib_pool *pool,
                             const nib_json **list, nib_parsed_row *parsed)
{
    NIB_TRY(need(where, row, key, NIB_JSON_ARRAY, list));
    if ((*list)->length == 0 || (*list)->length > MAX_MESSAGES)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: \"%s\" holds %zu turns, expected 1 to %d", where, key, (*list)->length,
                        MAX_MESSAGES);
    parsed->kind = NIB_ROW_CONVERSATION;
    parsed->messages = (int)(*list)->length;
    parsed->message = nib_pool_alloc(pool, (*list)->length * sizeof *parsed->message);
    return parsed->message == NULL ? no_memory(where) : NIB_OK;
}

static void link_messages(nib_parsed_row *parsed)
{
    for (int i = 0; i < parsed->messages; i++)
        parsed->message[i].next = i + 1 < parsed->messages ? &parsed->message[i + 1] : NULL;
}

static nib_status parse_messages(const char *where, const nib_json *row, nib_pool *pool, nib_parsed_row *parsed)
{
    const nib_json *list;
    NIB_TRY(take_array(where, row, "messages", pool, &list, parsed));
    int i = 0;
    for (const nib_json *message = list->first; message != NULL; message = message->next, i++) {
        const nib_json *role = nib_json_get(message, "role"), *content = nib_json_get(message, "content");
        if (!nib_json_is(message, NIB_JSON_OBJECT) || !nib_json_is(role, NIB_JSON_STRING))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: messages[%d] is no object with a \"role\" that is a string", where, i);
        if (content == NULL && nib_json_get(message, "tool_calls") == NULL)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: messages[%d] has neither \"content\" nor \"tool_calls\"", where, i);
        parsed->message[i] = *message;
    }
    return NIB_OK;
}

static const char *role_of_speaker(const char *from)
{
    static const char *const roles[][2] = {{"human", "user"},        {"user", "user"},       {"gpt", "assistant"},
                                           {"chatgpt", "assistant"}, {"model", "assistant"}, {"assistant", "assistant"},
                                           {"system", "system"},     {"tool", "tool"},       {"observation", "tool"}};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(from, roles[i][0]) == 0) return roles[i][1];
    return NULL;
}

static nib_status parse_conversations(const char *where, const nib_json *row, nib_pool *pool, nib_parsed_row *parsed)
{
    const nib_json *list;
    NIB_TRY(take_array(where, row, "conversations", pool, &list, parsed));
    int i = 0;
    for (const nib_json *turn = list->first; turn != NULL; turn = turn->next, i++) {
        const nib_json *from = nib_json_get(turn, "from"), *value = nib_json_get(turn, "value");
        if (!nib_json_is(from, NIB_JSON_STRING) || !nib_json_is(value, NIB_JSON_STRING))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: conversations[%d] is no object with strings \"from\" and \"value\"",
                            where, i);
        const char *role = role_of_speaker(from->string);
        if (role == NULL)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: conversations[%d] is from \"%.40s\", expected human, gpt, system or "
                            "tool",
                            where, i, from->string);
        if (!make_message(pool, role, value, &parsed->message[i])) return no_memory(where);
    }
    return NIB_OK;
}

/* prompt and completion as they are, or as a conversation of two turns. */
static nib_status pair(const char *where, const nib_json *prompt, const nib_json *completion, bool has_template,
                       nib_pool *pool, nib_parsed_row *parsed)
{
    parsed->prompt = prompt;
    parsed->completion = completion;
    parsed->kind = has_template ? NIB_ROW_CONVERSATION : NIB_ROW_PROMPT;
    if (!has_template) return NIB_OK;
    parsed->messages = 2;
    parsed->message = nib_pool_alloc(pool, 2 * sizeof *parsed->message);
    if (parsed->message == NULL || !make_message(pool, "user", prompt, &parsed->message[0]) ||
        !make_message(pool, "assistant", completion, &parsed->message[1]))
        return no_memory(where);
    return NIB_OK;
}

static nib_status parse_instruction(const char *where, const nib_json *row, bool has_template, nib_pool *pool,
                                    nib_parsed_row *parsed)
{
    const nib_json *instruction, *output, *input = nib_json_get(row, "input");
    NIB_TRY(need(where, row, "instruction", NIB_JSON_STRING, &instruction));
    NIB_TRY(need(where, row, "output", NIB_JSON_STRING, &output));
    if (input != NULL && input->kind == NIB_JSON_NULL) input = NULL;
    if (input != NULL) NIB_TRY(need(where, row, "input", NIB_JSON_STRING, &input));
    nib_buffer text = {0};
    nib_buffer_append(&text, instruction->string, instruction->length);
    if (input != NULL && input->length > 0) nib_buffer_format(&text, "\n\n%s", input->string);
    if (!has_template) nib_buffer_text(&text, "\n\n");
    nib_json *prompt = text.failed ? NULL : make_string(pool, NULL, text.data == NULL ? "" : text.data, text.length);
    nib_buffer_free(&text);
    if (prompt == NULL) return no_memory(where);
    return pair(where, prompt, output, has_template, pool, parsed);
}

static nib_status parse_ids(const char *where, const nib_json *row, nib_parsed_row *parsed)
{
    parsed->kind = NIB_ROW_IDS;
    NIB_TRY(need(where, row, "input_ids", NIB_JSON_ARRAY, &parsed->ids));
    NIB_TRY(need(where, row, "labels", NIB_JSON_ARRAY, &parsed->labels));
    if (parsed->ids->length != parsed->labels->length)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: %zu input_ids and %zu labels, expected as many of each", where,
                        parsed->ids->length, parsed->labels->length);
    return NIB_OK;
}

static nib_status parse_optional(const char *where, const nib_json *row, nib_parsed_row *parsed)
{
    double weight;
    const char *source;
    NIB_TRY(nib_json_read_double(where, row, "weight", 1, &weight));
    NIB_TRY(nib_json_read_string(where, row, "source", NULL, &source));
    if (!(weight > 0 && weight <= 1e6))
        return NIB_FAIL(NIB_ERROR_DATA, "%s: \"weight\" is %g, expected above 0 and at most 1e6", where, weight);
    parsed->weight = (float)weight;
    parsed->tools = nib_json_get(row, "tools");
    if (parsed->tools != NULL && parsed->tools->kind == NIB_JSON_NULL) parsed->tools = NULL;
    if (parsed->tools != NULL) NIB_TRY(need(where, row, "tools", NIB_JSON_ARRAY, &parsed->tools));
    return NIB_OK;
}

nib_status nib_row_parse(const char *where, const nib_json *row, bool has_template, nib_pool *pool,
                         nib_parsed_row *parsed)
{
    int format;
    const nib_json *prompt, *completion;
    *parsed = (nib_parsed_row){0};
    NIB_TRY(recognise(where, row, &format));
    NIB_TRY(parse_optional(where, row, parsed));
    switch (format) {
    case MESSAGES:
        NIB_TRY(parse_messages(where, row, pool, parsed));
        break;
    case CONVERSATIONS:
        NIB_TRY(parse_conversations(where, row, pool, parsed));
        break;
    case PROMPT:
        NIB_TRY(need(where, row, "prompt", NIB_JSON_STRING, &prompt));
        NIB_TRY(need(where, row, "completion", NIB_JSON_STRING, &completion));
        NIB_TRY(pair(where, prompt, completion, has_template, pool, parsed));
        break;
    case INSTRUCTION:
        NIB_TRY(parse_instruction(where, row, has_template, pool, parsed));
        break;
    case TEXT:
        parsed->kind = NIB_ROW_TEXT;
        return need(where, row, "text", NIB_JSON_STRING, &parsed->completion);
    default:
        return parse_ids(where, row, parsed);
    }
    link_messages(parsed);
    return NIB_OK;
}

bool nib_row_is_blank(const char *line, size_t length)
{
    while (length > 0 && (line[length - 1] == ' ' || line[length - 1] == '\t' || line[length - 1] == '\r')) length--;
    return length == 0;
}
