/* Reads edited lines from the terminal on standard input, drawing them on standard output. */
#ifndef NIB_TERMINAL_H
#define NIB_TERMINAL_H

#include "base/status.h"
#include "line_editor.h"

/* Both ends are terminals that can be drawn on. */
bool nib_terminal_can_edit(void);

/* From here on keys are not echoed by the terminal, but drawn where a line is edited: what is typed while an answer is
 * printed waits for the next line. SIGHUP, SIGINT, SIGQUIT and SIGTERM put the terminal back before they end the
 * program. NIB_ERROR_IO. */
nib_status nib_terminal_begin(void);
/* The terminal as it was, if it had begun; in a handler of a signal too. */
void nib_terminal_end(void);
/* Whether Ctrl-C and the other keys of that kind send their signals, as while an answer is printed, or are keys to
 * read, as in a line. Nothing if the terminal has not begun. */
void nib_terminal_send_signals(bool sent);

/* One line behind `prompt` (its escape sequences, if any, have no width), in editor->text. *result is NIB_EDIT_LINE,
 * NIB_EDIT_INTERRUPT or NIB_EDIT_END. Between nib_terminal_begin and nib_terminal_end. NIB_ERROR_IO. */
nib_status nib_terminal_read_line(nib_line_editor *editor, const char *prompt, nib_edit_result *result);

#endif
