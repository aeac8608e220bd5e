/* Status codes, and the message of the last error.
 *
 * Every fallible function returns a nib_status. The one that finds the fault states it with NIB_FAIL (what, where,
 * found, expected, what to do); callers pass it up with NIB_TRY, or add where it happened with nib_error_context.
 * The message is kept per thread; only main prints it and only main exits.
 */
#ifndef NIB_STATUS_H
#define NIB_STATUS_H

#include <stdarg.h>

typedef enum {
    NIB_OK = 0,
    NIB_ERROR_INTERNAL, /* a bug of ours                               exit 1  */
    NIB_ERROR_SHAPE,    /* an op was asked for what it does not support exit 1  */
    NIB_ERROR_USAGE,    /* command line                                exit 64 */
    NIB_ERROR_DATA,     /* data or model file                          exit 65 */
    NIB_ERROR_DEVICE,   /* device or peer missing                      exit 69 */
    NIB_ERROR_MEMORY,   /* out of memory                               exit 71 */
    NIB_ERROR_IO,       /* disk full, permission, ...                  exit 74 */
    NIB_STOPPED,        /* stopped by a signal, resumable              exit 75 */
    NIB_ERROR_CONFIG    /* bad config                                  exit 78 */
} nib_status;

/* Process exit code of cli.md's table. */
int nib_exit_code(nib_status status);

/* Sets this thread's message (printf format) and returns status. Use through NIB_FAIL. */
nib_status nib_fail(nib_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
nib_status nib_fail_v(nib_status status, const char *format, va_list arguments);

/* Puts "CONTEXT: " before this thread's message; returns status unchanged. */
nib_status nib_error_context(nib_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* This thread's message; "" if there is none. Valid until the next failure in this thread. */
const char *nib_error_message(void);

#define NIB_FAIL(status, ...) nib_fail((status), __VA_ARGS__)
#define NIB_TRY(expression)                                                                                            \
    do {                                                                                                               \
        nib_status nib_try_status_ = (expression);                                                                     \
        if (nib_try_status_ != NIB_OK) return nib_try_status_;                                                         \
    } while (0)
/* The same with a cleanup label: needs `nib_status status` in scope. */
#define NIB_TRY_GOTO(expression, label)                                                                                \
    do {                                                                                                               \
        status = (expression);                                                                                         \
        if (status != NIB_OK) goto label;                                                                              \
    } while (0)

#endif
