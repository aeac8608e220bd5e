/* The answers' section. Prompts of one task begin and end alike: what they have in common is told once, and each row
 * shows what is its own. */
#include "report_html.h"
#include "report_sections.h"

#include <string.h>

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t'; }

/* Bytes that every prompt begins with, up to a gap between words. */
static size_t common_beginning(const nib_report_data *d)
{
    const char *first = d->answer[0].prompt;
    size_t common = strlen(first);
    for (int i = 1; i < d->answers; i++) {
        size_t same = 0;
        while (same < common && d->answer[i].prompt[same] == first[same]) same++;
        common = same;
    }
    while (common > 0 && !is_space(first[common - 1])) common--;
    return common;
}

/* Bytes that every prompt ends with beyond its first `beginning`, from white space or a special token's bracket on. */
static size_t common_end(const nib_report_data *d, size_t beginning)
{
    const char *first = d->answer[0].prompt;
    size_t length = strlen(first), common = length - beginning;
    for (int i = 1; i < d->answers; i++) {
        const char *prompt = d->answer[i].prompt;
        size_t own = strlen(prompt), same = 0;
        while (same < common && same < own - beginning && prompt[own - 1 - same] == first[length - 1 - same]) same++;
        common = same;
    }
    while (common > 0 && !is_space(first[length - common]) && first[length - common] != '<' &&
           first[length - common] != '[')
        common--;
    return common;
}

static void answer(nib_buffer *out, const char *when, const char *text, bool matched)
{
    while (is_space(*text)) text++;
    nib_buffer_format(out, "<div><dt>%s</dt><dd%s dir=\"auto\">", when, *text == 0 ? " class=\"none\"" : "");
    nib_buffer_text(out, matched ? "<span class=\"verdict right\" title=\"the reference, exactly\">✓</span>"
                                 : "<span class=\"verdict wrong\" title=\"not the reference\">×</span>");
    nib_html_text(out, *text == 0 ? "nothing" : text);
    nib_buffer_text(out, "</dd></div>\n");
}

void nib_report_answers(nib_buffer *out, const nib_report_data *d)
{
    if (d->answers == 0) return;
    size_t beginning = d->answers > 1 ? common_beginning(d) : 0, end = d->answers > 1 ? common_end(d, beginning) : 0;
    nib_buffer_text(out, "<h2>Answers</h2>\n<section class=\"answers\">\n");
    for (int i = 0; i < d->answers; i++) {
        const nib_answer_pair *a = &d->answer[i];
        nib_buffer_text(out, "<dl class=\"answer\">\n<div><dt>Prompt</dt><dd dir=\"auto\">");
        nib_html_text_length(out, a->prompt + beginning, strlen(a->prompt) - beginning - end);
        nib_buffer_text(out, "</dd></div>\n");
        if (a->before != NULL) answer(out, "Before", a->before, a->matched_before);
        answer(out, "After", a->after, a->matched_after);
        nib_buffer_text(out, "<div><dt>Reference</dt><dd dir=\"auto\">");
        nib_html_text(out, a->reference);
        nib_buffer_text(out, "</dd></div>\n</dl>\n");
    }
    nib_buffer_text(out, "</section>\n");
    if (beginning + end == 0) return;
    nib_buffer_text(out, "<details><summary>What every prompt begins and ends with</summary><pre>");
    nib_html_text_length(out, d->answer[0].prompt, beginning);
    nib_buffer_text(out, "<em>…</em>");
    nib_html_text(out, d->answer[0].prompt + strlen(d->answer[0].prompt) - end);
    nib_buffer_text(out, "</pre></details>\n");
}
