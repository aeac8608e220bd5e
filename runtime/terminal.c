#include "terminal.h"
#include "base/file.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define PASTE_ON  "\x1b[?2004h" /* bracketed paste */
#define PASTE_OFF "\x1b[?2004l"

static struct termios before, editing, printing;
static volatile sig_atomic_t begun;

bool nib_terminal_can_edit(void)
{
    const char *kind = getenv("TERM");
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && kind != NULL && strcmp(kind, "dumb") != 0;
}

static int columns(void)
{
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col : 80;
}

static nib_status write_out(const nib_buffer *out)
{
    if (out->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to draw a line");
    return nib_file_write_all(STDOUT_FILENO, out->data, out->length, "terminal");
}

/* The prompt without its escape sequences, for its width. */
static void prompt_extent(const char *prompt, int width, int *row, int *column)
{
    while (*prompt != 0) {
        size_t plain = strcspn(prompt, "\x1b");
        nib_line_extent(prompt, plain, width, row, column);
        prompt += plain;
        if (*prompt == 0) break;
        prompt += strcspn(prompt, "m");
        if (*prompt == 'm') prompt++;
    }
}

static void append_shown(nib_buffer *out, const nib_buffer *text)
{
    for (size_t i = 0; i < text->length; i++)
        if (text->data[i] == '\n')
            nib_buffer_text(out, "\u21b5");
        else
            nib_buffer_char(out, text->data[i]);
}

/* Draws the line anew from the prompt's first row, which lies *cursor_row rows above the cursor. */
static nib_status draw(const nib_line_editor *editor, const char *prompt, int *cursor_row)
{
    nib_buffer out = {0};
    int width = columns(), row = 0, column = 0, end_row, end_column;
    if (*cursor_row > 0) nib_buffer_format(&out, "\x1b[%dA", *cursor_row);
    nib_buffer_format(&out, "\r\x1b[J%s", prompt);
    append_shown(&out, &editor->text);
    prompt_extent(prompt, width, &row, &column);
    end_row = row;
    end_column = column;
    nib_line_extent(editor->text.data, editor->cursor, width, &row, &column);
    nib_line_extent(editor->text.data, editor->text.length, width, &end_row, &end_column);
    if (end_column == width) { /* the terminal waits at the edge: go on to the next row */
        nib_buffer_text(&out, "\r\n");
        end_row++;
    }
    if (column == width) {
        row++;
        column = 0;
    }
    if (end_row > row) nib_buffer_format(&out, "\x1b[%dA", end_row - row);
    nib_buffer_char(&out, '\r');
    if (column > 0) nib_buffer_format(&out, "\x1b[%dC", column);
    *cursor_row = row;
    nib_status status = write_out(&out);
    nib_buffer_free(&out);
    return status;
}

static nib_status read_byte(uint8_t *byte, bool *end)
{
    for (;;) {
        ssize_t n = read(STDIN_FILENO, byte, 1);
        *end = n == 0;
        if (n >= 0) return NIB_OK;
        if (errno != EINTR) return NIB_FAIL(NIB_ERROR_IO, "terminal: cannot read: %s", strerror(errno));
    }
}

/* More bytes wait to be read: a paste is drawn once, not once a byte. */
static bool more_waits(void)
{
    int bytes = 0;
    return ioctl(STDIN_FILENO, FIONREAD, &bytes) == 0 && bytes > 0;
}

static nib_status edit(nib_line_editor *editor, const char *prompt, nib_edit_result *result)
{
    int cursor_row = 0;
    *result = NIB_EDIT_MORE;
    NIB_TRY(draw(editor, prompt, &cursor_row));
    while (*result == NIB_EDIT_MORE || *result == NIB_EDIT_CLEAR) {
        uint8_t byte;
        bool end;
        NIB_TRY(read_byte(&byte, &end));
        *result = end ? NIB_EDIT_END : nib_line_editor_feed(editor, byte);
        if (*result == NIB_EDIT_CLEAR) {
            NIB_TRY(nib_file_write_all(STDOUT_FILENO, "\x1b[H\x1b[2J", 7, "terminal"));
            cursor_row = 0;
        }
        if (*result == NIB_EDIT_LINE) editor->cursor = editor->text.length; /* what follows begins below it */
        if (*result != NIB_EDIT_MORE || !more_waits()) NIB_TRY(draw(editor, prompt, &cursor_row));
    }
    return NIB_OK;
}

nib_status nib_terminal_read_line(nib_line_editor *editor, const char *prompt, nib_edit_result *result)
{
    nib_line_editor_begin(editor);
    NIB_TRY(edit(editor, prompt, result));
    return nib_file_write_all(STDOUT_FILENO, "\r\n", 2, "terminal");
}

/* Never returns, so it may run on any stack (signals.h). */
static void leave(int number)
{
    nib_terminal_end();
    signal(number, SIG_DFL);
    raise(number);
}

static void leave_by_signals(void)
{
    static const int numbers[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action = {.sa_handler = leave, .sa_flags = SA_NODEFER}, old;
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL) sigaction(numbers[i], &action, NULL);
    }
}

nib_status nib_terminal_begin(void)
{
    if (tcgetattr(STDIN_FILENO, &before) != 0)
        return NIB_FAIL(NIB_ERROR_IO, "terminal: cannot read its settings: %s", strerror(errno));
    printing = before;
    printing.c_lflag &= ~(tcflag_t)(ECHO | ICANON | IEXTEN);
    printing.c_cc[VMIN] = 1;
    printing.c_cc[VTIME] = 0;
    editing = printing;
    editing.c_iflag &= ~(tcflag_t)(BRKINT | ICRNL | INPCK | ISTRIP | IXON);
    editing.c_lflag &= ~(tcflag_t)ISIG;
    leave_by_signals();
    begun = 1;
    if (tcsetattr(STDIN_FILENO, TCSADRAIN, &editing) != 0)
        return NIB_FAIL(NIB_ERROR_IO, "terminal: cannot enter raw mode: %s", strerror(errno));
    return nib_file_write_all(STDOUT_FILENO, PASTE_ON, sizeof PASTE_ON - 1, "terminal");
}

void nib_terminal_end(void)
{
    if (!begun || tcgetpgrp(STDIN_FILENO) != getpgrp()) return; /* in the background it is the shell's */
    begun = 0;
    ssize_t written = write(STDOUT_FILENO, PASTE_OFF, sizeof PASTE_OFF - 1);
    (void)written; /* nobody is there to be told */
    tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

void nib_terminal_send_signals(bool sent)
{
    if (begun) tcsetattr(STDIN_FILENO, TCSADRAIN, sent ? &printing : &editing);
}
