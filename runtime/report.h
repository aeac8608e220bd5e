/* report.html: the whole run on one page, in one file that asks nothing of a network. */
#ifndef NIB_REPORT_H
#define NIB_REPORT_H

#include "train.h"

/* Replaces the run folder's report.html, made from metrics.jsonl, the answers and the training's own tables. */
nib_status nib_report_write(const nib_training *training);

#endif
