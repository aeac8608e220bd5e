/* GPT-2's alphabet: every byte has a printable character, so that a vocabulary of bytes can be written as text
 * (bytes_to_unicode in openai/gpt-2, encoder.py). */
#ifndef NIB_BYTE_ALPHABET_H
#define NIB_BYTE_ALPHABET_H

#include "base/buffer.h"

#include <stddef.h>
#include <stdint.h>

uint32_t nib_byte_character(uint8_t byte);
int nib_byte_of_character(uint32_t codepoint); /* -1: stands for no byte */

/* Appends the characters of the bytes. */
void nib_bytes_to_alphabet(nib_buffer *text, const char *bytes, size_t length);
/* Appends the bytes of the characters; false, and nothing appended, if one stands for no byte. */
bool nib_alphabet_to_bytes(nib_buffer *bytes, const char *text, size_t length);

#endif
