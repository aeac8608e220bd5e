/* A line of input with editing and history: what a terminal in raw mode sends goes in byte by byte, and the text with a
 * cursor comes out. No terminal is touched here (terminal.h reads and draws), so that all of it can be tested.
 *
 * Keys: arrows, Home, End, Delete, Backspace, Ctrl-A E B F D H K U W P N, Alt-B F, Ctrl-arrows. A bracketed paste is
 * taken as it is, line ends included. The cursor moves by grapheme clusters (Unicode, UAX #29). */
#ifndef NIB_LINE_EDITOR_H
#define NIB_LINE_EDITOR_H

#include "base/buffer.h"

#include <stdint.h>

typedef enum {
    NIB_EDIT_MORE,      /* go on */
    NIB_EDIT_LINE,      /* Enter */
    NIB_EDIT_INTERRUPT, /* Ctrl-C */
    NIB_EDIT_END,       /* Ctrl-D on an empty line */
    NIB_EDIT_CLEAR      /* Ctrl-L: go on, after the screen is cleared */
} nib_edit_result;

typedef struct {
    char **lines;
    size_t count, capacity;
} nib_edit_history;

typedef struct {
    nib_buffer text; /* UTF-8, always well-formed */
    size_t cursor;   /* byte offset, at a grapheme boundary */
    nib_edit_history history;
    size_t shown;        /* history line in the text; history.count: a new one */
    nib_buffer draft;    /* the new line while an old one is shown */
    uint8_t pending[32]; /* an escape sequence or character begun */
    size_t pending_count;
    bool pasting;
} nib_line_editor; /* zero-initialise; free with nib_line_editor_free */

/* Empties the line; the history stays. */
void nib_line_editor_begin(nib_line_editor *editor);
nib_edit_result nib_line_editor_feed(nib_line_editor *editor, uint8_t byte);
/* Appends the line to the history, unless it is empty or the same as the last. */
void nib_line_editor_remember(nib_line_editor *editor);
void nib_line_editor_free(nib_line_editor *editor);

/* Where a text ends on a terminal `columns` wide that begins at *column of row *row: a character that does not fit the
 * row goes to the next. Line ends show as one column. */
void nib_line_extent(const char *text, size_t length, int columns, int *row, int *column);

#endif
