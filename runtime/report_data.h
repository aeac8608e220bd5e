/* What report.html shows, read from the files of a run folder. */
#ifndef NIB_REPORT_DATA_H
#define NIB_REPORT_DATA_H

#include "base/json.h"

#include <stdint.h>

/* Answers that the report shows; further ones count in the exact match only. */
#define NIB_REPORT_ANSWERS 24

typedef struct {
    double x, y;
} nib_point;
/* x: optimizer steps taken, ascending; y finite. */
typedef struct {
    nib_point *point; /* [count] */
    size_t count, capacity;
} nib_curve;

/* Figures that are not there are NAN. */
typedef struct {
    int64_t step; /* -1: there was none */
    double loss, perplexity, exact_match;
} nib_evaluation;

typedef struct {
    int64_t sample;                                  /* in the evaluation data */
    const char *prompt, *reference, *before, *after; /* before NULL: not asked then */
    bool matched_before, matched_after;
} nib_answer_pair;

typedef struct {
    nib_pool pool; /* holds every string and JSON value */
    const nib_json *config, *facts;
    const char *config_text;
    const char *result; /* what was trained, and its folder: "adapter", or "model" after a full fine-tune */
    nib_curve loss, rate, norm, speed, evaluation; /* the evaluation's begins with the base model's, at 0 */
    nib_evaluation before, best;                   /* the base model; the adapter that was kept */
    int64_t steps;                                 /* taken */
    int64_t tokens, computed_tokens, skipped;
    int64_t first_time, last_time; /* Unix time of the first and the last line; 0: none */
    int64_t peak_bytes;
    double seconds; /* in steps and evaluations */
    bool finished;
    nib_answer_pair answer[NIB_REPORT_ANSWERS];
    int answers;           /* in `answer` */
    int64_t answers_asked; /* in the file */
} nib_report_data;

/* Zeroes *data first; freed by nib_report_data_free also on failure. NIB_ERROR_DATA, NIB_ERROR_IO, NIB_ERROR_MEMORY. */
nib_status nib_report_data_read(const char *folder, nib_report_data *data);
void nib_report_data_free(nib_report_data *data);

/* Members as the report needs them: NAN, 0 or "" where a line has none. */
double nib_report_number(const nib_json *object, const char *key);
int64_t nib_report_count(const nib_json *object, const char *key);
const char *nib_report_string(const nib_json *object, const char *key);

/* Replaces y by a mean over neighbours whose weights fall by `decay` for each place between: no lag, same ends. smooth
 * is the caller's to free. NIB_ERROR_MEMORY. */
nib_status nib_curve_smooth(const nib_curve *curve, double decay, nib_curve *smooth);
/* At most 2 * buckets points that keep every peak and valley: of each bucket the lowest and the highest. */
nib_status nib_curve_thin(const nib_curve *curve, size_t buckets, nib_curve *thin);

#endif
