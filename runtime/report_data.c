#include "report_data.h"
#include "base/file.h"

#include <math.h>
#include <string.h>

#define MAX_METRICS_BYTES ((size_t)4 << 30)
#define MAX_OTHER_BYTES   ((size_t)64 << 20)

double nib_report_number(const nib_json *object, const char *key)
{
    const nib_json *value = nib_json_get(object, key);
    return nib_json_is(value, NIB_JSON_NUMBER) ? value->number : NAN;
}

int64_t nib_report_count(const nib_json *object, const char *key)
{
    const nib_json *value = nib_json_get(object, key);
    return nib_json_is(value, NIB_JSON_NUMBER) && value->is_integer ? value->integer : 0;
}

const char *nib_report_string(const nib_json *object, const char *key)
{
    const nib_json *value = nib_json_get(object, key);
    return nib_json_is(value, NIB_JSON_STRING) ? value->string : "";
}

static nib_status add_point(nib_curve *curve, double x, double y)
{
    if (!isfinite(y)) return NIB_OK;
    if (!nib_grow(&curve->point, &curve->capacity, curve->count + 1, sizeof *curve->point))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the report's curves");
    curve->point[curve->count++] = (nib_point){x, y};
    return NIB_OK;
}

static nib_status add_step(nib_report_data *d, const nib_json *line)
{
    double seconds = nib_report_number(line, "seconds");
    d->steps = nib_report_count(line, "step") + 1;
    d->tokens += nib_report_count(line, "tokens");
    d->computed_tokens += nib_report_count(line, "computed_tokens");
    d->skipped += nib_json_is(nib_json_get(line, "applied"), NIB_JSON_FALSE);
    if (isfinite(seconds)) d->seconds += seconds;
    NIB_TRY(add_point(&d->loss, (double)d->steps, nib_report_number(line, "loss")));
    NIB_TRY(add_point(&d->norm, (double)d->steps, nib_report_number(line, "grad_norm")));
    NIB_TRY(add_point(&d->speed, (double)d->steps, nib_report_number(line, "tokens_per_second")));
    return add_point(&d->rate, (double)d->steps, nib_report_number(line, "learning_rate"));
}

static nib_status add_evaluation(nib_report_data *d, const nib_json *line, bool of_base)
{
    double seconds = nib_report_number(line, "seconds");
    nib_evaluation evaluation = {.step = nib_report_count(line, "step"),
                                 .loss = nib_report_number(line, "loss"),
                                 .perplexity = nib_report_number(line, "perplexity"),
                                 .exact_match = nib_report_number(line, "exact_match")};
    if (of_base) d->before = evaluation;
    if (nib_json_is(nib_json_get(line, "best"), NIB_JSON_TRUE)) d->best = evaluation;
    if (isfinite(seconds)) d->seconds += seconds;
    return add_point(&d->evaluation, (double)evaluation.step, evaluation.loss);
}

static nib_status add_event(nib_report_data *d, const nib_json *line)
{
    const char *event = nib_report_string(line, "event");
    int64_t time = nib_report_count(line, "time"), peak = nib_report_count(line, "peak_bytes");
    if (time > 0 && d->first_time == 0) d->first_time = time;
    if (time > d->last_time) d->last_time = time;
    if (peak > d->peak_bytes) d->peak_bytes = peak;
    if (strcmp(event, "end") == 0) d->finished = true;
    if (strcmp(event, "step") == 0) return add_step(d, line);
    bool of_base = strcmp(event, "before") == 0;
    return of_base || strcmp(event, "eval") == 0 ? add_evaluation(d, line, of_base) : NIB_OK;
}

static nib_status add_answer_after(nib_report_data *d, const nib_json *line)
{
    d->answers_asked++;
    if (d->answers == NIB_REPORT_ANSWERS) return NIB_OK;
    d->answer[d->answers++] = (nib_answer_pair){
        .sample = nib_report_count(line, "sample"),
        .prompt = nib_report_string(line, "prompt"),
        .reference = nib_report_string(line, "reference"),
        .after = nib_report_string(line, "output"),
        .matched_after = nib_json_is(nib_json_get(line, "exact_match"), NIB_JSON_TRUE),
    };
    return NIB_OK;
}

static nib_status add_answer_before(nib_report_data *d, const nib_json *line)
{
    for (int i = 0; i < d->answers; i++) {
        if (d->answer[i].sample != nib_report_count(line, "sample")) continue;
        d->answer[i].before = nib_report_string(line, "output");
        d->answer[i].matched_before = nib_json_is(nib_json_get(line, "exact_match"), NIB_JSON_TRUE);
    }
    return NIB_OK;
}

static nib_status read_file(const char *folder, const char *name, size_t max, char **text, size_t *length)
{
    char *path = nib_path_join(folder, name);
    if (path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a path", folder);
    nib_status status = nib_file_read(path, max, text, length);
    nib_free(path);
    return status;
}

typedef nib_status (*add_line)(nib_report_data *data, const nib_json *line);

/* Calls add for every line of a JSONL file. keep: lines live in the data's pool, else until add returns. */
static nib_status read_lines(const char *folder, const char *name, bool keep, add_line add, nib_report_data *d)
{
    char *text = NULL;
    size_t length = 0;
    NIB_TRY(read_file(folder, name, keep ? MAX_OTHER_BYTES : MAX_METRICS_BYTES, &text, &length));
    nib_status status = NIB_OK;
    for (size_t at = 0; at < length && status == NIB_OK;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t line = end == NULL ? length - at : (size_t)(end - text) - at;
        nib_pool passing = {0};
        nib_json *root;
        status = nib_json_parse(name, text + at, line, (nib_json_options){0}, keep ? &d->pool : &passing, &root);
        if (status == NIB_OK) status = add(d, root);
        nib_pool_free(&passing);
        at += line + 1;
    }
    nib_free(text);
    return status;
}

static nib_status read_object(const char *folder, const char *name, nib_report_data *d, const nib_json **root,
                              const char **copy)
{
    char *text = NULL;
    size_t length = 0;
    nib_json *object;
    NIB_TRY(read_file(folder, name, MAX_OTHER_BYTES, &text, &length));
    nib_status status = nib_json_parse(name, text, length, (nib_json_options){0}, &d->pool, &object);
    if (status == NIB_OK) *root = object;
    if (status == NIB_OK && copy != NULL) {
        *copy = nib_pool_copy(&d->pool, text, length);
        if (*copy == NULL) status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a copy", name);
    }
    nib_free(text);
    return status;
}

static bool has_file(const char *folder, const char *name)
{
    char *path = nib_path_join(folder, name);
    bool exists = path != NULL && nib_file_exists(path);
    nib_free(path);
    return exists;
}

nib_status nib_report_data_read(const char *folder, nib_report_data *d)
{
    static const nib_evaluation none = {.step = -1, .loss = NAN, .perplexity = NAN, .exact_match = NAN};
    *d = (nib_report_data){.before = none, .best = none};
    NIB_TRY(read_object(folder, "config.json", d, &d->config, &d->config_text));
    d->result = nib_json_is(nib_json_get(d->config, "lora"), NIB_JSON_NULL) ? "model" : "adapter";
    NIB_TRY(read_object(folder, "run.json", d, &d->facts, NULL));
    NIB_TRY(read_lines(folder, "metrics.jsonl", false, add_event, d));
    if (has_file(folder, "answers.jsonl")) NIB_TRY(read_lines(folder, "answers.jsonl", true, add_answer_after, d));
    if (has_file(folder, "answers-before.jsonl"))
        NIB_TRY(read_lines(folder, "answers-before.jsonl", true, add_answer_before, d));
    return NIB_OK;
}

void nib_report_data_free(nib_report_data *d)
{
    nib_curve *curves[] = {&d->loss, &d->rate, &d->norm, &d->speed, &d->evaluation};
    for (size_t i = 0; i < sizeof curves / sizeof *curves; i++) nib_free(curves[i]->point);
    nib_pool_free(&d->pool);
    *d = (nib_report_data){0};
}

/* Sums from the left and from the right, each in one pass; point i is in both. */
nib_status nib_curve_smooth(const nib_curve *curve, double decay, nib_curve *smooth)
{
    double sum = 0, weight = 0;
    size_t n = curve->count;
    double *right = nib_calloc(2 * n, sizeof *right); /* sum and weight of what is right of i */
    *smooth = (nib_curve){0};
    if (right == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the report's curves");
    for (size_t i = n; i-- > 0;) {
        right[2 * i] = sum;
        right[2 * i + 1] = weight;
        sum = decay * (sum + curve->point[i].y);
        weight = decay * (weight + 1);
    }
    nib_status status = NIB_OK;
    sum = weight = 0;
    for (size_t i = 0; i < n && status == NIB_OK; i++) {
        sum = decay * sum + curve->point[i].y;
        weight = decay * weight + 1;
        status = add_point(smooth, curve->point[i].x, (sum + right[2 * i]) / (weight + right[2 * i + 1]));
    }
    nib_free(right);
    return status;
}

nib_status nib_curve_thin(const nib_curve *curve, size_t buckets, nib_curve *thin)
{
    size_t n = curve->count;
    *thin = (nib_curve){0};
    if (n <= 2 * buckets) buckets = n; /* one point each */
    for (size_t b = 0; b < buckets; b++) {
        size_t first = b * n / buckets, end = (b + 1) * n / buckets, low = first, high = first;
        for (size_t i = first; i < end; i++) {
            if (curve->point[i].y < curve->point[low].y) low = i;
            if (curve->point[i].y > curve->point[high].y) high = i;
        }
        size_t earlier = low < high ? low : high, later = low < high ? high : low;
        NIB_TRY(add_point(thin, curve->point[earlier].x, curve->point[earlier].y));
        if (later != earlier) NIB_TRY(add_point(thin, curve->point[later].x, curve->point[later].y));
    }
    return NIB_OK;
}
