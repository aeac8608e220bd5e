#include "base/buffer.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Room for `more` bytes and the NUL. */
static bool reserve(nib_buffer *buffer, size_t more)
{
    if (buffer->failed) return false;
    if (more > SIZE_MAX / 4 || !nib_grow(&buffer->data, &buffer->capacity, buffer->length + more + 1, 1))
        buffer->failed = true;
    return !buffer->failed;
}

void nib_buffer_append(nib_buffer *buffer, const void *bytes, size_t length)
{
    if (!reserve(buffer, length)) return;
    if (length > 0) memcpy(buffer->data + buffer->length, bytes, length);
    buffer->length += length;
    buffer->data[buffer->length] = 0;
}

void nib_buffer_text(nib_buffer *buffer, const char *text) { nib_buffer_append(buffer, text, strlen(text)); }

void nib_buffer_char(nib_buffer *buffer, char c) { nib_buffer_append(buffer, &c, 1); }

void nib_buffer_format(nib_buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0 || !reserve(buffer, (size_t)length)) {
        buffer->failed = true;
        return;
    }
    va_start(arguments, format);
    vsnprintf(buffer->data + buffer->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    buffer->length += (size_t)length;
}

void nib_buffer_json_string(nib_buffer *buffer, const char *text, size_t length, bool ascii_only)
{
    static const char named[] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    nib_buffer_char(buffer, '"');
    for (size_t i = 0; i < length;) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            nib_buffer_format(buffer, "\\%c", c);
        } else if (c < 0x20) {
            if (c < sizeof named && named[c] != 0)
                nib_buffer_format(buffer, "\\%c", named[c]);
            else
                nib_buffer_format(buffer, "\\u%04x", c);
        } else if (c < 0x7f || !ascii_only) {
            nib_buffer_char(buffer, (char)c);
        } else {
            uint32_t codepoint;
            i += nib_utf8_decode(text + i, length - i, &codepoint);
            if (codepoint >= 0x10000)
                nib_buffer_format(buffer, "\\u%04x\\u%04x", 0xd800 + ((codepoint - 0x10000) >> 10),
                                  0xdc00 + ((codepoint - 0x10000) & 0x3ff));
            else
                nib_buffer_format(buffer, "\\u%04x", codepoint);
            continue;
        }
        i++;
    }
    nib_buffer_char(buffer, '"');
}

void nib_buffer_codepoint(nib_buffer *buffer, unsigned codepoint)
{
    unsigned char bytes[4];
    size_t n;
    if (codepoint < 0x80) {
        bytes[0] = (unsigned char)codepoint;
        n = 1;
    } else if (codepoint < 0x800) {
        bytes[0] = (unsigned char)(0xc0 | codepoint >> 6);
        n = 2;
    } else if (codepoint < 0x10000) {
        bytes[0] = (unsigned char)(0xe0 | codepoint >> 12);
        n = 3;
    } else {
        bytes[0] = (unsigned char)(0xf0 | codepoint >> 18);
        n = 4;
    }
    for (size_t i = 1; i < n; i++) bytes[i] = (unsigned char)(0x80 | (codepoint >> (6 * (n - 1 - i)) & 0x3f));
    nib_buffer_append(buffer, bytes, n);
}

void nib_buffer_clear(nib_buffer *buffer)
{
    buffer->length = 0;
    if (buffer->data != NULL) buffer->data[0] = 0;
}

void nib_buffer_free(nib_buffer *buffer)
{
    nib_free(buffer->data);
    *buffer = (nib_buffer){0};
}
