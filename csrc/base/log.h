/* Messages to standard error, and to the run's log.txt once one is open. Standard output is for results only. */
#ifndef NIB_LOG_H
#define NIB_LOG_H

#include "base/status.h"

/* One line, printed by nib_utf8_print; "warning: " is put before a warning. Safe from several threads. */
void nib_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
void nib_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A line for the file alone, if one is open: of what is on the terminal anyway, as the error that ends a run. */
void nib_log_file_only(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* From now on lines go to the file alone: of several processes of one run, only the first talks. */
void nib_log_quiet(void);
/* Also append every line, with a timestamp, to this file; NULL closes it. */
nib_status nib_log_to_file(const char *path);
/* A live line on a terminal (rewritten in place by the next call); no-op if standard error is no terminal. An
 * ordinary nib_log clears it first. NULL clears it. */
void nib_log_live(const char *text);
int nib_log_is_terminal(void);

#endif
