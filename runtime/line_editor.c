#include "line_editor.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <string.h>
#include <utf8proc.h>

enum { CONTROL_A = 1, CONTROL_B, CONTROL_C, CONTROL_D, CONTROL_E, CONTROL_F };
enum { CONTROL_H = 8, CONTROL_J = 10, CONTROL_K, CONTROL_L, CONTROL_M, CONTROL_N, CONTROL_P = 16 };
enum { CONTROL_U = 21, CONTROL_W = 23, ESCAPE = 27, RUBOUT = 127 };

static void insert(nib_line_editor *e, const void *bytes, size_t length)
{
    size_t tail = e->text.length - e->cursor;
    nib_buffer_append(&e->text, bytes, length);
    if (e->text.failed) { /* no memory: the key does nothing */
        e->text.failed = false;
        return;
    }
    memmove(e->text.data + e->cursor + length, e->text.data + e->cursor, tail);
    memcpy(e->text.data + e->cursor, bytes, length);
    e->cursor += length;
}

static void erase(nib_line_editor *e, size_t first, size_t end)
{
    if (first == end) return;
    memmove(e->text.data + first, e->text.data + end, e->text.length - end + 1);
    e->text.length -= end - first;
    e->cursor = first;
}

/* The grapheme boundary after (or the last one before) the cursor; the text's ends where there is none. */
static size_t boundary(const nib_line_editor *e, bool forward)
{
    utf8proc_int32_t state = 0;
    size_t last = 0, at = 0;
    uint32_t before = 0, c;
    while (at < e->text.length) {
        size_t size = nib_utf8_decode(e->text.data + at, e->text.length - at, &c);
        bool breaks = at > 0 && utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)c, &state);
        if (breaks && forward && at > e->cursor) return at;
        if (!forward && at >= e->cursor) return last;
        if (breaks || at == 0) last = at;
        before = c;
        at += size;
    }
    return forward ? e->text.length : last;
}

static bool is_blank(const nib_line_editor *e, size_t at)
{
    return e->text.data[at] == ' ' || e->text.data[at] == '\n';
}

static size_t word_start(const nib_line_editor *e)
{
    size_t at = e->cursor;
    while (at > 0 && is_blank(e, at - 1)) at--;
    while (at > 0 && !is_blank(e, at - 1)) at--;
    return at;
}

static size_t word_end(const nib_line_editor *e)
{
    size_t at = e->cursor;
    while (at < e->text.length && is_blank(e, at)) at++;
    while (at < e->text.length && !is_blank(e, at)) at++;
    return at;
}

static void set_text(nib_line_editor *e, const char *text)
{
    nib_buffer_clear(&e->text);
    nib_buffer_text(&e->text, text);
    e->cursor = e->text.length;
}

static void show_history(nib_line_editor *e, size_t line)
{
    if (e->shown == e->history.count) {
        nib_buffer_clear(&e->draft);
        nib_buffer_append(&e->draft, e->text.data, e->text.length);
    }
    e->shown = line;
    if (line < e->history.count)
        set_text(e, e->history.lines[line]);
    else
        set_text(e, e->draft.length > 0 ? e->draft.data : "");
}

static void older(nib_line_editor *e)
{
    if (e->shown > 0) show_history(e, e->shown - 1);
}

static void newer(nib_line_editor *e)
{
    if (e->shown < e->history.count) show_history(e, e->shown + 1);
}

static nib_edit_result control(nib_line_editor *e, uint8_t key)
{
    switch (key) {
    case CONTROL_A:
        e->cursor = 0;
        break;
    case CONTROL_B:
        e->cursor = boundary(e, false);
        break;
    case CONTROL_C:
        return NIB_EDIT_INTERRUPT;
    case CONTROL_D:
        if (e->text.length == 0) return NIB_EDIT_END;
        erase(e, e->cursor, boundary(e, true));
        break;
    case CONTROL_E:
        e->cursor = e->text.length;
        break;
    case CONTROL_F:
        e->cursor = boundary(e, true);
        break;
    case CONTROL_H:
    case RUBOUT:
        erase(e, boundary(e, false), e->cursor);
        break;
    case CONTROL_J:
    case CONTROL_M:
        return NIB_EDIT_LINE;
    case CONTROL_K:
        erase(e, e->cursor, e->text.length);
        break;
    case CONTROL_L:
        return NIB_EDIT_CLEAR;
    case CONTROL_N:
        newer(e);
        break;
    case CONTROL_P:
        older(e);
        break;
    case CONTROL_U:
        erase(e, 0, e->cursor);
        break;
    case CONTROL_W:
        erase(e, word_start(e), e->cursor);
        break;
    default:
        break;
    }
    return NIB_EDIT_MORE;
}

/* A whole escape sequence, after the escape: xterm's names, with CSI and SS3 alike. Unknown ones do nothing. */
static void escape_sequence(nib_line_editor *e, const char *sequence)
{
    static const struct {
        const char *sequence;
        uint8_t key;
    } keys[] = {{"[A", CONTROL_P}, {"OA", CONTROL_P}, {"[B", CONTROL_N},  {"OB", CONTROL_N},
                {"[C", CONTROL_F}, {"OC", CONTROL_F}, {"[D", CONTROL_B},  {"OD", CONTROL_B},
                {"[H", CONTROL_A}, {"OH", CONTROL_A}, {"[1~", CONTROL_A}, {"[7~", CONTROL_A},
                {"[F", CONTROL_E}, {"OF", CONTROL_E}, {"[4~", CONTROL_E}, {"[8~", CONTROL_E}};
    if (strcmp(sequence, "[200~") == 0) e->pasting = true;
    if (strcmp(sequence, "[3~") == 0) erase(e, e->cursor, boundary(e, true));
    if (strcmp(sequence, "b") == 0 || strcmp(sequence, "[1;5D") == 0) e->cursor = word_start(e);
    if (strcmp(sequence, "f") == 0 || strcmp(sequence, "[1;5C") == 0) e->cursor = word_end(e);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(sequence, keys[i].sequence) == 0) control(e, keys[i].key);
}

/* ESC, then one byte; or `[` and parameters up to a final byte; or `O` and one byte. */
static bool sequence_complete(const uint8_t *bytes, size_t count)
{
    if (count < 2) return false;
    if (bytes[1] == 'O') return count == 3;
    if (bytes[1] != '[') return true;
    return count > 2 && bytes[count - 1] >= 0x40 && bytes[count - 1] <= 0x7e;
}

static void feed_escape(nib_line_editor *e)
{
    if (!sequence_complete(e->pending, e->pending_count)) {
        if (e->pending_count + 1 == sizeof e->pending) e->pending_count = 0; /* no key sends that much */
        return;
    }
    e->pending[e->pending_count] = 0;
    e->pending_count = 0;
    escape_sequence(e, (const char *)e->pending + 1);
}

/* A character, once all its bytes are there; bytes that are no UTF-8 are dropped. */
static void feed_text(nib_line_editor *e)
{
    uint8_t last = e->pending[e->pending_count - 1];
    if (e->pending_count > 1 && (last & 0xc0) != 0x80) { /* the one before is cut off */
        e->pending[0] = last;
        e->pending_count = 1;
    }
    uint8_t lead = e->pending[0];
    size_t size = lead < 0xc2 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (e->pending_count < size) return;
    if (nib_utf8_invalid_at((const char *)e->pending, size) == size) insert(e, e->pending, size);
    e->pending_count = 0;
}

/* In a paste control characters are text: line ends stay, tabs become blanks, others are dropped. */
static void feed_pasted(nib_line_editor *e, uint8_t byte)
{
    static const char end[] = "\x1b[201~";
    e->pending[e->pending_count++] = byte;
    if (e->pending[0] == ESCAPE) {
        if (memcmp(e->pending, end, e->pending_count) != 0) e->pending_count = byte == ESCAPE ? 1 : 0;
        if (e->pending_count == sizeof end - 1) {
            e->pasting = false;
            e->pending_count = 0;
        }
    } else if (byte < 0x20 || byte == RUBOUT) {
        e->pending_count = 0;
        if (byte == '\r' || byte == '\n') insert(e, "\n", 1);
        if (byte == '\t') insert(e, " ", 1);
    } else {
        feed_text(e);
    }
}

nib_edit_result nib_line_editor_feed(nib_line_editor *e, uint8_t byte)
{
    if (e->pasting) {
        feed_pasted(e, byte);
        return NIB_EDIT_MORE;
    }
    bool in_sequence = e->pending_count > 0 && e->pending[0] == ESCAPE;
    if (!in_sequence && (byte < 0x20 || byte == RUBOUT)) {
        e->pending_count = 0;
        if (byte != ESCAPE) return control(e, byte);
    }
    e->pending[e->pending_count++] = byte;
    if (e->pending[0] == ESCAPE)
        feed_escape(e);
    else
        feed_text(e);
    return NIB_EDIT_MORE;
}

void nib_line_editor_begin(nib_line_editor *e)
{
    set_text(e, "");
    e->shown = e->history.count;
    e->pending_count = 0;
    e->pasting = false;
}

void nib_line_editor_remember(nib_line_editor *e)
{
    nib_edit_history *h = &e->history;
    if (e->text.length == 0 || (h->count > 0 && strcmp(h->lines[h->count - 1], e->text.data) == 0)) return;
    char *copy = nib_calloc(e->text.length + 1, 1);
    if (copy == NULL || !nib_grow(&h->lines, &h->capacity, h->count + 1, sizeof *h->lines)) {
        nib_free(copy); /* a history that forgets is no reason to stop */
        return;
    }
    memcpy(copy, e->text.data, e->text.length);
    h->lines[h->count++] = copy;
}

void nib_line_editor_free(nib_line_editor *e)
{
    for (size_t i = 0; i < e->history.count; i++) nib_free(e->history.lines[i]);
    nib_free(e->history.lines);
    nib_buffer_free(&e->text);
    nib_buffer_free(&e->draft);
    *e = (nib_line_editor){0};
}

void nib_line_extent(const char *text, size_t length, int columns, int *row, int *column)
{
    for (size_t at = 0; at < length;) {
        uint32_t c;
        at += nib_utf8_decode(text + at, length - at, &c);
        int width = c == '\n' ? 1 : utf8proc_charwidth((utf8proc_int32_t)c);
        if (*column + width > columns) {
            ++*row;
            *column = 0;
        }
        *column += width;
    }
}
