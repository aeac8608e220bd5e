/* The zstd seekable format: independent frames, so that any part of the content is read without what stands before it.
 *
 *   frame 0 | frame 1 | ... | skippable frame: one entry a frame, footer
 *   entry    bytes in the file u32, bytes of content u32, low half of the content's XXH64 u32
 *   footer   frames u32, flags u8 (bit 7: entries have checksums), magic u32 0x8F92EAB1; all little-endian
 *
 * Any zstd reads such a file as one stream: the table is a frame that it skips. Frames hold 256 KiB of content and
 * their own checksum, which is the entry's. Format: zstd's contrib/seekable_format, version 0.1.0. */
#ifndef NIB_ZSTD_FRAMES_H
#define NIB_ZSTD_FRAMES_H

#include "base/buffer.h"
#include "base/sha256.h"
#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { NIB_FRAME_CONTENT = 256 << 10 };

/* Appends content as one frame with a checksum. The same content always gives the same bytes. Thread-safe.
 * length <= NIB_FRAME_CONTENT. */
nib_status nib_zstd_frame_append(const void *content, size_t length, nib_buffer *frames);

typedef struct {
    int fd; /* -1: closed */
    char *path;
    nib_buffer entries;     /* of the table, as they will be written */
    uint64_t size, content; /* bytes of the file and of its content so far */
    uint32_t frames;
    nib_sha256 hash; /* of the file */
} nib_zstd_writer;

/* Creates the file, which must not be there. */
nib_status nib_zstd_writer_open(const char *path, nib_zstd_writer *writer);
/* One frame of nib_zstd_frame_append and the length of its content. */
nib_status nib_zstd_writer_add(nib_zstd_writer *writer, const void *frame, size_t size, size_t content_length);
/* Writes the table, fsyncs and closes. size, hex: bytes and SHA-256 of the file. NIB_ERROR_IO. */
nib_status nib_zstd_writer_finish(nib_zstd_writer *writer, uint64_t *size, char hex[65]);
void nib_zstd_writer_close(nib_zstd_writer *writer); /* also one that was not finished; the file stays */

/* A reader is used by one thread at a time. It reads, and does not map: a file that is cut while it is read is an
 * error, not a signal, and memory does not grow with what was read. */
typedef struct nib_zstd_reader nib_zstd_reader;

/* NIB_ERROR_DATA names what is wrong: no table, one that does not tile the file, or frames without checksums. */
nib_status nib_zstd_reader_open(const char *path, nib_zstd_reader **reader);
void nib_zstd_reader_close(nib_zstd_reader *reader);
uint64_t nib_zstd_reader_size(const nib_zstd_reader *reader); /* of the file */
uint64_t nib_zstd_reader_content(const nib_zstd_reader *reader);
uint32_t nib_zstd_reader_frames(const nib_zstd_reader *reader);
/* Content [offset, offset + length) into bytes. A frame whose bytes, length or checksum are not those of the table is
 * NIB_ERROR_DATA with file, number and offset of the frame; nothing of it is given out. The last frame is kept, so
 * that reading on decodes each once. */
nib_status nib_zstd_reader_read(nib_zstd_reader *reader, uint64_t offset, void *bytes, size_t length);

#endif
