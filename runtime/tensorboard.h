/* TensorBoard's event file, made from metrics.jsonl line by line: a resumed run replays the lines that it keeps, so
 * every step is there once.
 *
 * The format is TensorFlow's: records (length, masked CRC-32C of it, bytes, masked CRC-32C of them; record_writer.h) of
 * Event messages (event.proto, summary.proto) in protocol-buffer encoding.
 */
#ifndef NIB_TENSORBOARD_H
#define NIB_TENSORBOARD_H

#include "base/buffer.h"
#include "base/status.h"

#include <stdint.h>

typedef struct {
    int fd; /* -1: closed */
    char *path;
} nib_tensorboard;

/* Writes FOLDER/events.out.tfevents.TIME.HOST with the events of the metrics file in place of the event files that are
 * there, and opens it for more. Readers of a single file and of the whole folder so find every step once; a TensorBoard
 * that watches a run which is resumed drops what it had, since the new file begins with a session's START at step 0.
 * NIB_ERROR_IO. */
nib_status nib_tensorboard_open(const char *folder, const char *metrics, nib_tensorboard *board);
void nib_tensorboard_close(nib_tensorboard *board);
/* Appends the scalars of one line of metrics.jsonl; lines without any add nothing. */
nib_status nib_tensorboard_line(nib_tensorboard *board, const char *line, size_t length);

/* The encoding, for tests: appends one record with one scalar. */
void nib_tensorboard_scalar(nib_buffer *out, double time, int64_t step, const char *tag, float value);
/* CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected). */
uint32_t nib_crc32c(const void *bytes, size_t length);

#endif
