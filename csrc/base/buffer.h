/* A growable byte string, always NUL-terminated. Zero-initialise; free with nib_buffer_free.
 * An append that finds no memory sets `failed` and the buffer stays as it was: check once, at the end. */
#ifndef NIB_BUFFER_H
#define NIB_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    char *data;
    size_t length, capacity;
    bool failed;
} nib_buffer;

void nib_buffer_append(nib_buffer *buffer, const void *bytes, size_t length);
void nib_buffer_text(nib_buffer *buffer, const char *text);
void nib_buffer_char(nib_buffer *buffer, char c);
void nib_buffer_format(nib_buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* text as a JSON string, quotes included; ascii_only escapes all above 0x7e. Text must be valid UTF-8. */
void nib_buffer_json_string(nib_buffer *buffer, const char *text, size_t length, bool ascii_only);
/* One Unicode scalar value as UTF-8. */
void nib_buffer_codepoint(nib_buffer *buffer, unsigned codepoint);
void nib_buffer_clear(nib_buffer *buffer); /* keeps the memory */
void nib_buffer_free(nib_buffer *buffer);

#endif
