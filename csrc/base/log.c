#include "base/log.h"
#include "base/utf8.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *log_file;
static int live_shown, quiet;

void nib_log_quiet(void) { quiet = 1; }

int nib_log_is_terminal(void) { return !quiet && isatty(STDERR_FILENO); }

static void write_line(FILE *out, const char *prefix, const char *text)
{
    fputs(prefix, out);
    nib_utf8_print(out, text, strlen(text));
    fputc('\n', out);
}

static void line(bool on_terminal, const char *prefix, const char *format, va_list arguments)
{
    char text[8192];
    vsnprintf(text, sizeof text, format, arguments);
    pthread_mutex_lock(&lock);
    if (on_terminal && live_shown) fputs("\r\033[K", stderr);
    if (on_terminal) live_shown = 0;
    if (on_terminal && !quiet) write_line(stderr, prefix, text);
    if (log_file != NULL) {
        char stamp[32];
        time_t now = time(NULL);
        struct tm utc;
        gmtime_r(&now, &utc);
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
        fprintf(log_file, "%s ", stamp);
        write_line(log_file, prefix, text);
        fflush(log_file);
    }
    pthread_mutex_unlock(&lock);
}

void nib_log(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    line(true, "", format, arguments);
    va_end(arguments);
}

void nib_log_file_only(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    line(false, "", format, arguments);
    va_end(arguments);
}

void nib_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    line(true, "warning: ", format, arguments);
    va_end(arguments);
}

nib_status nib_log_to_file(const char *path)
{
    FILE *opened = NULL;
    if (path != NULL) {
        opened = fopen(path, "a");
        if (opened == NULL) return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be written: %s", path, strerror(errno));
    }
    pthread_mutex_lock(&lock);
    if (log_file != NULL) fclose(log_file);
    log_file = opened;
    pthread_mutex_unlock(&lock);
    return NIB_OK;
}

/* What goes over the edge would stay on the terminal when the line is written anew. */
static int columns_left(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 4096;
}

void nib_log_live(const char *text)
{
    if (!nib_log_is_terminal()) return;
    pthread_mutex_lock(&lock);
    if (text != NULL || live_shown) fprintf(stderr, "\r\033[K%.*s", columns_left(), text == NULL ? "" : text);
    live_shown = text != NULL;
    fflush(stderr);
    pthread_mutex_unlock(&lock);
}
