/* A figure with curves over optimizer steps: the curves are inline SVG that stretches with the page, labels are HTML,
 * so that they keep their size. */
#ifndef NIB_REPORT_CHART_H
#define NIB_REPORT_CHART_H

#include "base/buffer.h"
#include "report_data.h"

typedef struct {
    const char *name; /* plain text without markup */
    const char *look; /* class of the style sheet: "raw", "line" or "marks" */
    const nib_curve *curve;
} nib_series;

/* Draws the series that have points, in order; nothing if none has. Long curves are thinned. last_step: right end of
 * the axis. wide: takes the whole row of the page, and its values begin at 0 only if they come near. Others always
 * begin there, unless a value is below. */
nib_status nib_html_chart(nib_buffer *out, const char *title, const nib_series *series, int count, int64_t last_step,
                          bool wide);

/* Ticks at multiples of *step, which is 1, 2 or 5 times a power of ten: about `count` of them in [*low, *high], which
 * grows to the multiples around it. */
void nib_nice_ticks(double *low, double *high, int count, double *step);

#endif
