#include "report_chart.h"
#include "report_html.h"

#include <math.h>

#define BUCKETS 600    /* of a thinned curve: more than a screen shows */
#define VIEW    1000.0 /* the SVG's own units, both ways */

typedef struct {
    double x0, x1, y0, y1, y_step;
} frame;

void nib_nice_ticks(double *low, double *high, int count, double *step)
{
    double range = *high - *low;
    if (!(range > 0)) {
        double around = fabs(*high) > 0 ? fabs(*high) / 2 : 0.5;
        *low -= around;
        *high += around;
        range = 2 * around;
    }
    double raw = range / count, power = pow(10, floor(log10(raw))), times = raw / power;
    *step = power * (times < 1.5 ? 1 : times < 3.5 ? 2 : times < 7.5 ? 5 : 10);
    *low = floor(*low / *step + 1e-9) * *step;
    *high = ceil(*high / *step - 1e-9) * *step;
}

static frame fit(const nib_series *series, int count, int64_t last_step, bool wide)
{
    frame f = {.x0 = 0, .x1 = (double)last_step, .y0 = INFINITY, .y1 = -INFINITY};
    for (int s = 0; s < count; s++)
        for (size_t i = 0; i < series[s].curve->count; i++) {
            f.y0 = fmin(f.y0, series[s].curve->point[i].y);
            f.y1 = fmax(f.y1, series[s].curve->point[i].y);
        }
    if (f.y0 >= 0 && (!wide || f.y0 < f.y1 / 3)) f.y0 = 0;
    nib_nice_ticks(&f.y0, &f.y1, wide ? 5 : 3, &f.y_step);
    return f;
}

static double at_x(const frame *f, double x) { return (x - f->x0) / (f->x1 - f->x0) * VIEW; }
static double at_y(const frame *f, double y) { return (f->y1 - y) / (f->y1 - f->y0) * VIEW; }

static int grid_lines(const frame *f) { return (int)lround((f->y1 - f->y0) / f->y_step); }

static void grid(nib_buffer *out, const frame *f)
{
    int lines = grid_lines(f);
    nib_buffer_text(out, "<path class=\"grid\" d=\"");
    for (int i = 0; i <= lines; i++) nib_buffer_format(out, "M0 %.1fH1000", VIEW * i / lines);
    nib_buffer_text(out, "\"/>");
}

/* At shares of the plot's height and width. */
static void labels(nib_buffer *out, const frame *f, bool wide)
{
    double x0 = f->x0, x1 = f->x1, step;
    int lines = grid_lines(f);
    nib_buffer_text(out, "<div class=\"y\">");
    for (int i = 0; i <= lines; i++) {
        double value = f->y0 + i * f->y_step;
        nib_buffer_format(out, "<span style=\"bottom:%.2f%%\">", 100.0 * i / lines);
        nib_html_number(out, fabs(value) < 1e-9 * f->y_step ? 0 : value);
        nib_buffer_text(out, "</span>");
    }
    nib_buffer_text(out, "</div><div class=\"x\">");
    nib_nice_ticks(&x0, &x1, wide ? 6 : 3, &step);
    if (step < 1) step = 1;
    for (double x = 0; x <= f->x1; x += step) {
        nib_buffer_format(out, "<span style=\"left:%.2f%%\">", at_x(f, x) / VIEW * 100);
        nib_html_count(out, (int64_t)x);
        nib_buffer_text(out, "</span>");
    }
    nib_buffer_text(out, "</div>");
}

/* A line through the points, or a round mark at each: a stroke without length, which stretching leaves round. */
static void path(nib_buffer *out, const frame *f, const nib_series *series)
{
    bool marks = series->look[0] == 'm';
    for (int layer = marks ? 0 : 1; layer < 2; layer++) {
        nib_buffer_format(out, "<path class=\"%s\" d=\"", layer == 0 ? "join" : series->look);
        for (size_t i = 0; i < series->curve->count; i++)
            nib_buffer_format(out, "%s%.2f %.2f%s", i == 0 || (marks && layer == 1) ? "M" : "L",
                              at_x(f, series->curve->point[i].x), at_y(f, series->curve->point[i].y),
                              marks && layer == 1 ? "h0" : "");
        nib_buffer_text(out, "\"/>");
    }
}

/* [["name", [[x, y], ...]], ...] for the script. */
static void data_attribute(nib_buffer *out, const nib_series *series, int count)
{
    nib_buffer_text(out, " data-series='[");
    for (int s = 0; s < count; s++) {
        nib_buffer_format(out, "%s[\"%s\",[", s == 0 ? "" : ",", series[s].name);
        for (size_t i = 0; i < series[s].curve->count; i++)
            nib_buffer_format(out, "%s[%.10g,%.6g]", i == 0 ? "" : ",", series[s].curve->point[i].x,
                              series[s].curve->point[i].y);
        nib_buffer_text(out, "]]");
    }
    nib_buffer_text(out, "]'");
}

static void draw(nib_buffer *out, const char *title, const nib_series *series, int count, const frame *f, bool wide)
{
    nib_buffer_format(out, "<figure class=\"chart%s\" data-domain=\"[%.10g,%.10g]\" data-range=\"[%.10g,%.10g]\"",
                      wide ? " wide" : "", f->x0, f->x1, f->y0, f->y1);
    data_attribute(out, series, count);
    nib_buffer_format(out, ">\n<figcaption><h3>%s</h3><output></output><p>", title);
    for (int s = 0; s < count; s++) {
        nib_buffer_format(out, "<span class=\"key %s\">%s <b>", count == 1 ? "only" : series[s].look, series[s].name);
        nib_html_number(out, series[s].curve->point[series[s].curve->count - 1].y);
        nib_buffer_text(out, "</b></span> ");
    }
    nib_buffer_format(out,
                      "</p></figcaption>\n<div class=\"plot\"><svg viewBox=\"0 0 1000 1000\" "
                      "preserveAspectRatio=\"none\" role=\"img\" aria-label=\"%s over steps\">",
                      title);
    grid(out, f);
    for (int s = 0; s < count; s++) path(out, f, &series[s]);
    nib_buffer_text(out, "</svg>\n");
    labels(out, f, wide);
    nib_buffer_text(out, "<i class=\"cursor\"></i></div>\n</figure>\n");
}

nib_status nib_html_chart(nib_buffer *out, const char *title, const nib_series *series, int count, int64_t last_step,
                          bool wide)
{
    nib_curve thin[8] = {0};
    nib_series drawn[8];
    int n = 0;
    nib_status status = NIB_OK;
    for (int s = 0; s < count && n < 8; s++) {
        if (series[s].curve->count == 0) continue;
        NIB_TRY_GOTO(nib_curve_thin(series[s].curve, BUCKETS, &thin[n]), done);
        drawn[n] = series[s];
        drawn[n].curve = &thin[n];
        n++;
    }
    if (n == 0) goto done;
    frame f = fit(drawn, n, last_step, wide);
    draw(out, title, drawn, n, &f, wide);
done:
    for (int s = 0; s < 8; s++) nib_free(thin[s].point);
    return status;
}
