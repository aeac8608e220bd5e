/* Pieces of the report's page. All text from data, config or model goes through nib_html_text. */
#ifndef NIB_REPORT_PAGE_H
#define NIB_REPORT_PAGE_H

#include "base/buffer.h"

#include <stddef.h>

/* Text with & < > " ' escaped. */
void nib_html_text(nib_buffer *out, const char *text);
/* From <!doctype> to the beginning of <main>; and its end, with the script of the curves. */
void nib_html_begin(nib_buffer *out, const char *title);
void nib_html_end(nib_buffer *out);

typedef struct {
    double x, y;
} nib_point;
typedef struct {
    const char *name;
    const nib_point *point; /* [count], x ascending */
    size_t count;
} nib_series;

/* A figure with one or two series as inline SVG; long series are thinned. digits: of the values shown. Nothing if no
 * series has two points. */
void nib_html_chart(nib_buffer *out, const char *title, const nib_series *series, int count, int digits);

#endif
