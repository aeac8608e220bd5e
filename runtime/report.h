/* report.html: a run on one page that needs no network. */
#ifndef NIB_REPORT_H
#define NIB_REPORT_H

#include "base/status.h"

/* Writes FOLDER/report.html durably, from the folder's config.json, run.json, metrics.jsonl, answers-before.jsonl and
 * answers.jsonl (the last two may be absent) and from nothing else: a resumed run makes the report of one that was
 * never stopped, but for its times. */
nib_status nib_report_write(const char *folder);

#endif
