/* metrics.jsonl: one JSON object a line, one line an event (cli.md). */
#ifndef NIB_METRICS_H
#define NIB_METRICS_H

#include "base/buffer.h"
#include "base/status.h"
#include "tensorboard.h"

#include <stdint.h>

typedef struct {
    int fd; /* -1: closed */
    const char *path;
    nib_tensorboard board; /* gets every line too */
} nib_metrics;

/* Opens for appending; path must outlive it. A resumed run first drops what is beyond its checkpoint, so that every
 * step is there once: step events of `steps` and later, other events after it, and an incomplete last line. steps 0: an
 * empty file. tensorboard: folder of the event file, which is kept equal to it. NIB_ERROR_IO. */
nib_status nib_metrics_open(const char *path, const char *tensorboard, int64_t steps, nib_metrics *metrics);
void nib_metrics_close(nib_metrics *metrics);
/* Appends the object's line with one write, so that a killed run leaves whole lines. Clears the buffer. */
nib_status nib_metrics_line(nib_metrics *metrics, nib_buffer *object);
/* ,"key":value with 17 digits; null where the number is not finite. */
void nib_metrics_number(nib_buffer *object, const char *key, double value);

#endif
