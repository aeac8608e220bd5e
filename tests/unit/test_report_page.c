/* report.html made from a run folder that no run wrote: hostile text, gaps, and the arithmetic of its curves. The page
 * of a real run is looked at by tests/e2e/test_report. */
#include "check.h"
#include "folder.h"

#include "base/file.h"
#include "report.h"
#include "report_chart.h"
#include "report_html.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_text(const char *name, const char *text)
{
    char *path = nib_path_join(folder, name);
    assert_int_equal(nib_file_replace(path, text, strlen(text)), NIB_OK);
    nib_free(path);
}

static void remove_file(const char *name)
{
    char *path = nib_path_join(folder, name);
    remove(path);
    nib_free(path);
}

static char *report(void)
{
    char *path = nib_path_join(folder, "report.html"), *text;
    size_t length;
    assert_int_equal(nib_report_write(folder), NIB_OK);
    assert_int_equal(nib_file_read(path, 1 << 20, &text, &length), NIB_OK);
    nib_free(path);
    return text;
}

static int count_of(const char *page, const char *needle)
{
    int count = 0;
    for (const char *at = page; (at = strstr(at, needle)) != NULL; at++) count++;
    return count;
}

/* A run of three steps, the second of which was not finite. */
static int make_run(void **state)
{
    if (make_folder(state) != 0) return -1;
    write_text("config.json",
               "{\"model\": \"/m/<b>model</b>\", \"output\": \"/runs/</title><script>x\", \"lora\": {\"r\": "
               "8}, \"quantization\": \"nf4\", \"note\": \"</pre><script>evil()</script>\"}");
    write_text("run.json",
               "{\"version\": \"<i>1\", \"processor\": \"\\\"><script>\", \"steps\": 3, \"memory\": [{\"name\": "
               "\"<script>\", \"bytes\": 1048576}], \"data\": [{\"name\": \"'\\\"<script>\", \"use\": \"train\", "
               "\"rows\": 1234567}]}");
    write_text("metrics.jsonl",
               "{\"event\":\"before\",\"step\":0,\"loss\":2.5,\"perplexity\":12.18,\"exact_match\":0}\n"
               "{\"event\":\"step\",\"step\":0,\"loss\":2.25,\"grad_norm\":1,\"learning_rate\":1e-5,\"tokens\":10,"
               "\"computed_tokens\":4,\"tokens_per_second\":5,\"seconds\":2,\"applied\":true,\"time\":1700000000}\n"
               "{\"event\":\"step\",\"step\":1,\"loss\":null,\"grad_norm\":null,\"learning_rate\":1e-5,\"tokens\":10,"
               "\"computed_tokens\":4,\"tokens_per_second\":5,\"seconds\":2,\"applied\":false}\n"
               "{\"event\":\"step\",\"step\":2,\"loss\":1.125,\"grad_norm\":1,\"learning_rate\":1e-5,\"tokens\":10,"
               "\"computed_tokens\":4,\"tokens_per_second\":5,\"seconds\":2,\"applied\":true}\n"
               "{\"event\":\"eval\",\"step\":3,\"loss\":1.5,\"perplexity\":4.48,\"exact_match\":0.5,\"best\":true,"
               "\"seconds\":1}\n");
    return 0;
}

static void hostile_text_stays_text(void **state)
{
    (void)state;
    write_text("answers-before.jsonl",
               "{\"sample\":1,\"prompt\":\"\",\"output\":\"</dd><script>alert(1)</script>\"}\n");
    write_text(
        "answers.jsonl",
        "{\"sample\":1,\"prompt\":\"Say: <b>a&b</b> end\",\"output\":\"\\u0000\\u0007\\u001b[31m\","
        "\"reference\":\"<img src=x onerror=y>\",\"exact_match\":false}\n"
        "{\"sample\":7,\"prompt\":\"Say: 'q' end\",\"output\":\" \\n\",\"reference\":\"\",\"exact_match\":true}\n");
    assert_int_equal(nib_report_write(folder), NIB_ERROR_DATA); /* a NUL would cut the text */
    write_text(
        "answers.jsonl",
        "{\"sample\":1,\"prompt\":\"Say: <b>a&b</b> end\",\"output\":\"\\u0007\\u001b[31m\","
        "\"reference\":\"<img src=x onerror=y>\",\"exact_match\":false}\n"
        "{\"sample\":7,\"prompt\":\"Say: 'q' end\",\"output\":\" \\n\",\"reference\":\"\",\"exact_match\":true}\n");
    char *page = report();
    assert_int_equal(count_of(page, "<script>"), 1); /* its own */
    assert_int_equal(count_of(page, "</script>"), 1);
    assert_int_equal(count_of(page, "<title>"), 1);
    assert_null(strstr(page, "<img"));
    assert_null(strstr(page, "<b>a"));
    assert_null(strstr(page, "evil()</"));
    assert_null(strchr(page, 0x1b));
    assert_null(strchr(page, 0x07));
    assert_non_null(strstr(page, "&lt;/dd&gt;&lt;script&gt;alert(1)&lt;/script&gt;"));
    /* What the prompts share is told once, and cut between words. */
    assert_non_null(strstr(page, "<dd dir=\"auto\">&lt;b&gt;a&amp;b&lt;/b&gt;</dd>"));
    assert_non_null(strstr(page, "<dd dir=\"auto\">&#39;q&#39;</dd>"));
    assert_non_null(strstr(page, "<pre>Say: <em>…</em> end</pre>"));
    assert_non_null(strstr(page, "<span>0</span><i>→</i><strong>1</strong><u>of 2</u>"));
    assert_int_equal(count_of(page, ">✓</span>"), 1);
    assert_int_equal(count_of(page, ">×</span>"), 2);
    nib_free(page);
    remove_file("answers.jsonl");
    remove_file("answers-before.jsonl");
}

static void figures_are_those_of_the_lines(void **state)
{
    (void)state;
    char *page = report();
    assert_non_null(strstr(page, "<span>2.500</span><i>→</i><strong>1.500</strong>"));
    assert_non_null(strstr(page, "<span>12.2</span><i>→</i><strong>4.48</strong>"));
    assert_non_null(strstr(page, "<span>0</span><i>→</i><strong>50</strong><u>%</u>"));
    assert_non_null(strstr(page, "Steps not applied</dt><dd class=\"wrong\">1<"));
    assert_non_null(strstr(page, "30 tokens were trained on, 12 went through the model, a factor of 2.50"));
    assert_non_null(strstr(page, "1,234,567"));
    assert_non_null(strstr(page, "At step 3 of 3"));
    assert_non_null(strstr(page, "<dd>7.0 s<"));                          /* three steps and an evaluation */
    assert_non_null(strstr(page, "[\"training\",[[1,2.25],[3,1.125]]]")); /* the second loss was not finite */
    assert_non_null(strstr(page, "[\"evaluation\",[[0,2.5],[3,1.5]]]"));
    assert_non_null(strstr(page, "14 November 2023, 22:13 UTC")); /* date -u -d @1700000000 */
    assert_null(strstr(page, "<h2>Answers"));
    nib_free(page);
}

static void a_broken_folder_is_named(void **state)
{
    (void)state;
    write_text("answers.jsonl", "{\"sample\":1,\n");
    assert_int_equal(nib_report_write(folder), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "answers.jsonl"));
    remove_file("answers.jsonl");
    assert_int_equal(nib_report_write("/nowhere"), NIB_ERROR_DATA);
    assert_non_null(strstr(nib_error_message(), "/nowhere/config.json"));
}

static void ticks_are_round(void **state)
{
    (void)state;
    static const struct {
        double low, high;
        int count;
        double want_low, want_high, want_step;
    } cases[] = {{0, 0.93, 5, 0, 1, 0.2},       {0.31, 5.9, 5, 0, 6, 1}, {0, 2e-5, 3, 0, 2e-5, 5e-6},
                 {0, 12000, 6, 0, 12000, 2000}, {-3, 4, 5, -3, 4, 1},    {7, 7, 4, 2, 12, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double low = cases[i].low, high = cases[i].high, step;
        nib_nice_ticks(&low, &high, cases[i].count, &step);
        assert_true(fabs(low - cases[i].want_low) < 1e-12);
        assert_true(fabs(high - cases[i].want_high) < 1e-12 * fabs(high));
        assert_true(fabs(step - cases[i].want_step) < 1e-12 * step);
    }
}

enum { LONG = 5000 };

static void make_long(nib_curve *curve, nib_point *points)
{
    for (int i = 0; i < LONG; i++) points[i] = (nib_point){i + 1, sin(0.37 * i) + 1e-3 * i};
    points[3210].y = 99; /* a spike that must not be lost */
    *curve = (nib_curve){.point = points, .count = LONG};
}

static void smoothing_is_its_formula(void **state)
{
    (void)state;
    static nib_point points[LONG];
    nib_curve curve, smooth;
    const double decay = 0.8;
    make_long(&curve, points);
    curve.count = 300;
    assert_int_equal(nib_curve_smooth(&curve, decay, &smooth), NIB_OK);
    assert_int_equal(smooth.count, curve.count);
    for (int i = 0; i < 300; i++) {
        double sum = 0, weight = 0;
        for (int j = 0; j < 300; j++) {
            sum += pow(decay, abs(i - j)) * points[j].y;
            weight += pow(decay, abs(i - j));
        }
        assert_true(smooth.point[i].x == points[i].x);
        assert_true(fabs(smooth.point[i].y - sum / weight) < 1e-12); /* roundings of 300 terms of size 1 */
    }
    nib_free(smooth.point);
}

static void thinning_keeps_peaks(void **state)
{
    (void)state;
    static nib_point points[LONG];
    nib_curve curve, thin;
    make_long(&curve, points);
    assert_int_equal(nib_curve_thin(&curve, 100, &thin), NIB_OK);
    assert_true(thin.count <= 200 && thin.count > 150);
    double high = 0, low = 0;
    for (size_t i = 0; i < thin.count; i++) {
        assert_true(i == 0 || thin.point[i].x > thin.point[i - 1].x);
        assert_true(thin.point[i].y == points[(int)thin.point[i].x - 1].y);
        high = fmax(high, thin.point[i].y);
        low = fmin(low, thin.point[i].y);
    }
    double want = 0;
    for (int i = 0; i < LONG; i++) want = fmin(want, points[i].y);
    assert_true(high == 99 && low == want);
    nib_free(thin.point);
    curve.count = 200;
    assert_int_equal(nib_curve_thin(&curve, 100, &thin), NIB_OK);
    assert_int_equal(thin.count, 200);
    assert_memory_equal(thin.point, points, 200 * sizeof *points);
    nib_free(thin.point);
}

static void numbers_are_readable(void **state)
{
    (void)state;
    nib_buffer out = {0};
    nib_html_count(&out, 1080);
    nib_buffer_char(&out, ' ');
    nib_html_count(&out, 999);
    nib_buffer_char(&out, ' ');
    nib_html_count(&out, -1234567);
    nib_buffer_char(&out, ' ');
    nib_html_number(&out, 2e-5);
    nib_buffer_char(&out, ' ');
    nib_html_number(&out, 0.41234);
    nib_buffer_char(&out, ' ');
    nib_html_number(&out, 14199.6);
    nib_buffer_char(&out, ' ');
    nib_html_seconds(&out, 187);
    nib_buffer_char(&out, ' ');
    nib_html_seconds(&out, 7500);
    nib_buffer_char(&out, ' ');
    nib_html_bytes(&out, 1.5 * (1 << 30));
    assert_string_equal(out.data, "1,080 999 -1,234,567 2e-5 0.4123 14,200 3 min 07 s 2 h 05 min 1.50 GiB");
    nib_buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_text_stays_text),  cmocka_unit_test(figures_are_those_of_the_lines),
        cmocka_unit_test(a_broken_folder_is_named), cmocka_unit_test(ticks_are_round),
        cmocka_unit_test(smoothing_is_its_formula), cmocka_unit_test(thinning_keeps_peaks),
        cmocka_unit_test(numbers_are_readable),
    };
    return cmocka_run_group_tests(tests, make_run, remove_folder);
}
