/* UTF-8: validation and decoding. Public since parsers, tokenizers and templates all need the same answer. */
#ifndef NIB_UTF8_H
#define NIB_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Offset of the first byte that is not well-formed UTF-8 (Unicode 15, table 3-7), or length if all is. */
size_t nib_utf8_invalid_at(const char *text, size_t length);
/* For a message: what a file that is not UTF-8 is by its first bytes, and how to convert it; "" if they say nothing. */
const char *nib_utf8_advice(const char *file, size_t length);
/* Decodes one code point at text[0..length), length > 0, well-formed; returns its bytes. */
size_t nib_utf8_decode(const char *text, size_t length, uint32_t *codepoint);
/* Control characters but line feed and tab, and Unicode's bidirectional controls. */
bool nib_utf8_steers(uint32_t codepoint);
/* Writes text of unknown origin so that it cannot steer a terminal or reorder a line: bytes that are not UTF-8 come out
 * as \xNN, control characters but line feed and tab, and Unicode's bidirectional controls, as \u{NNNN}. */
void nib_utf8_print(FILE *out, const char *text, size_t length);

#endif
