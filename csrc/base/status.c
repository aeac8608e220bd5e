#include "base/status.h"

#include <stdio.h>
#include <string.h>

static _Thread_local char message[4096];

int nib_exit_code(nib_status status)
{
    switch (status) {
    case NIB_OK:
        return 0;
    case NIB_ERROR_USAGE:
        return 64;
    case NIB_ERROR_DATA:
        return 65;
    case NIB_ERROR_DEVICE:
        return 69;
    case NIB_ERROR_MEMORY:
        return 71;
    case NIB_ERROR_IO:
        return 74;
    case NIB_STOPPED:
        return 75;
    case NIB_ERROR_CONFIG:
        return 78;
    case NIB_ERROR_INTERNAL:
    case NIB_ERROR_SHAPE:
        break;
    }
    return 1;
}

nib_status nib_fail_v(nib_status status, const char *format, va_list arguments)
{
    char text[sizeof message]; /* an argument may be the old message itself */
    vsnprintf(text, sizeof text, format, arguments);
    memcpy(message, text, sizeof message);
    return status;
}

nib_status nib_fail(nib_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    nib_fail_v(status, format, arguments);
    va_end(arguments);
    return status;
}

nib_status nib_error_context(nib_status status, const char *format, ...)
{
    char context[1024], text[sizeof message];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
    memcpy(text, message, sizeof text);
    snprintf(message, sizeof message, "%.1000s: %.3000s", context, text);
    return status;
}

const char *nib_error_message(void) { return message; }
