#include "report_page.h"

#include <math.h>
#include <string.h>

void nib_html_text(nib_buffer *out, const char *text)
{
    for (const char *at = text; *at != 0; at++) {
        switch (*at) {
        case '&':
            nib_buffer_text(out, "&amp;");
            break;
        case '<':
            nib_buffer_text(out, "&lt;");
            break;
        case '>':
            nib_buffer_text(out, "&gt;");
            break;
        case '"':
            nib_buffer_text(out, "&quot;");
            break;
        case '\'':
            nib_buffer_text(out, "&#39;");
            break;
        default:
            nib_buffer_char(out, *at);
        }
    }
}

static const char style[] =
    ":root{color-scheme:light dark;--page:#fbfbfa;--card:#fff;--ink:#1d1f23;--soft:#5f6672;--line:#e4e5e8;"
    "--one:#2459c9;--two:#c2571a;--good:#1c7a45}"
    "@media(prefers-color-scheme:dark){:root{--page:#131417;--card:#1b1d21;--ink:#e8e9ec;--soft:#9aa1ad;--line:#2d3037;"
    "--one:#7ea6ff;--two:#f0975a;--good:#62c48d}}"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,"
    "sans-serif;-webkit-text-size-adjust:100%}"
    "main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}"
    "h1{font-size:26px;line-height:1.25;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}"
    "h2{font-size:17px;margin:44px 0 14px}"
    ".sub{color:var(--soft);margin:6px 0 0;overflow-wrap:anywhere}"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:12px;margin-top:28px}"
    ".tile,figure,.sample,.table,details{background:var(--card);border:1px solid var(--line);border-radius:10px}"
    ".tile{padding:14px 16px}"
    ".tile b{display:block;font-size:22px;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}"
    ".tile span{color:var(--soft);font-size:13px}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:14px}"
    "figure{margin:0;padding:14px 16px 8px}"
    "figcaption{display:flex;flex-wrap:wrap;gap:2px 16px;align-items:baseline;font-weight:600;font-size:14px}"
    "figcaption i{font-style:normal;font-weight:400;font-size:13px;color:var(--soft)}"
    "figcaption i::before{content:'';display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;"
    "vertical-align:middle;background:currentColor}"
    "figcaption i.s0::before{background:var(--one)}figcaption i.s1::before{background:var(--two)}"
    "figcaption output{margin-left:auto;font-weight:400;font-size:13px;color:var(--soft);"
    "font-variant-numeric:tabular-nums}"
    "svg{display:block;width:100%;height:auto;touch-action:pan-y}"
    "svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}"
    "svg .grid{stroke:var(--line)}svg .cursor{stroke:var(--soft);stroke-dasharray:3 3;visibility:hidden}"
    "svg path{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}"
    "svg .s0{stroke:var(--one)}svg .s1{stroke:var(--two)}svg .now{visibility:hidden}"
    "svg circle.s0{fill:var(--one);stroke:var(--card)}svg circle.s1{fill:var(--two);stroke:var(--card)}"
    ".table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}"
    "th,td{padding:8px 14px;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    "th{font-weight:500;color:var(--soft);font-size:13px}th:first-child,td:first-child{text-align:left}"
    "tr+tr td,tbody tr td{border-top:1px solid var(--line)}"
    ".samples{display:grid;gap:12px}.sample{padding:14px 16px}"
    ".sample pre{margin:0 0 10px;color:var(--soft);max-height:18em;overflow:auto}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"
    "monospace}"
    ".sample dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 14px;margin:0;padding-top:10px;"
    "border-top:1px solid var(--line)}"
    ".sample dt{color:var(--soft);font-size:13px}.sample dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}"
    ".yes{color:var(--good)}.no{color:var(--soft)}"
    "details{padding:0 16px;margin-top:12px}summary{cursor:pointer;padding:11px 0;font-weight:500}"
    "details pre{margin:0 0 14px}footer{margin-top:44px;color:var(--soft);font-size:13px}"
    "@media(max-width:520px){main{padding:26px 14px 44px}h1{font-size:22px}.tiles{grid-template-columns:1fr 1fr}"
    ".tile b{font-size:19px}svg text{font-size:15px}}";

/* For the pointer over a curve: the nearest point's values in the caption. */
static const char script[] =
    "for(const f of document.querySelectorAll('figure')){const v=f.querySelector('svg'),o=f.querySelector('output'),"
    "d=JSON.parse(v.dataset.points),[x0,x1,y0,y1,n]=JSON.parse(v.dataset.range),c=v.querySelector('.cursor'),"
    "m=[...v.querySelectorAll('.now')],X=x=>64+(x-x0)/(x1-x0)*440,Y=y=>196-(y-y0)/(y1-y0)*180;"
    "v.addEventListener('pointermove',e=>{const r=v.getBoundingClientRect(),"
    "x=x0+((e.clientX-r.left)/r.width*520-64)/440*(x1-x0);let t='',at=null;"
    "d.forEach((p,i)=>{let b=p[0];for(const q of p)if(Math.abs(q[0]-x)<Math.abs(b[0]-x))b=q;if(!b)return;"
    "if(at===null)at=b[0];m[i].setAttribute('cx',X(b[0]));m[i].setAttribute('cy',Y(b[1]));"
    "m[i].style.visibility='visible';t+=(i?', ':'')+b[1].toPrecision(n)+(i&&b[0]!==at?' at '+b[0]:'')});"
    "c.setAttribute('x1',X(at));c.setAttribute('x2',X(at));c.style.visibility='visible';"
    "o.textContent='step '+at+': '+t});"
    "v.addEventListener('pointerleave',()=>{o.textContent='';c.style.visibility='hidden';"
    "m.forEach(k=>k.style.visibility='hidden')})}";

void nib_html_begin(nib_buffer *out, const char *title)
{
    nib_buffer_text(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                         "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>");
    nib_html_text(out, title);
    nib_buffer_text(out, "</title>\n<style>");
    nib_buffer_text(out, style);
    nib_buffer_text(out, "</style></head>\n<body><main>\n");
}

void nib_html_end(nib_buffer *out)
{
    nib_buffer_text(out, "<footer>Written by nibble.</footer>\n</main>\n<script>");
    nib_buffer_text(out, script);
    nib_buffer_text(out, "</script></body></html>\n");
}

/* The plot's frame within a view of 520 x 224; the script has the same numbers. */
#define LEFT        64.0
#define WIDTH       440.0
#define BOTTOM      196.0
#define HEIGHT      180.0
#define MOST_POINTS 600
#define MOST_DOTS   24 /* short series show their points */

typedef struct {
    double x0, x1, y0, y1, y_step;
} frame;

/* A step of 1, 2 or 5 times a power of ten that cuts span into at most `most` parts. */
static double nice_step(double span, int most)
{
    double power = pow(10, floor(log10(span / most)));
    static const double factors[] = {1, 2, 5, 10};
    for (int i = 0; i < 4; i++)
        if (span / (power * factors[i]) <= most) return power * factors[i];
    return power * 10;
}

static frame fit(const nib_series *series, int count)
{
    frame f = {.x0 = INFINITY, .x1 = -INFINITY, .y0 = INFINITY, .y1 = -INFINITY};
    for (int s = 0; s < count; s++) {
        for (size_t i = 0; i < series[s].count; i++) {
            f.x0 = fmin(f.x0, series[s].point[i].x);
            f.x1 = fmax(f.x1, series[s].point[i].x);
            f.y0 = fmin(f.y0, series[s].point[i].y);
            f.y1 = fmax(f.y1, series[s].point[i].y);
        }
    }
    if (f.x1 <= f.x0) f.x1 = f.x0 + 1;
    if (f.y1 <= f.y0) f.y1 = f.y0 + fmax(1e-12, fabs(f.y0) * 0.1);
    f.y_step = nice_step(f.y1 - f.y0, 4);
    f.y0 = floor(f.y0 / f.y_step) * f.y_step;
    f.y1 = ceil(f.y1 / f.y_step) * f.y_step;
    return f;
}

static double at_x(const frame *f, double x) { return LEFT + (x - f->x0) / (f->x1 - f->x0) * WIDTH; }
static double at_y(const frame *f, double y) { return BOTTOM - (y - f->y0) / (f->y1 - f->y0) * HEIGHT; }

static void axes(nib_buffer *out, const frame *f)
{
    int lines = (int)lround((f->y1 - f->y0) / f->y_step);
    for (int i = 0; i <= lines; i++) {
        double value = f->y0 + i * f->y_step, y = at_y(f, value);
        if (fabs(value) < 1e-9 * f->y_step) value = 0;
        nib_buffer_format(out,
                          "<line class=\"grid\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>"
                          "<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>",
                          LEFT, LEFT + WIDTH, y, y, LEFT - 8, y + 4, value);
    }
    double step = fmax(1, nice_step(f->x1 - f->x0, 5));
    for (double x = ceil(f->x0 / step) * step; x <= f->x1; x += step)
        nib_buffer_format(out, "<text x=\"%.1f\" y=\"217\" text-anchor=\"middle\">%.6g</text>", at_x(f, x), x);
}

static size_t stride_of(const nib_series *series) { return (series->count + MOST_POINTS - 1) / MOST_POINTS; }

/* Visits every stride-th point, and the last. */
static size_t next_point(const nib_series *series, size_t i)
{
    size_t next = i + stride_of(series);
    return i + 1 < series->count && next >= series->count ? series->count - 1 : next;
}

static void curve(nib_buffer *out, const frame *f, const nib_series *series, int s)
{
    nib_buffer_format(out, "<path class=\"s%d\" d=\"", s);
    for (size_t i = 0; i < series->count; i = next_point(series, i))
        nib_buffer_format(out, "%s%.1f %.1f", i == 0 ? "M" : "L", at_x(f, series->point[i].x),
                          at_y(f, series->point[i].y));
    nib_buffer_text(out, "\"/>");
    for (size_t i = 0; i < series->count && series->count <= MOST_DOTS; i++)
        nib_buffer_format(out, "<circle class=\"s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>", s,
                          at_x(f, series->point[i].x), at_y(f, series->point[i].y));
}

void nib_html_chart(nib_buffer *out, const char *title, const nib_series *series, int count, int digits)
{
    bool drawable = false;
    for (int s = 0; s < count; s++) drawable |= series[s].count > 1;
    if (!drawable) return;
    frame f = fit(series, count);
    nib_buffer_text(out, "<figure><figcaption>");
    nib_html_text(out, title);
    for (int s = 0; s < count && count > 1; s++) {
        nib_buffer_format(out, "<i class=\"s%d\">", s);
        nib_html_text(out, series[s].name);
        nib_buffer_text(out, "</i>");
    }
    nib_buffer_format(out,
                      "<output></output></figcaption>\n<svg viewBox=\"0 0 520 224\" role=\"img\" "
                      "data-range=\"[%.9g,%.9g,%.9g,%.9g,%d]\" data-points=\"[",
                      f.x0, f.x1, f.y0, f.y1, digits);
    for (int s = 0; s < count; s++) {
        nib_buffer_text(out, s == 0 ? "[" : ",[");
        for (size_t i = 0; i < series[s].count; i = next_point(&series[s], i))
            nib_buffer_format(out, "%s[%.9g,%.6g]", i == 0 ? "" : ",", series[s].point[i].x, series[s].point[i].y);
        nib_buffer_char(out, ']');
    }
    nib_buffer_text(out, "]\">");
    axes(out, &f);
    nib_buffer_format(out, "<line class=\"cursor\" y1=\"%.0f\" y2=\"%.0f\"/>", BOTTOM - HEIGHT, BOTTOM);
    for (int s = 0; s < count; s++) curve(out, &f, &series[s], s);
    for (int s = 0; s < count; s++) nib_buffer_format(out, "<circle class=\"now s%d\" r=\"4\"/>", s);
    nib_buffer_text(out, "</svg></figure>\n");
}
