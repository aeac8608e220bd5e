/* Reads edited lines from the terminal on standard input, drawing them on standard output. */
#ifndef NIB_TERMINAL_H
#define NIB_TERMINAL_H

#include "base/status.h"
#include "line_editor.h"

/* Both ends are terminals that can be drawn on. */
bool nib_terminal_can_edit(void);

/* One line behind `prompt` (its escape sequences, if any, have no width), in editor->text. *result is NIB_EDIT_LINE,
 * NIB_EDIT_INTERRUPT or NIB_EDIT_END. The terminal is in raw mode only inside the call. NIB_ERROR_IO. */
nib_status nib_terminal_read_line(nib_line_editor *editor, const char *prompt, nib_edit_result *result);

#endif
