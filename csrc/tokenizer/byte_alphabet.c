#include "tokenizer/byte_alphabet.h"

#include "base/utf8.h"

/* Printable Latin-1 stands for itself; the other 68 bytes, in order, for U+0100 to U+0143. */
static bool is_itself(uint32_t c)
{
    return (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

uint32_t nib_byte_character(uint8_t byte)
{
    if (is_itself(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    return byte <= 0xa0 ? 0x121u + (byte - 0x7fu) : 0x143u;
}

int nib_byte_of_character(uint32_t codepoint)
{
    if (codepoint < 0x100) return is_itself(codepoint) ? (int)codepoint : -1;
    if (codepoint <= 0x120) return (int)codepoint - 0x100;
    if (codepoint <= 0x142) return (int)codepoint - 0x121 + 0x7f;
    return codepoint == 0x143 ? 0xad : -1;
}

void nib_bytes_to_alphabet(nib_buffer *text, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) nib_buffer_codepoint(text, nib_byte_character((uint8_t)bytes[i]));
}

bool nib_alphabet_to_bytes(nib_buffer *bytes, const char *text, size_t length)
{
    size_t start = bytes->length;
    uint32_t codepoint;
    for (size_t i = 0; i < length;) {
        i += nib_utf8_decode(text + i, length - i, &codepoint);
        int byte = nib_byte_of_character(codepoint);
        if (byte < 0) {
            bytes->length = start;
            return false;
        }
        nib_buffer_char(bytes, (char)byte);
    }
    return true;
}
