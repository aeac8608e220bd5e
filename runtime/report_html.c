#include "report_html.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *escape_of(unsigned char c)
{
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    case '\t':
    case '\n':
        return NULL;
    default:
        return c < 0x20 || c == 0x7f ? "\xEF\xBF\xBD" : NULL;
    }
}

void nib_html_text_length(nib_buffer *out, const char *text, size_t length)
{
    size_t plain = 0; /* first byte that is not written yet */
    for (size_t i = 0; i < length; i++) {
        const char *escape = escape_of((unsigned char)text[i]);
        if (escape == NULL) continue;
        nib_buffer_append(out, text + plain, i - plain);
        nib_buffer_text(out, escape);
        plain = i + 1;
    }
    nib_buffer_append(out, text + plain, length - plain);
}

void nib_html_text(nib_buffer *out, const char *text) { nib_html_text_length(out, text, strlen(text)); }

void nib_html_count(nib_buffer *out, int64_t count)
{
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)count);
    for (int i = 0; i < length; i++) {
        nib_buffer_char(out, digits[i]);
        if (i < length - 1 && digits[i] != '-' && (length - 1 - i) % 3 == 0) nib_buffer_char(out, ',');
    }
}

void nib_html_bytes(nib_buffer *out, double bytes)
{
    if (bytes >= 1 << 30)
        nib_buffer_format(out, "%.2f GiB", bytes / (1 << 30));
    else
        nib_buffer_format(out, "%.1f MiB", bytes / (1 << 20));
}

void nib_html_seconds(nib_buffer *out, double seconds)
{
    long long s = llround(seconds);
    if (s >= 3600)
        nib_buffer_format(out, "%lld h %02lld min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        nib_buffer_format(out, "%lld min %02lld s", s / 60, s % 60);
    else
        nib_buffer_format(out, "%.1f s", seconds);
}

void nib_html_time(nib_buffer *out, int64_t seconds)
{
    static const char *const months[] = {"January", "February", "March",     "April",   "May",      "June",
                                         "July",    "August",   "September", "October", "November", "December"};
    time_t time = (time_t)seconds;
    struct tm t;
    if (gmtime_r(&time, &t) == NULL) return;
    nib_buffer_format(out, "%d %s %d, %02d:%02d UTC", t.tm_mday, months[t.tm_mon], t.tm_year + 1900, t.tm_hour,
                      t.tm_min);
}

void nib_html_number(nib_buffer *out, double value)
{
    char text[32];
    if (fabs(value) >= 1000 && fabs(value) < 1e15) {
        nib_html_count(out, llround(value));
        return;
    }
    snprintf(text, sizeof text, "%.4g", value);
    char *exponent = strchr(text, 'e');
    if (exponent != NULL) snprintf(exponent, sizeof text - (size_t)(exponent - text), "e%d", atoi(exponent + 1));
    nib_buffer_text(out, text);
}
