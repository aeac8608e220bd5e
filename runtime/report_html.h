/* Text and numbers as the report's page has them. Whatever comes from data, configuration or model goes through
 * nib_html_text. */
#ifndef NIB_REPORT_HTML_H
#define NIB_REPORT_HTML_H

#include "base/buffer.h"

#include <stdint.h>

/* UTF-8 text with & < > " ' escaped; control characters but tab and line feed become U+FFFD. */
void nib_html_text(nib_buffer *out, const char *text);
void nib_html_text_length(nib_buffer *out, const char *text, size_t length);

void nib_html_count(nib_buffer *out, int64_t count);    /* 1,080 */
void nib_html_bytes(nib_buffer *out, double bytes);     /* 103.4 MiB, 1.25 GiB */
void nib_html_seconds(nib_buffer *out, double seconds); /* 41.2 s, 3 min 07 s, 2 h 05 min */
void nib_html_time(nib_buffer *out, int64_t time);      /* 24 November 2026, 12:41 UTC */
void nib_html_number(nib_buffer *out, double value);    /* four digits: 0.4123, 1,234, 2e-5 */

/* The page's style and script, without their tags. */
extern const char nib_report_style[];
extern const char nib_report_script[];

#endif
