/* A plain file's lines are given out of its mapping. A compressed one is decoded into a window that holds the unread
 * text, and grows only for a line that is longer than the window. */
#include "formats/row_reader.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#define MAX_LINE      ((size_t)64 << 20)
#define RELEASE_EVERY ((uint64_t)16 << 20) /* bytes of the file read before its pages are given back */

struct nib_row_reader {
    nib_file file;
    const char *text;     /* the mapping, or the window */
    size_t begin, end;    /* unread text is text[begin..end) */
    uint64_t text_offset; /* of text[0] in the (decoded) text */
    uint64_t line;
    uint64_t released; /* bytes of the file whose pages were given back */
    /* compressed files only */
    ZSTD_DStream *stream;
    char *window;
    size_t capacity;
    uint64_t at, frame; /* next byte of the file to decode; where its frame begins */
    bool in_frame, more_output;
};

static bool is_frame_magic(const uint8_t *bytes, uint64_t size)
{
    if (size < 4) return false;
    uint32_t magic = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return magic == ZSTD_MAGICNUMBER || (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

static bool named_zst(const char *path)
{
    size_t length = strlen(path);
    return length >= 4 && strcmp(path + length - 4, ".zst") == 0;
}

static nib_status check_frame_start(const nib_row_reader *reader)
{
    uint64_t left = reader->file.size - reader->at;
    if (left < 4)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: byte %llu: %llu bytes are left, too few for a zstd frame; is it truncated?",
                        reader->file.path, (unsigned long long)reader->at, (unsigned long long)left);
    const uint8_t *bytes = reader->file.data + reader->at;
    if (!is_frame_magic(bytes, left))
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: byte %llu: found %02x %02x %02x %02x, expected the start of a zstd frame (28 b5 2f fd)",
                        reader->file.path, (unsigned long long)reader->at, bytes[0], bytes[1], bytes[2], bytes[3]);
    return NIB_OK;
}

nib_status nib_row_reader_open(const char *path, nib_row_reader **out)
{
    nib_status status = NIB_OK;
    *out = NULL;
    nib_row_reader *reader = nib_calloc(1, sizeof *reader);
    if (reader == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path);
    NIB_TRY_GOTO(nib_file_map(&reader->file, path), done);
    reader->text = ""; /* until there is some */
    if (named_zst(path) || is_frame_magic(reader->file.data, reader->file.size)) {
        reader->stream = ZSTD_createDStream();
        if (reader->stream == NULL) {
            status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to decode it", path);
            goto done;
        }
        NIB_TRY_GOTO(check_frame_start(reader), done);
    } else if (reader->file.size > 0) {
        reader->text = (const char *)reader->file.data;
        reader->end = reader->file.size;
    }
    *out = reader;
    reader = NULL;
done:
    nib_row_reader_close(reader);
    return status;
}

/* Room for a piece of output behind the unread text, which moves to the front. */
static nib_status make_room(nib_row_reader *reader)
{
    size_t unread = reader->end - reader->begin, needed = unread + ZSTD_DStreamOutSize();
    if (reader->begin > 0) memmove(reader->window, reader->window + reader->begin, unread);
    reader->text_offset += reader->begin;
    reader->begin = 0;
    reader->end = unread;
    if (!nib_grow(&reader->window, &reader->capacity, needed, 1))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a line of over %zu bytes", reader->file.path, unread);
    reader->text = reader->window;
    return NIB_OK;
}

static nib_status decoding_failed(const nib_row_reader *reader, uint64_t at, size_t result)
{
    const char *path = reader->file.path;
    const unsigned long long frame = reader->frame;
    switch (ZSTD_getErrorCode(result)) {
    case ZSTD_error_memory_allocation:
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to decode the zstd frame that begins at byte %llu", path,
                        frame);
    case ZSTD_error_frameParameter_windowTooLarge:
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: the zstd frame that begins at byte %llu looks back further than 128 MiB; compress it "
                        "again, with --long=27 at most",
                        path, frame);
    default:
        return NIB_FAIL(NIB_ERROR_DATA, "%s: the zstd frame that begins at byte %llu is corrupt near byte %llu: %s",
                        path, frame, (unsigned long long)at, ZSTD_getErrorName(result));
    }
}

/* Decodes until there is more text; *more is false at the end of the file. */
static nib_status decode(nib_row_reader *reader, bool *more)
{
    *more = false;
    NIB_TRY(make_room(reader));
    ZSTD_outBuffer out = {reader->window + reader->end, reader->capacity - reader->end, 0};
    while (out.pos == 0) {
        if (reader->at == reader->file.size && !reader->more_output) {
            if (!reader->in_frame) return NIB_OK;
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: the zstd frame that begins at byte %llu is not complete at the end of the file (%llu "
                            "bytes); is it truncated?",
                            reader->file.path, (unsigned long long)reader->frame,
                            (unsigned long long)reader->file.size);
        }
        if (!reader->in_frame) {
            NIB_TRY(check_frame_start(reader));
            reader->frame = reader->at;
        }
        ZSTD_inBuffer in = {reader->file.data + reader->at, reader->file.size - reader->at, 0};
        size_t left = ZSTD_decompressStream(reader->stream, &out, &in);
        if (ZSTD_isError(left)) return decoding_failed(reader, reader->at + in.pos, left);
        reader->at += in.pos;
        reader->in_frame = left != 0;
        reader->more_output = left != 0 && out.pos == out.size;
    }
    reader->end += out.pos;
    *more = true;
    return NIB_OK;
}

static void release_read_pages(nib_row_reader *reader)
{
    uint64_t read = reader->stream != NULL ? reader->at : reader->begin;
    if (read - reader->released < RELEASE_EVERY) return;
    nib_file_release(&reader->file, reader->released, read - reader->released);
    reader->released = read;
}

/* Finds the end of the line at text[begin], decoding more as needed; *length excludes the newline. */
static nib_status find_line(nib_row_reader *reader, size_t *length, bool *newline)
{
    for (size_t scanned = 0;;) {
        const char *start = reader->text + reader->begin, *found = NULL;
        size_t unread = reader->end - reader->begin, searched = unread <= MAX_LINE ? unread : MAX_LINE + 1;
        if (searched > scanned) found = memchr(start + scanned, '\n', searched - scanned);
        if (found == NULL && unread > MAX_LINE)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s:%llu: the line that begins at byte %llu is longer than %zu bytes; split its row",
                            reader->file.path, (unsigned long long)reader->line + 1,
                            (unsigned long long)(reader->text_offset + reader->begin), MAX_LINE);
        *newline = found != NULL;
        *length = found != NULL ? (size_t)(found - start) : unread;
        if (found != NULL || reader->stream == NULL) return NIB_OK;
        scanned = unread;
        bool more;
        NIB_TRY(decode(reader, &more));
        if (!more) return NIB_OK;
    }
}

nib_status nib_row_reader_next(nib_row_reader *reader, const char **line, size_t *length)
{
    bool newline = false;
    size_t n = 0;
    *line = NULL;
    *length = 0;
    release_read_pages(reader);
    NIB_TRY(find_line(reader, &n, &newline));
    uint64_t offset = reader->text_offset + reader->begin;
    if (offset == 0 && n >= 3 && memcmp(reader->text, "\xef\xbb\xbf", 3) == 0) {
        reader->begin += 3;
        offset += 3;
        n -= 3;
    }
    if (n == 0 && !newline) return NIB_OK;
    const char *start = reader->text + reader->begin;
    reader->line++;
    size_t invalid = nib_utf8_invalid_at(start, n);
    if (invalid < n)
        return NIB_FAIL(NIB_ERROR_DATA, "%s:%llu: invalid UTF-8 at byte %llu of the %s (0x%02x); rows are UTF-8%s",
                        reader->file.path, (unsigned long long)reader->line, (unsigned long long)(offset + invalid),
                        reader->stream != NULL ? "decoded text" : "file", (unsigned char)start[invalid],
                        nib_utf8_advice((const char *)reader->file.data, reader->file.size));
    reader->begin += n + newline;
    *line = start;
    *length = n > 0 && start[n - 1] == '\r' ? n - 1 : n;
    return NIB_OK;
}

uint64_t nib_row_reader_line(const nib_row_reader *reader) { return reader->line; }

void nib_row_reader_close(nib_row_reader *reader)
{
    if (reader == NULL) return;
    ZSTD_freeDStream(reader->stream);
    nib_free(reader->window);
    nib_file_unmap(&reader->file);
    nib_free(reader);
}
