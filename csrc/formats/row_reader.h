/* Lines of a .jsonl or .jsonl.zst file, streamed in bounded memory. zst: any concatenation of frames, skippable frames
 * (so the seekable format too), content checksums verified, windows up to 128 MiB. A file is compressed if its name
 * ends in .zst or it begins with a frame. */
#ifndef NIB_ROW_READER_H
#define NIB_ROW_READER_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct nib_row_reader nib_row_reader;

nib_status nib_row_reader_open(const char *path, nib_row_reader **reader);
/* The next line without its line end (\n or \r\n); *line is valid until the next call and not NUL-terminated; NULL at
 * the end of the file. A line longer than 64 MiB, invalid UTF-8, or a truncated or corrupt frame is NIB_ERROR_DATA
 * with file, line and byte offset. A UTF-8 byte order mark at the start of the file is skipped. */
nib_status nib_row_reader_next(nib_row_reader *reader, const char **line, size_t *length);
uint64_t nib_row_reader_line(const nib_row_reader *reader); /* 1-based number of the last line given */
void nib_row_reader_close(nib_row_reader *reader);

#endif
