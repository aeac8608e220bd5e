#include "data/row_encoder.h"

#include "base/sha256.h"

#include <string.h>

/* 2024-07-26 00:00 UTC: the day that Llama 3's templates fall back to when there is no clock. */
#define TEMPLATE_CLOCK 1721952000

static nib_status encode(nib_row_encoder *encoder, const char *text, size_t length, bool add_special,
                         nib_token_list *list)
{
    list->count = 0;
    return nib_tokenizer_encode(encoder->options->tokenizer, text, length,
                                (nib_encode_options){.add_special = add_special, .parse_special = true}, list);
}

static size_t common_tokens(const nib_token_list *a, const nib_token_list *b)
{
    size_t n = 0;
    while (n < a->count && n < b->count && a->ids[n] == b->ids[n]) n++;
    return n;
}

static size_t common_bytes(const nib_buffer *a, const nib_buffer *b)
{
    size_t n = 0;
    while (n < a->length && n < b->length && a->data[n] == b->data[n]) n++;
    return n;
}

static nib_status clear_mask(nib_row_encoder *encoder, const char *where)
{
    if (!nib_grow(&encoder->mask, &encoder->mask_capacity, encoder->tokens.count + 1, 1))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for %zu tokens", where, encoder->tokens.count);
    memset(encoder->mask, 0, encoder->tokens.count + 1);
    return NIB_OK;
}

/* Supervises tokens [begin, end); the first token of a sample has nothing to be predicted from. */
static void supervise(nib_row_encoder *encoder, size_t begin, size_t end)
{
    for (size_t i = begin > 0 ? begin : 1; i < end; i++) encoder->mask[i] = 1;
}

/* Hands over the first `length` tokens. */
static nib_status finish(nib_row_encoder *encoder, const char *where, size_t length, size_t prompt_length,
                         const nib_json *reference)
{
    const int32_t *ids = encoder->tokens.ids;
    int32_t bos = encoder->options->tokenizer == NULL ? -1 : nib_tokenizer_bos(encoder->options->tokenizer);
    if (length >= 2 && bos >= 0 && ids[0] == bos && ids[1] == bos)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: the row begins with %s twice: once from the tokenizer or template, once in "
                        "its text; remove it from the text",
                        where, nib_tokenizer_text(encoder->options->tokenizer, bos));
    if (memchr(encoder->mask, 1, length) == NULL)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: nothing in this row is supervised (%zu tokens), so it would teach nothing; "
                        "it needs an assistant turn, a completion, or labels other than -100; else remove it",
                        where, length);
    nib_draft draft = {ids, encoder->mask, length, prompt_length, reference, encoder->weight};
    return encoder->sink(encoder->sink_context, &draft);
}

static nib_status append_eos(nib_row_encoder *encoder, const char *where)
{
    nib_token_list *list = &encoder->tokens;
    int32_t eos = nib_tokenizer_eos(encoder->options->tokenizer);
    if (eos < 0 || (list->count > 0 && list->ids[list->count - 1] == eos)) return NIB_OK;
    if (!nib_grow(&list->ids, &list->capacity, list->count + 1, sizeof *list->ids))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for %zu tokens", where, list->count);
    list->ids[list->count++] = eos;
    return NIB_OK;
}

/* The whole text is supervised, the end of text with it. */
static nib_status encode_text(nib_row_encoder *encoder, const char *where, const nib_parsed_row *row)
{
    NIB_TRY(encode(encoder, row->completion->string, row->completion->length, true, &encoder->tokens));
    NIB_TRY(append_eos(encoder, where));
    NIB_TRY(clear_mask(encoder, where));
    supervise(encoder, 0, encoder->tokens.count);
    return finish(encoder, where, encoder->tokens.count, 0, NULL);
}

static nib_status encode_prompt(nib_row_encoder *encoder, const char *where, const nib_parsed_row *row)
{
    nib_buffer *whole = &encoder->whole;
    nib_buffer_clear(whole);
    nib_buffer_append(whole, row->prompt->string, row->prompt->length);
    nib_buffer_append(whole, row->completion->string, row->completion->length);
    if (whole->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the row", where);
    NIB_TRY(encode(encoder, row->prompt->string, row->prompt->length, true, &encoder->part));
    NIB_TRY(encode(encoder, whole->length == 0 ? "" : whole->data, whole->length, true, &encoder->tokens));
    size_t prompt_length = common_tokens(&encoder->tokens, &encoder->part);
    NIB_TRY(append_eos(encoder, where));
    NIB_TRY(clear_mask(encoder, where));
    supervise(encoder, encoder->options->train_on_all ? 0 : prompt_length, encoder->tokens.count);
    return finish(encoder, where, encoder->tokens.count, prompt_length, row->completion);
}

static nib_status encode_ids(nib_row_encoder *encoder, const char *where, const nib_parsed_row *row)
{
    nib_token_list *list = &encoder->tokens;
    const nib_json *id = row->ids->first, *label = row->labels->first;
    if (!nib_grow(&list->ids, &list->capacity, row->ids->length + 1, sizeof *list->ids))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for %zu tokens", where, row->ids->length);
    list->count = row->ids->length;
    NIB_TRY(clear_mask(encoder, where));
    for (size_t i = 0; i < list->count; i++, id = id->next, label = label->next) {
        if (!id->is_integer || id->integer < 0 || id->integer > INT32_MAX)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: input_ids[%zu] is no token id", where, i);
        list->ids[i] = (int32_t)id->integer;
        if (!label->is_integer || (label->integer != -100 && label->integer != id->integer))
            return NIB_FAIL(NIB_ERROR_DATA, "%s: labels[%zu] is neither -100 nor input_ids[%zu] (%d)", where, i, i,
                            list->ids[i]);
        if (i > 0) encoder->mask[i] = label->integer != -100 || encoder->options->train_on_all;
    }
    return finish(encoder, where, list->count, 0, NULL);
}

/* The first `count` messages into buffer. */
static nib_status render(nib_row_encoder *encoder, const char *where, nib_parsed_row *row, int count, bool generation,
                         nib_buffer *buffer)
{
    nib_json list = {.kind = NIB_JSON_ARRAY, .length = (size_t)count, .first = count > 0 ? row->message : NULL};
    nib_json *rest = NULL;
    nib_chat_inputs inputs = {.messages = &list,
                              .tools = row->tools,
                              .bos_token = encoder->options->bos_token,
                              .eos_token = encoder->options->eos_token,
                              .add_generation_prompt = generation,
                              .now = TEMPLATE_CLOCK};
    if (count > 0) {
        rest = row->message[count - 1].next;
        row->message[count - 1].next = NULL;
    }
    nib_buffer_clear(buffer);
    nib_status status = nib_chat_template_render(encoder->options->chat_template, &inputs, buffer);
    if (count > 0) row->message[count - 1].next = rest;
    if (status == NIB_OK && (buffer->failed || buffer->data == NULL)) {
        nib_buffer_text(buffer, ""); /* an empty rendering still is a string */
        if (buffer->failed) status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the rendered conversation");
    }
    if (status != NIB_OK)
        return nib_error_context(status, "%s: rendering %d of %d messages%s", where, count, row->messages,
                                 generation ? " with the generation prompt" : "");
    return NIB_OK;
}

static bool is_assistant(const nib_json *message)
{
    const nib_json *role = nib_json_get(message, "role");
    return strcmp(role->string, "assistant") == 0 || strcmp(role->string, "model") == 0;
}

/* Bytes at the end of the rendering `turn` that stand behind the content of its last message, found by rendering it
 * once more with a marker as content; -1 if the content is no string or the template does not keep it in one piece. */
static nib_status tail_length(nib_row_encoder *encoder, const char *where, nib_parsed_row *row, int message,
                              const nib_buffer *turn, int64_t *length)
{
    static const char marker[] = "content-of-the-last-turn";
    nib_json *content = (nib_json *)nib_json_get(&row->message[message], "content");
    *length = -1;
    if (!nib_json_is(content, NIB_JSON_STRING)) return NIB_OK;
    nib_json kept = *content;
    content->string = marker;
    content->length = sizeof marker - 1;
    nib_status status = render(encoder, where, row, message + 1, false, &encoder->prompt);
    *content = kept;
    if (status != NIB_OK) return status;

    const char *at = encoder->prompt.data, *end = at + encoder->prompt.length, *tail = NULL;
    while ((at = memmem(at, (size_t)(end - at), marker, sizeof marker - 1)) != NULL) tail = at += sizeof marker - 1;
    size_t n = tail == NULL ? 0 : (size_t)(end - tail);
    if (tail != NULL && n <= turn->length && memcmp(tail, turn->data + turn->length - n, n) == 0) *length = (int64_t)n;
    return NIB_OK;
}

static size_t count_special(const nib_row_encoder *encoder)
{
    size_t n = 0;
    for (size_t i = 0; i < encoder->part.count; i++)
        n += nib_tokenizer_is_special(encoder->options->tokenizer, encoder->part.ids[i]);
    return n;
}

/* Which special token of the turn's part, the rendering from `begin` on, ends it, counted from 1; 0: none. */
static nib_status terminator_ordinal(nib_row_encoder *encoder, const char *where, nib_parsed_row *row, int message,
                                     const nib_buffer *turn, size_t begin, size_t *ordinal)
{
    int64_t tail;
    NIB_TRY(encode(encoder, turn->data + begin, turn->length - begin, false, &encoder->part));
    size_t all = count_special(encoder);
    NIB_TRY(tail_length(encoder, where, row, message, turn, &tail));
    *ordinal = all;
    if (tail < 0) return NIB_OK;
    NIB_TRY(encode(encoder, turn->data + turn->length - tail, (size_t)tail, false, &encoder->part));
    size_t behind = count_special(encoder);
    *ordinal = behind == 0 || behind > all ? 0 : all - behind + 1;
    return NIB_OK;
}

static void remember_terminator(nib_row_encoder *encoder, int32_t id)
{
    for (int i = 0; i < encoder->terminators; i++)
        if (encoder->terminator[i] == id) return;
    if (encoder->terminators < NIB_MAX_TERMINATORS) encoder->terminator[encoder->terminators++] = id;
}

/* Byte of the rendering `turn` of messages [0, message] where the assistant's part begins. */
static nib_status turn_begin(nib_row_encoder *encoder, const char *where, nib_parsed_row *row, int message,
                             const nib_buffer *turn, size_t *begin)
{
    NIB_TRY(render(encoder, where, row, message, true, &encoder->prompt));
    *begin = common_bytes(&encoder->prompt, turn);
    if (*begin == encoder->prompt.length) return NIB_OK;
    NIB_TRY(render(encoder, where, row, message, false, &encoder->prompt));
    if (common_bytes(&encoder->prompt, turn) == encoder->prompt.length && *begin > encoder->prompt.length)
        return NIB_OK;
    return NIB_FAIL(
        NIB_ERROR_DATA,
        "%s: the chat template writes the conversation before messages[%d] differently once "
        "that turn is there (they part at byte %zu), so the turn cannot be told from its prompt; give another "
        "template (data.chat_template), or rows of input_ids and labels",
        where, message, *begin);
}

/* Supervises one turn in encoder->tokens, the tokens of a text that begins with the rendering `turn`.
 * first, end: its tokens, terminator included. */
static nib_status supervise_turn(nib_row_encoder *encoder, const char *where, nib_parsed_row *row, int message,
                                 const nib_buffer *turn, size_t *first, size_t *end)
{
    size_t begin, ordinal, token;
    NIB_TRY(turn_begin(encoder, where, row, message, turn, &begin));
    NIB_TRY(encode(encoder, turn->data, begin, false, &encoder->part));
    *first = common_tokens(&encoder->tokens, &encoder->part);
    NIB_TRY(terminator_ordinal(encoder, where, row, message, turn, begin, &ordinal));
    for (token = *first; token < encoder->tokens.count && ordinal > 0; token++)
        ordinal -= nib_tokenizer_is_special(encoder->options->tokenizer, encoder->tokens.ids[token]);
    if (token == *first || ordinal > 0)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: the chat template writes no special token behind the assistant's turn "
                        "(messages[%d]), so the model would never learn to stop; give a template that ends the turn "
                        "(data.chat_template)",
                        where, message);
    *end = token;
    supervise(encoder, *first, *end);
    remember_terminator(encoder, encoder->tokens.ids[*end - 1]);
    return NIB_OK;
}

static const nib_json *reference_of(const nib_parsed_row *row, int message)
{
    const nib_json *content = nib_json_get(&row->message[message], "content");
    return nib_json_is(content, NIB_JSON_STRING) ? content : NULL;
}

/* Is turn `message` of the whole conversation written there as it was when it was the last? Its rendering is left in
 * encoder->turn. */
static nib_status stands_in_whole(nib_row_encoder *encoder, const char *where, nib_parsed_row *row, int message,
                                  bool *stands)
{
    NIB_TRY(render(encoder, where, row, message + 1, false, &encoder->turn));
    *stands = common_bytes(&encoder->turn, &encoder->whole) == encoder->turn.length;
    return NIB_OK;
}

/* A turn that the whole conversation does not hold as it was generated: a sample of its own. */
static nib_status encode_turn_alone(nib_row_encoder *encoder, const char *where, nib_parsed_row *row, int message)
{
    size_t first, end;
    NIB_TRY(encode(encoder, encoder->turn.data, encoder->turn.length, false, &encoder->tokens));
    NIB_TRY(clear_mask(encoder, where));
    NIB_TRY(supervise_turn(encoder, where, row, message, &encoder->turn, &first, &end));
    return finish(encoder, where, end, first, reference_of(row, message));
}

static nib_status encode_conversation(nib_row_encoder *encoder, const char *where, nib_parsed_row *row)
{
    bool all = encoder->options->train_on_all;
    int last = row->messages - 1;
    size_t first = 0, end = 0;
    if (encoder->options->chat_template == NULL)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: the row is a conversation and the model has no chat template; give one "
                        "(data.chat_template)",
                        where);
    while (last >= 0 && !is_assistant(&row->message[last])) last--;
    if (last < 0 && !all)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: nothing in this row is supervised: none of its %d messages is from the "
                        "assistant; remove it, or set data.train_on to \"all\"",
                        where, row->messages);

    NIB_TRY(render(encoder, where, row, all ? row->messages : last + 1, false, &encoder->whole));
    for (int i = 0; i < last && !all; i++) {
        bool stands;
        if (!is_assistant(&row->message[i])) continue;
        NIB_TRY(stands_in_whole(encoder, where, row, i, &stands));
        if (!stands) NIB_TRY(encode_turn_alone(encoder, where, row, i));
    }
    NIB_TRY(encode(encoder, encoder->whole.data, encoder->whole.length, false, &encoder->tokens));
    NIB_TRY(clear_mask(encoder, where));
    for (int i = 0; i <= last; i++) {
        bool stands = true;
        if (!is_assistant(&row->message[i])) continue;
        NIB_TRY(stands_in_whole(encoder, where, row, i, &stands));
        if (stands) NIB_TRY(supervise_turn(encoder, where, row, i, &encoder->turn, &first, &end));
    }
    if (all) {
        end = encoder->tokens.count;
        supervise(encoder, 0, end);
    }
    return finish(encoder, where, end, first, last < 0 ? NULL : reference_of(row, last));
}

nib_status nib_row_encode(nib_row_encoder *encoder, const char *where, nib_parsed_row *row)
{
    if (row->kind == NIB_ROW_IDS) return encode_ids(encoder, where, row);
    if (encoder->options->tokenizer == NULL)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: the row is text and the model has no tokenizer.json; give one "
                        "(\"tokenizer\"), or rows of input_ids and labels",
                        where);
    switch (row->kind) {
    case NIB_ROW_TEXT:
        return encode_text(encoder, where, row);
    case NIB_ROW_PROMPT:
        return encode_prompt(encoder, where, row);
    default:
        return encode_conversation(encoder, where, row);
    }
}

nib_status nib_row_encode_line(nib_row_encoder *encoder, const char *where, const char *line, size_t length)
{
    nib_pool pool = {.limit = NIB_MAX_ROW_MEMORY};
    nib_json *root = NULL;
    nib_parsed_row row;
    nib_status status;
    NIB_TRY_GOTO(nib_row_read(where, line, length, &pool, &root), done);
    NIB_TRY_GOTO(nib_row_parse(where, root, encoder->options->chat_template != NULL, &pool, &row), done);
    encoder->weight = row.weight;
    status = nib_row_encode(encoder, where, &row);
done:
    nib_pool_free(&pool);
    return status;
}

uint64_t nib_draft_fingerprint(const nib_draft *draft)
{
    nib_sha256 hash;
    uint8_t digest[32];
    uint64_t value;
    nib_sha256_begin(&hash);
    nib_sha256_update(&hash, draft->ids, draft->length * sizeof *draft->ids);
    nib_sha256_end(&hash, digest);
    memcpy(&value, digest, sizeof value);
    return value;
}

void nib_row_encoder_free(nib_row_encoder *encoder)
{
    nib_buffer_free(&encoder->whole);
    nib_buffer_free(&encoder->turn);
    nib_buffer_free(&encoder->prompt);
    nib_token_list_free(&encoder->tokens);
    nib_token_list_free(&encoder->part);
    nib_free(encoder->mask);
    *encoder = (nib_row_encoder){0};
}
