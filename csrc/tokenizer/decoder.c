#include "tokenizer/decoder.h"

#include "base/memory.h"
#include "base/utf8.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/normalizer.h"

#include <string.h>

#define REPLACEMENT_CHARACTER "\xef\xbf\xbd"

/* Tokens between two steps: texts one after another. */
typedef struct {
    nib_buffer bytes;
    size_t *ends;
    size_t count, capacity;
    bool failed;
} pieces;

void nib_decoder_free(nib_decoder *decoder)
{
    for (size_t i = 0; i < decoder->count; i++) {
        nib_free(decoder->steps[i].pattern);
        nib_free(decoder->steps[i].content);
    }
    decoder->count = 0;
}

static void end_piece(pieces *p)
{
    if (p->bytes.failed || !nib_grow(&p->ends, &p->capacity, p->count + 1, sizeof *p->ends))
        p->failed = true;
    else
        p->ends[p->count++] = p->bytes.length;
}

/* Bytes of a well-formed sequence's beginning at text, or 1: what one U+FFFD stands for (Unicode 15, section 3.9,
 * "Substitution of Maximal Subparts"). */
static size_t maximal_subpart(const char *text, size_t length)
{
    unsigned char first = (unsigned char)text[0];
    size_t whole = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    char trial[4];
    for (size_t n = whole - 1; n > 1; n--) {
        if (n > length) continue;
        memcpy(trial, text, n); /* only the second byte's range depends on the first: 0x80 completes what is left */
        memset(trial + n, 0x80, whole - n);
        if (nib_utf8_invalid_at(trial, whole) == whole) return n;
    }
    return 1;
}

static void append_lossy(nib_buffer *out, const char *text, size_t length)
{
    while (length > 0) {
        size_t valid = nib_utf8_invalid_at(text, length);
        nib_buffer_append(out, text, valid);
        text += valid;
        length -= valid;
        if (length == 0) return;
        size_t bad = maximal_subpart(text, length);
        nib_buffer_text(out, REPLACEMENT_CHARACTER);
        text += bad;
        length -= bad;
    }
}

static void decode_bytes(const nib_piece *in, size_t count, pieces *out)
{
    nib_buffer bytes = {0};
    for (size_t i = 0; i < count; i++)
        if (!nib_alphabet_to_bytes(&bytes, in[i].text, in[i].length)) /* an added token outside the alphabet */
            nib_buffer_append(&bytes, in[i].text, in[i].length);
    append_lossy(&out->bytes, bytes.data, bytes.length);
    out->failed |= bytes.failed;
    nib_buffer_free(&bytes);
    end_piece(out);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int byte_of_piece(nib_piece piece)
{
    if (piece.length != 6 || memcmp(piece.text, "<0x", 3) != 0 || piece.text[5] != '>') return -1;
    int high = hex_digit(piece.text[3]), low = hex_digit(piece.text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static void fall_back(const nib_piece *in, size_t count, pieces *out)
{
    for (size_t i = 0; i < count;) {
        size_t start = out->bytes.length, run = 0;
        for (int byte; i + run < count && (byte = byte_of_piece(in[i + run])) >= 0; run++)
            nib_buffer_char(&out->bytes, (char)byte);
        if (run == 0) {
            nib_buffer_append(&out->bytes, in[i].text, in[i].length);
            end_piece(out);
            i++;
            continue;
        }
        i += run;
        if (!out->bytes.failed && nib_utf8_invalid_at(out->bytes.data + start, run) == run) {
            end_piece(out);
            continue;
        }
        out->bytes.length = start;
        for (; run > 0; run--) {
            nib_buffer_text(&out->bytes, REPLACEMENT_CHARACTER);
            end_piece(out);
        }
    }
}

static nib_piece strip(const nib_decoder_step *step, nib_piece piece)
{
    size_t n = strlen(step->content);
    for (uint32_t i = 0; i < step->left && piece.length >= n && memcmp(piece.text, step->content, n) == 0; i++) {
        piece.text += n;
        piece.length -= n;
    }
    for (uint32_t i = 0; i < step->right && piece.length >= n; i++) {
        if (memcmp(piece.text + piece.length - n, step->content, n) != 0) break;
        piece.length -= n;
    }
    return piece;
}

static void run_step(const nib_decoder_step *step, const nib_piece *in, size_t count, pieces *out)
{
    switch (step->kind) {
    case NIB_DECODE_BYTE_LEVEL:
        decode_bytes(in, count, out);
        return;
    case NIB_DECODE_BYTE_FALLBACK:
        fall_back(in, count, out);
        return;
    case NIB_DECODE_FUSE:
        for (size_t i = 0; i < count; i++) nib_buffer_append(&out->bytes, in[i].text, in[i].length);
        end_piece(out);
        return;
    case NIB_DECODE_REPLACE:
    case NIB_DECODE_METASPACE:
    case NIB_DECODE_STRIP:
        break;
    }
    for (size_t i = 0; i < count; i++) {
        nib_piece piece = in[i];
        if (step->kind == NIB_DECODE_STRIP) {
            piece = strip(step, piece);
            nib_buffer_append(&out->bytes, piece.text, piece.length);
        } else {
            size_t n = strlen(step->pattern);
            bool prefix = step->kind == NIB_DECODE_METASPACE && step->prepended && i == 0 && piece.length >= n &&
                          memcmp(piece.text, step->pattern, n) == 0;
            if (prefix) piece = (nib_piece){piece.text + n, piece.length - n};
            nib_replace(&out->bytes, piece.text, piece.length, step->pattern, step->content);
        }
        end_piece(out);
    }
}

nib_status nib_decode(const nib_decoder *decoder, const nib_piece *in, size_t count, nib_buffer *text)
{
    pieces now = {0};
    nib_status status = NIB_OK;
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && decoder->count == 0) nib_buffer_char(&now.bytes, ' ');
        nib_buffer_append(&now.bytes, in[i].text, in[i].length);
        end_piece(&now);
    }
    for (size_t step = 0; step < decoder->count && !now.failed; step++) {
        pieces out = {0};
        nib_piece *views = nib_calloc(now.count, sizeof *views);
        for (size_t i = 0; views != NULL && i < now.count; i++) {
            size_t start = i > 0 ? now.ends[i - 1] : 0;
            /* Without any byte there is no buffer: an empty text stands for it. */
            views[i] = (nib_piece){now.bytes.data != NULL ? now.bytes.data + start : "", now.ends[i] - start};
        }
        if (views != NULL)
            run_step(&decoder->steps[step], views, now.count, &out);
        else
            out.failed = true;
        nib_free(views);
        nib_buffer_free(&now.bytes);
        nib_free(now.ends);
        now = out;
    }
    nib_buffer_append(text, now.bytes.data, now.bytes.length);
    if (now.failed || now.bytes.failed || text->failed)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to decode %zu tokens", count);
    nib_buffer_free(&now.bytes);
    nib_free(now.ends);
    return status;
}
