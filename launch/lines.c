#include "lines.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* A terminal or file that takes nothing more is no reason to stop a run. */
static void write_all(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, text, length);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return;
        text += written;
        length -= (size_t)written;
    }
}

static void put_line(nib_lines *l, size_t length)
{
    char line[sizeof l->prefix + NIB_LINE_BYTES + 1];
    size_t prefix = strlen(l->prefix);
    memcpy(line, l->prefix, prefix);
    memcpy(line + prefix, l->text, length);
    line[prefix + length] = '\n';
    write_all(l->to, line, prefix + length + 1);
    if (l->log >= 0) write_all(l->log, line + prefix, length + 1);
}

int nib_lines_copy(nib_lines *l)
{
    if (l->from < 0) return 0;
    for (;;) {
        ssize_t got = read(l->from, l->text + l->length, sizeof l->text - l->length);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return 1;
        if (got <= 0) break;
        l->length += (size_t)got;
        for (const char *end; (end = memchr(l->text, '\n', l->length)) != NULL;) {
            size_t line = (size_t)(end - l->text);
            put_line(l, line);
            l->length -= line + 1;
            memmove(l->text, l->text + line + 1, l->length);
        }
        if (l->length == sizeof l->text) {
            put_line(l, l->length);
            l->length = 0;
        }
    }
    if (l->length > 0) put_line(l, l->length);
    l->length = 0;
    close(l->from);
    l->from = -1;
    return 0;
}
