#include "lost_file.h"
#include "terminal.h"

#include "base/mapping.h"
#include "base/status.h"
#include "base/utf8.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct sigaction before;

/* The message. Static, for no stack is sure to have the room; one thread writes it. */
static char text[8192];
static size_t length;

static void append(const char *bytes, size_t count)
{
    if (count > sizeof text - length) count = sizeof text - length;
    memcpy(text + length, bytes, count);
    length += count;
}

static void append_text(const char *words) { append(words, strlen(words)); }

static void append_number(uint64_t number)
{
    char digits[20];
    size_t first = sizeof digits;
    do digits[--first] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    append(digits + first, sizeof digits - first);
}

/* As nib_utf8_print, with a question mark for what must not reach a terminal. */
static void append_path(const char *path)
{
    for (size_t left = strlen(path), n; left > 0; left -= n, path += n) {
        uint32_t c;
        n = nib_utf8_decode(path, left, &c);
        if ((n == 1 && c >= 0x80) || nib_utf8_steers(c))
            append_text("?");
        else
            append(path, n);
    }
}

static void tell(const char *path, uint64_t offset, uint64_t size)
{
    struct stat now;
    if (isatty(STDERR_FILENO)) append_text("\r\033[K"); /* the live line */
    append_text("nibble: ");
    append_path(path);
    append_text(": byte ");
    append_number(offset);
    append_text(" cannot be read any more: expected the ");
    append_number(size);
    append_text(" bytes that the file had when it was opened, found ");
    if (stat(path, &now) == 0) {
        append_number((uint64_t)now.st_size);
        append_text(" bytes");
    } else {
        append_text("no file");
    }
    append_text("; it was cut while it was in use, or its disk failed. Put the whole file back, change none that is in "
                "use, and start again (train goes on with --resume)\n");
    for (ssize_t done = 0, n; done < (ssize_t)length; done += n)
        if ((n = write(STDERR_FILENO, text + done, length - (size_t)done)) <= 0) return;
}

static void handle(int number, siginfo_t *info, void *context)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    uint64_t offset, size;
    const char *path = info->si_code == BUS_ADRERR ? nib_mapping_find(info->si_addr, &offset, &size) : NULL;
    (void)context;
    if (path == NULL) {
        sigaction(number, &before, NULL);
        raise(number);
        return;
    }
    while (atomic_flag_test_and_set(&told)) pause(); /* another thread met it first, and ends the program */
    nib_terminal_end();
    tell(path, offset, size);
    _exit(nib_exit_code(NIB_ERROR_IO));
}

void nib_lost_file_watch(void)
{
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER}; /* raise() is at once */
    sigaction(SIGBUS, &action, &before);
}
