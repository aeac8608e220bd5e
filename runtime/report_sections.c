#include "report_sections.h"
#include "report_chart.h"
#include "report_html.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Steps that the smoothed loss averages over, about: a twentieth of the run, three at least. */
static double smoothing(size_t steps) { return 1 - 1 / fmax(3, (double)steps / 20); }

typedef void (*put_value)(nib_buffer *out, double value);

static void put_loss(nib_buffer *out, double value) { nib_buffer_format(out, "%.3f", value); }

static void put_perplexity(nib_buffer *out, double value)
{
    nib_buffer_format(out, value < 10 ? "%.2f" : value < 100 ? "%.1f" : "%.4g", value);
}

static void put_share(nib_buffer *out, double value) { nib_buffer_format(out, "%.0f", 100 * value); }

static void put_count(nib_buffer *out, double value) { nib_buffer_format(out, "%.0f", value); }

static void figure(nib_buffer *out, const char *name, put_value put, const char *unit, double before, double after)
{
    if (!isfinite(after)) return;
    nib_buffer_format(out, "<div><h3>%s</h3><p>", name);
    if (isfinite(before)) {
        nib_buffer_text(out, "<span>");
        put(out, before);
        nib_buffer_text(out, "</span><i>→</i>");
    }
    nib_buffer_text(out, "<strong>");
    put(out, after);
    nib_buffer_format(out, "</strong>%s</p></div>\n", unit);
}

/* A share of few answers would claim more than they tell: it is given as their number. */
static void exact_match(nib_buffer *out, const nib_report_data *d)
{
    char unit[64];
    double n = (double)d->answers_asked;
    snprintf(unit, sizeof unit, "<u>of %lld</u>", (long long)d->answers_asked);
    if (d->answers_asked > 0 && d->answers_asked <= NIB_REPORT_ANSWERS)
        figure(out, "Answers equal to the reference", put_count, unit, n * d->before.exact_match,
               n * d->best.exact_match);
    else
        figure(out, "Answers equal to the reference", put_share, "<u>%</u>", d->before.exact_match,
               d->best.exact_match);
}

static void cost(nib_buffer *out, const nib_report_data *d)
{
    nib_buffer_text(out, "<dl class=\"cost\">\n<div><dt>Tokens trained on</dt><dd>");
    nib_html_count(out, d->tokens);
    if (d->computed_tokens > 0 && d->computed_tokens < d->tokens)
        nib_buffer_format(out, "</dd></div>\n<div><dt>Saved by shared prefixes</dt><dd>%.0f %%",
                          100 * (1 - (double)d->computed_tokens / (double)d->tokens));
    double step_seconds = 0; /* tokens of a step over its rate */
    for (size_t i = 0; i < d->speed.count; i++) step_seconds += 1 / d->speed.point[i].y;
    if (step_seconds > 0) {
        nib_buffer_text(out, "</dd></div>\n<div><dt>Tokens per second</dt><dd>");
        nib_html_count(out, llround((double)d->speed.count / step_seconds));
    }
    nib_buffer_text(out, "</dd></div>\n<div><dt>Time</dt><dd>");
    nib_html_seconds(out, d->seconds);
    if (d->peak_bytes > 0) {
        nib_buffer_text(out, "</dd></div>\n<div><dt>Peak memory</dt><dd>");
        nib_html_bytes(out, (double)d->peak_bytes);
    }
    nib_buffer_text(out, "</dd></div>\n<div><dt>Trained parameters</dt><dd>");
    nib_html_count(out, nib_report_count(d->facts, "trained_parameters"));
    if (d->skipped > 0) {
        nib_buffer_text(out, "</dd></div>\n<div><dt>Steps not applied</dt><dd class=\"wrong\">");
        nib_html_count(out, d->skipped);
    }
    nib_buffer_text(out, "</dd></div>\n</dl>\n");
}

void nib_report_headline(nib_buffer *out, const nib_report_data *d)
{
    nib_buffer_text(out, "<section class=\"lead\">\n");
    if (d->best.step >= 0) {
        figure(out, "Evaluation loss", put_loss, "", d->before.loss, d->best.loss);
        figure(out, "Perplexity", put_perplexity, "", d->before.perplexity, d->best.perplexity);
        exact_match(out, d);
    } else if (d->loss.count > 0) {
        figure(out, "Training loss, first and last step", put_loss, "", d->loss.point[0].y,
               d->loss.point[d->loss.count - 1].y);
    }
    nib_buffer_text(out, "</section>\n");
    if (d->best.step >= 0 && d->best.step < d->steps) {
        nib_buffer_format(out, "<p class=\"note\">The %s is the one after step ", d->result);
        nib_html_count(out, d->best.step);
        nib_buffer_text(out, ", whose evaluation was the best.</p>\n");
    }
    cost(out, d);
}

nib_status nib_report_curves(nib_buffer *out, const nib_report_data *d)
{
    nib_curve smooth;
    if (d->loss.count == 0) return NIB_OK;
    NIB_TRY(nib_curve_smooth(&d->loss, smoothing(d->loss.count), &smooth));
    const nib_series loss[] = {
        {"training", "raw", &d->loss}, {"smoothed", "line", &smooth}, {"evaluation", "marks", &d->evaluation}};
    const nib_series rate = {"", "line", &d->rate}, norm = {"", "line", &d->norm}, speed = {"", "line", &d->speed};
    nib_buffer_text(out, "<h2>Curves</h2>\n<div class=\"charts\">\n");
    nib_status status = nib_html_chart(out, "Loss", loss, 3, d->steps, true);
    if (status == NIB_OK) status = nib_html_chart(out, "Learning rate", &rate, 1, d->steps, false);
    if (status == NIB_OK) status = nib_html_chart(out, "Gradient norm", &norm, 1, d->steps, false);
    if (status == NIB_OK) status = nib_html_chart(out, "Tokens per second", &speed, 1, d->steps, false);
    nib_buffer_text(out, "</div>\n");
    nib_free(smooth.point);
    return status;
}

void nib_report_sources(nib_buffer *out, const nib_report_data *d)
{
    static const char *const counts[] = {"rows", "tokens", "supervised_tokens", "longest", "duplicates", "over_long"};
    const nib_json *sources = nib_json_get(d->facts, "data");
    nib_buffer_text(out, "<h2>Data</h2>\n<div class=\"scroll\"><table>\n<tr><th>Source</th><th class=\"left\">Use</th>"
                         "<th>Rows</th><th>Tokens</th><th>Supervised</th><th>Longest</th><th>Duplicates</th>"
                         "<th>Over-long</th></tr>\n");
    for (const nib_json *s = nib_json_is(sources, NIB_JSON_ARRAY) ? sources->first : NULL; s != NULL; s = s->next) {
        nib_buffer_text(out, "<tr><td>");
        nib_html_text(out, nib_report_string(s, "name"));
        nib_buffer_text(out, "</td><td class=\"left\">");
        nib_html_text(out, nib_report_string(s, "use"));
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            nib_buffer_text(out, "</td><td>");
            nib_html_count(out, nib_report_count(s, counts[i]));
        }
        nib_buffer_text(out, "</td></tr>\n");
    }
    nib_buffer_text(out, "</table></div>\n");
    if (d->computed_tokens <= 0 || d->computed_tokens >= d->tokens) return;
    nib_buffer_text(out, "<p class=\"note\">Beginnings that rows of a step share were computed once: ");
    nib_html_count(out, d->tokens);
    nib_buffer_text(out, " tokens were trained on, ");
    nib_html_count(out, d->computed_tokens);
    nib_buffer_format(out, " went through the model, a factor of %.2f.</p>\n",
                      (double)d->tokens / (double)d->computed_tokens);
}

void nib_report_memory(nib_buffer *out, const nib_report_data *d)
{
    enum { HUES = 6 };
    const nib_json *classes = nib_json_get(d->facts, "memory");
    double total = 0;
    if (!nib_json_is(classes, NIB_JSON_ARRAY) || classes->length == 0) return;
    for (const nib_json *c = classes->first; c != NULL; c = c->next) total += (double)nib_report_count(c, "bytes");
    nib_buffer_text(out, "<section><h2>Memory</h2>\n<div class=\"bar\">");
    int hue = 0;
    for (const nib_json *c = classes->first; c != NULL; c = c->next, hue++)
        nib_buffer_format(out, "<i style=\"flex:%.4f;background:var(--m%d)\"></i>",
                          (double)nib_report_count(c, "bytes") / fmax(total, 1), hue % HUES);
    nib_buffer_text(out, "</div>\n<dl class=\"facts\">\n");
    hue = 0;
    for (const nib_json *c = classes->first; c != NULL; c = c->next, hue++) {
        nib_buffer_format(out, "<dt><i class=\"swatch\" style=\"background:var(--m%d)\"></i>", hue % HUES);
        nib_html_text(out, nib_report_string(c, "name"));
        nib_buffer_text(out, "</dt><dd>");
        nib_html_bytes(out, (double)nib_report_count(c, "bytes"));
        nib_buffer_text(out, "</dd>\n");
    }
    nib_buffer_text(out, "<dt>All of these</dt><dd>");
    nib_html_bytes(out, total);
    if (d->peak_bytes > 0) {
        nib_buffer_text(out, "</dd>\n<dt>Peak of the process</dt><dd>");
        nib_html_bytes(out, (double)d->peak_bytes);
    }
    nib_buffer_text(out, "</dd>\n</dl></section>\n");
}

static void fact(nib_buffer *out, const char *term, const char *text)
{
    if (text[0] == 0) return;
    nib_buffer_format(out, "<dt>%s</dt><dd>", term);
    nib_html_text(out, text);
    nib_buffer_text(out, "</dd>\n");
}

void nib_report_machine(nib_buffer *out, const nib_report_data *d)
{
    const nib_json *f = d->facts;
    nib_buffer_text(out, "<section><h2>Machine</h2>\n<dl class=\"facts\">\n");
    fact(out, "Processor", nib_report_string(f, "processor"));
    nib_buffer_format(out, "<dt>Threads</dt><dd>%lld of %lld processors</dd>\n",
                      (long long)nib_report_count(f, "threads"), (long long)nib_report_count(f, "processors"));
    fact(out, "Instructions", nib_report_string(f, "instructions"));
    nib_buffer_text(out, "<dt>Memory</dt><dd>");
    nib_html_bytes(out, (double)nib_report_count(f, "memory_bytes"));
    nib_buffer_text(out, "</dd>\n");
    fact(out, "System", nib_report_string(f, "system"));
    fact(out, "Backend", nib_report_string(f, "backend"));
    nib_buffer_text(out, "</dl></section>\n");
}

void nib_report_configuration(nib_buffer *out, const nib_report_data *d)
{
    nib_buffer_text(out, "<h2>Configuration</h2>\n<details><summary>Every setting, as resolved</summary><pre>");
    nib_html_text(out, d->config_text);
    nib_buffer_text(out, "</pre></details>\n");
}
