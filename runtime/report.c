#include "report.h"
#include "base/file.h"
#include "base/json.h"
#include "cpu/backend.h"
#include "machine.h"
#include "report_page.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_METRICS_BYTES ((size_t)4 << 30)
#define MAX_ANSWERS_BYTES ((size_t)64 << 20)
#define SAMPLES_SHOWN     8

typedef struct {
    nib_point *point;
    size_t count, capacity;
} point_list;

/* metrics.jsonl as curves and totals. */
typedef struct {
    point_list loss, rate, norm, speed, evaluation;
    int64_t tokens, computed_tokens, supervised_tokens, skipped;
    double seconds; /* in steps */
    double exact_before, exact_after;
} history;

static void free_history(history *h)
{
    point_list *lists[] = {&h->loss, &h->rate, &h->norm, &h->speed, &h->evaluation};
    for (int i = 0; i < 5; i++) nib_free(lists[i]->point);
}

static double number_of(const nib_json *object, const char *key)
{
    const nib_json *value = nib_json_get(object, key);
    return nib_json_is(value, NIB_JSON_NUMBER) ? value->number : NAN;
}

static int64_t count_of(const nib_json *object, const char *key)
{
    const nib_json *value = nib_json_get(object, key);
    return nib_json_is(value, NIB_JSON_NUMBER) && value->is_integer ? value->integer : 0;
}

static nib_status add_point(point_list *list, double x, double y)
{
    if (!isfinite(y)) return NIB_OK;
    if (!nib_grow(&list->point, &list->capacity, list->count + 1, sizeof *list->point))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the report's curves");
    list->point[list->count++] = (nib_point){x, y};
    return NIB_OK;
}

static nib_status add_event(history *h, const nib_json *line)
{
    const nib_json *event = nib_json_get(line, "event");
    double step = number_of(line, "step");
    if (!nib_json_is(event, NIB_JSON_STRING)) return NIB_OK;
    if (strcmp(event->string, "before") == 0) {
        h->exact_before = number_of(line, "exact_match");
    } else if (strcmp(event->string, "eval") == 0) {
        h->exact_after = number_of(line, "exact_match");
        return add_point(&h->evaluation, step, number_of(line, "loss"));
    } else if (strcmp(event->string, "step") == 0) {
        step += 1; /* steps taken, as evaluations count */
        h->tokens += count_of(line, "tokens");
        h->computed_tokens += count_of(line, "computed_tokens");
        h->supervised_tokens += count_of(line, "supervised_tokens");
        h->skipped += nib_json_is(nib_json_get(line, "applied"), NIB_JSON_FALSE);
        h->seconds += number_of(line, "seconds");
        NIB_TRY(add_point(&h->loss, step, number_of(line, "loss")));
        NIB_TRY(add_point(&h->norm, step, number_of(line, "grad_norm")));
        NIB_TRY(add_point(&h->speed, step, number_of(line, "tokens_per_second")));
        return add_point(&h->rate, step, number_of(line, "learning_rate"));
    }
    return NIB_OK;
}

/* Calls add for every line of a JSONL file; an absent file has none. */
static nib_status for_lines(const char *path, size_t max, nib_status (*add)(void *, const nib_json *), void *user)
{
    char *text;
    size_t length;
    nib_status status = NIB_OK;
    if (!nib_file_exists(path)) return NIB_OK;
    NIB_TRY(nib_file_read(path, max, &text, &length));
    for (size_t at = 0; at < length && status == NIB_OK;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t line = end == NULL ? length - at : (size_t)(end - text) - at;
        nib_pool pool = {0};
        nib_json *root;
        status = nib_json_parse(path, text + at, line, (nib_json_options){0}, &pool, &root);
        if (status == NIB_OK) status = add(user, root);
        nib_pool_free(&pool);
        at += line + 1;
    }
    nib_free(text);
    return status;
}

static nib_status add_metrics_line(void *user, const nib_json *line) { return add_event(user, line); }

static void tile(nib_buffer *out, const char *label, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void tile(nib_buffer *out, const char *label, const char *format, ...)
{
    char text[64];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    nib_buffer_text(out, "<div class=\"tile\"><b>");
    nib_html_text(out, text);
    nib_buffer_format(out, "</b><span>%s</span></div>\n", label);
}

static void duration(char text[32], double seconds)
{
    int s = (int)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, 32, "%d h %02d min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(text, 32, "%d min %02d s", s / 60, s % 60);
    else
        snprintf(text, 32, "%.1f s", seconds);
}

static void headline(nib_buffer *out, const nib_training *t, const history *h)
{
    char time[32];
    duration(time, h->seconds);
    nib_buffer_text(out, "<div class=\"tiles\">\n");
    if (isfinite(h->exact_before) && isfinite(h->exact_after))
        tile(out, "exact match, before and now", "%.1f → %.1f %%", 100 * h->exact_before, 100 * h->exact_after);
    if (t->state.best_step >= 0) {
        tile(out, "best evaluation loss", "%.4f", t->state.best_loss);
        tile(out, "perplexity there", "%.4g", exp(t->state.best_loss));
    } else if (h->loss.count > 0) {
        tile(out, "loss of the last step", "%.4f", h->loss.point[h->loss.count - 1].y);
    }
    tile(out, "steps", "%lld of %lld", (long long)t->state.step, (long long)t->schedule.steps);
    tile(out, "tokens per second", "%.0f", h->seconds > 0 ? (double)h->tokens / h->seconds : 0);
    tile(out, "in training steps", "%s", time);
    if (h->computed_tokens > 0 && h->computed_tokens < h->tokens)
        tile(out, "tokens saved by shared prefixes", "%.1f×", (double)h->tokens / (double)h->computed_tokens);
    tile(out, "peak memory of the process", "%.2f GiB", (double)nib_peak_memory() / (1 << 30));
    if (h->skipped > 0) tile(out, "steps not applied (not finite)", "%lld", (long long)h->skipped);
    nib_buffer_text(out, "</div>\n");
}

static void charts(nib_buffer *out, const history *h)
{
    const nib_series loss[] = {{"training", h->loss.point, h->loss.count},
                               {"evaluation", h->evaluation.point, h->evaluation.count}};
    const nib_series rate = {"learning rate", h->rate.point, h->rate.count};
    const nib_series norm = {"gradient norm", h->norm.point, h->norm.count};
    const nib_series speed = {"tokens per second", h->speed.point, h->speed.count};
    nib_buffer_text(out, "<h2>Curves</h2>\n<div class=\"charts\">\n");
    nib_html_chart(out, "Loss", loss, h->evaluation.count > 0 ? 2 : 1, 5);
    nib_html_chart(out, "Learning rate", &rate, 1, 4);
    nib_html_chart(out, "Gradient norm", &norm, 1, 4);
    nib_html_chart(out, "Tokens per second", &speed, 1, 4);
    nib_buffer_text(out, "</div>\n");
}

/* The first answers of one file, copied into a pool. */
typedef struct {
    nib_pool *pool;
    int count;
    struct {
        const char *prompt, *output, *reference;
        bool exact_match;
    } answer[SAMPLES_SHOWN];
} answer_list;

static const char *copy_member(nib_pool *pool, const nib_json *line, const char *key)
{
    const nib_json *value = nib_json_get(line, key);
    const char *copy = nib_json_is(value, NIB_JSON_STRING) ? nib_pool_copy(pool, value->string, value->length) : NULL;
    return copy == NULL ? "" : copy;
}

static nib_status add_answer(void *user, const nib_json *line)
{
    answer_list *list = user;
    if (list->count == SAMPLES_SHOWN) return NIB_OK;
    int i = list->count++;
    list->answer[i].prompt = copy_member(list->pool, line, "prompt");
    list->answer[i].output = copy_member(list->pool, line, "output");
    list->answer[i].reference = copy_member(list->pool, line, "reference");
    list->answer[i].exact_match = nib_json_is(nib_json_get(line, "exact_match"), NIB_JSON_TRUE);
    return NIB_OK;
}

static void definition(nib_buffer *out, const char *term, const char *class_name, const char *text)
{
    nib_buffer_format(out, "<dt>%s</dt><dd class=\"%s\">", term, class_name);
    nib_html_text(out, text);
    nib_buffer_text(out, "</dd>");
}

static nib_status samples(nib_buffer *out, const nib_training *t)
{
    nib_pool pool = {0};
    answer_list before = {.pool = &pool}, after = {.pool = &pool};
    char *first = nib_path_join(t->folder.path, "answers-before.jsonl");
    char *last = nib_path_join(t->folder.path, "answers.jsonl");
    nib_status status = NIB_OK;
    if (first == NULL || last == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the report's samples");
        goto done;
    }
    NIB_TRY_GOTO(for_lines(first, MAX_ANSWERS_BYTES, add_answer, &before), done);
    NIB_TRY_GOTO(for_lines(last, MAX_ANSWERS_BYTES, add_answer, &after), done);
    if (after.count == 0) goto done;
    nib_buffer_text(out, "<h2>Answers before and now</h2>\n<div class=\"samples\">\n");
    for (int i = 0; i < after.count; i++) {
        nib_buffer_text(out, "<div class=\"sample\"><pre>");
        nib_html_text(out, after.answer[i].prompt);
        nib_buffer_text(out, "</pre><dl>");
        if (i < before.count)
            definition(out, "before", before.answer[i].exact_match ? "yes" : "no", before.answer[i].output);
        definition(out, "now", after.answer[i].exact_match ? "yes" : "no", after.answer[i].output);
        definition(out, "reference", "", after.answer[i].reference);
        nib_buffer_text(out, "</dl></div>\n");
    }
    nib_buffer_text(out, "</div>\n");
done:
    nib_free(first);
    nib_free(last);
    nib_pool_free(&pool);
    return status;
}

static void data_rows(nib_buffer *out, const nib_dataset *dataset, const char *use)
{
    for (int i = 0; dataset != NULL && i < nib_dataset_sources(dataset); i++) {
        const nib_source_report *r = nib_dataset_report(dataset, i);
        nib_buffer_text(out, "<tr><td>");
        nib_html_text(out, r->name != NULL ? r->name : r->path);
        nib_buffer_format(out,
                          "</td><td>%s</td><td>%lld</td><td>%lld</td><td>%lld</td><td>%lld</td><td>%lld</td>"
                          "<td>%lld</td></tr>\n",
                          use, (long long)r->samples, (long long)r->tokens, (long long)r->supervised_tokens,
                          (long long)r->longest, (long long)r->duplicates,
                          (long long)(r->dropped + r->truncated + r->split));
    }
}

static void tables(nib_buffer *out, const nib_training *t)
{
    const nib_memory_class *classes;
    int count = nib_model_memory(t->model, &classes);
    size_t total = 0;
    nib_buffer_text(out, "<h2>Data</h2>\n<div class=\"table\"><table><thead><tr><th>source</th><th>use</th><th>samples"
                         "</th><th>tokens</th><th>supervised</th><th>longest</th><th>duplicates</th><th>over-long</th>"
                         "</tr></thead><tbody>\n");
    data_rows(out, t->train, "train");
    data_rows(out, t->eval, "evaluate");
    nib_buffer_text(out,
                    "</tbody></table></div>\n<h2>Memory</h2>\n<div class=\"table\"><table><thead><tr><th>class</th>"
                    "<th>MiB</th></tr></thead><tbody>\n");
    for (int i = 0; i < count; i++) {
        nib_buffer_text(out, "<tr><td>");
        nib_html_text(out, classes[i].name);
        nib_buffer_format(out, "</td><td>%.1f</td></tr>\n", (double)classes[i].bytes / (1 << 20));
        total += classes[i].bytes;
    }
    nib_buffer_format(out,
                      "<tr><td>all tensors</td><td>%.1f</td></tr>\n<tr><td>peak of the process</td><td>%.1f</td></tr>\n"
                      "</tbody></table></div>\n",
                      (double)total / (1 << 20), (double)nib_peak_memory() / (1 << 20));
}

static nib_status settings(nib_buffer *out, const nib_training *t)
{
    nib_buffer text = {0};
    nib_status status = nib_config_write(t->config, &text);
    nib_buffer_text(out, "<h2>Settings</h2>\n<details><summary>Configuration as resolved</summary><pre>");
    if (status == NIB_OK) nib_html_text(out, text.data);
    nib_buffer_text(out, "</pre></details>\n<details open><summary>Machine</summary><pre>");
    nib_buffer_clear(&text);
    nib_machine_describe(&text);
    nib_buffer_format(&text, "\nbackend %s, %s", t->ops->name, nib_cpu_features());
    if (!text.failed) nib_html_text(out, text.data);
    nib_buffer_text(out, "</pre></details>\n");
    nib_buffer_free(&text);
    return status;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL || slash[1] == 0 ? path : slash + 1;
}

nib_status nib_report_write(const nib_training *t)
{
    history h = {.exact_before = NAN, .exact_after = NAN};
    nib_buffer page = {0};
    nib_status status = for_lines(t->folder.metrics, MAX_METRICS_BYTES, add_metrics_line, &h);
    if (status != NIB_OK) goto done;
    nib_html_begin(&page, last_part(t->config->output));
    nib_buffer_text(&page, "<h1>");
    nib_html_text(&page, last_part(t->config->output));
    nib_buffer_text(&page, "</h1>\n<p class=\"sub\">");
    nib_html_text(&page, last_part(t->config->model));
    if (t->config->has_lora)
        nib_buffer_format(&page, ", LoRA of rank %lld on %s weights", (long long)t->config->lora.r,
                          t->config->quantization == NIB_QUANT_NF4 ? "NF4" : "16-bit");
    nib_buffer_text(&page, "</p>\n");
    headline(&page, t, &h);
    charts(&page, &h);
    NIB_TRY_GOTO(samples(&page, t), done);
    tables(&page, t);
    NIB_TRY_GOTO(settings(&page, t), done);
    nib_html_end(&page);
    status = page.failed ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", t->folder.report)
                         : nib_file_replace(t->folder.report, page.data, page.length);
done:
    nib_buffer_free(&page);
    free_history(&h);
    return status;
}
