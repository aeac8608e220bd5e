#include "token_stream.h"
#include "base/memory.h"

#include <string.h>

static nib_status decode(const nib_token_stream *stream, size_t end, nib_buffer *text)
{
    nib_buffer_clear(text);
    NIB_TRY(nib_tokenizer_decode(stream->tokenizer, stream->ids.ids + stream->begin, end - stream->begin, true, text));
    return text->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for generated text") : NIB_OK;
}

/* Appends what the tokens after `emitted` add, unless it ends inside a character and `certain` is asked for. */
static nib_status emit(nib_token_stream *stream, bool certain, nib_buffer *text)
{
    static const char replacement[] = "\xef\xbf\xbd";
    NIB_TRY(decode(stream, stream->emitted, &stream->before));
    NIB_TRY(decode(stream, stream->ids.count, &stream->now));
    size_t had = stream->before.length, has = stream->now.length;
    if (has <= had && certain) return NIB_OK;
    if (certain && has >= 3 && memcmp(stream->now.data + has - 3, replacement, 3) == 0) return NIB_OK;
    if (has > had) nib_buffer_append(text, stream->now.data + had, has - had);
    stream->begin = stream->emitted;
    stream->emitted = stream->ids.count;
    return text->failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for generated text") : NIB_OK;
}

nib_status nib_token_stream_put(nib_token_stream *stream, int32_t id, nib_buffer *text)
{
    nib_token_list *ids = &stream->ids;
    if (!nib_grow(&ids->ids, &ids->capacity, ids->count + 1, sizeof id))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for generated tokens");
    ids->ids[ids->count++] = id;
    return emit(stream, true, text);
}

nib_status nib_token_stream_end(nib_token_stream *stream, nib_buffer *text)
{
    return stream->ids.count > stream->emitted ? emit(stream, false, text) : NIB_OK;
}

void nib_token_stream_free(nib_token_stream *stream)
{
    nib_token_list_free(&stream->ids);
    nib_buffer_free(&stream->before);
    nib_buffer_free(&stream->now);
}
