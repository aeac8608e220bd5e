#include "base/utf8.h"

#include <string.h>

/* Bytes of the sequence at text, or 0 if it is not well-formed. */
static size_t sequence(const unsigned char *text, size_t left)
{
    unsigned char lead = text[0];
    if (lead < 0x80) return 1;
    size_t n = lead >= 0xc2 && lead <= 0xdf ? 2 : (lead & 0xf0) == 0xe0 ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
    if (n == 0 || n > left) return 0;
    /* Only the second byte has a narrower range: no overlong forms, no surrogates, nothing above U+10FFFF. */
    unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (text[1] < low || text[1] > high) return 0;
    for (size_t i = 2; i < n; i++)
        if ((text[i] & 0xc0) != 0x80) return 0;
    return n;
}

size_t nib_utf8_invalid_at(const char *text, size_t length)
{
    size_t i = 0;
    while (i < length) {
        uint64_t eight;
        while (i + 8 <= length && (memcpy(&eight, text + i, 8), (eight & 0x8080808080808080u) == 0)) i += 8;
        if (i == length) break;
        size_t n = sequence((const unsigned char *)text + i, length - i);
        if (n == 0) return i;
        i += n;
    }
    return length;
}

const char *nib_utf8_advice(const char *file, size_t length)
{
    static const struct {
        const char *magic;
        size_t length;
        const char *advice;
    } forms[] = {
        {"\xff\xfe\0\0", 4, "; the file is UTF-32: iconv -f UTF-32 -t UTF-8 converts it"},
        {"\xff\xfe", 2, "; the file is UTF-16: iconv -f UTF-16 -t UTF-8 converts it"},
        {"\xfe\xff", 2, "; the file is UTF-16: iconv -f UTF-16 -t UTF-8 converts it"},
        {"\x1f\x8b", 2, "; the file is compressed by gzip: gunzip it"},
        {"PK\3\4", 4, "; the file is a zip archive: unzip it"},
        {"PAR1", 4, "; the file is Parquet: write its rows as JSON, one object a line"},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (length >= forms[i].length && memcmp(file, forms[i].magic, forms[i].length) == 0) return forms[i].advice;
    return "";
}

size_t nib_utf8_decode(const char *text, size_t length, uint32_t *codepoint)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t n = sequence(s, length);
    switch (n) {
    case 2:
        *codepoint = (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu);
        return 2;
    case 3:
        *codepoint = (s[0] & 0x0fu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu);
        return 3;
    case 4:
        *codepoint = (s[0] & 0x07u) << 18 | (s[1] & 0x3fu) << 12 | (s[2] & 0x3fu) << 6 | (s[3] & 0x3fu);
        return 4;
    default:
        *codepoint = s[0];
        return 1;
    }
}

bool nib_utf8_steers(uint32_t c)
{
    bool control = c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029;
    bool bidirectional =
        c == 0x61c || c == 0x200e || c == 0x200f || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
    return (control && c != '\n' && c != '\t') || bidirectional;
}

void nib_utf8_print(FILE *out, const char *text, size_t length)
{
    for (size_t i = 0, n; i < length; i += n) {
        uint32_t codepoint;
        n = nib_utf8_decode(text + i, length - i, &codepoint);
        if (n == 1 && codepoint >= 0x80)
            fprintf(out, "\\x%02x", (unsigned)codepoint);
        else if (nib_utf8_steers(codepoint))
            fprintf(out, "\\u{%04x}", (unsigned)codepoint);
        else
            fwrite(text + i, 1, n, out);
    }
}
