#include "base/file.h"
#include "base/memory.h"
#include "formats/zstd_frames.h"
#include "formats/zstd_frames_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

/* zstd's own default: 3 times smaller on rows of text, at some 300 MB/s. */
enum { LEVEL = 3 };

nib_status nib_zstd_frame_append(const void *content, size_t length, nib_buffer *frames)
{
    nib_status status = NIB_OK;
    size_t size = 0, bound = ZSTD_compressBound(length);
    ZSTD_CCtx *context = ZSTD_createCCtx();
    char *frame = nib_calloc(bound, 1);
    if (context == NULL || frame == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory to compress %zu bytes", length);
        goto done;
    }
    size = ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, LEVEL);
    if (!ZSTD_isError(size)) size = ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    if (!ZSTD_isError(size)) size = ZSTD_compress2(context, frame, bound, content, length);
    if (ZSTD_isError(size))
        status =
            NIB_FAIL(NIB_ERROR_INTERNAL, "zstd: %zu bytes cannot be compressed: %s", length, ZSTD_getErrorName(size));
    else
        nib_buffer_append(frames, frame, size);
    if (status == NIB_OK && frames->failed)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a frame of %zu bytes", size);
done:
    nib_free(frame);
    ZSTD_freeCCtx(context);
    return status;
}

static void put32(uint8_t *bytes, uint32_t value)
{
    for (int i = 0; i < 4; i++) bytes[i] = (uint8_t)(value >> (8 * i));
}

nib_status nib_zstd_writer_open(const char *path, nib_zstd_writer *writer)
{
    *writer = (nib_zstd_writer){.fd = -1};
    writer->path = nib_path_join("", path);
    if (writer->path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", path);
    nib_sha256_begin(&writer->hash);
    writer->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer->fd >= 0) return NIB_OK;
    nib_zstd_writer_close(writer);
    return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be created: %s", path, strerror(errno));
}

static nib_status append(nib_zstd_writer *writer, const void *bytes, size_t size)
{
    nib_sha256_update(&writer->hash, bytes, size);
    writer->size += size;
    return nib_file_write_all(writer->fd, bytes, size, writer->path);
}

nib_status nib_zstd_writer_add(nib_zstd_writer *writer, const void *frame, size_t size, size_t content_length)
{
    uint8_t entry[ENTRY_BYTES];
    if (writer->frames == MAX_FRAMES)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: more than %d frames", writer->path, MAX_FRAMES);
    put32(entry, (uint32_t)size);
    put32(entry + 4, (uint32_t)content_length);
    memcpy(entry + 8, (const uint8_t *)frame + size - 4, 4); /* the frame ends with its checksum */
    nib_buffer_append(&writer->entries, entry, sizeof entry);
    if (writer->entries.failed) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its table", writer->path);
    writer->content += content_length;
    writer->frames++;
    return append(writer, frame, size);
}

nib_status nib_zstd_writer_finish(nib_zstd_writer *writer, uint64_t *size, char hex[65])
{
    uint8_t header[8], footer[FOOTER_BYTES], digest[32];
    put32(header, TABLE_MAGIC);
    put32(header + 4, (uint32_t)writer->entries.length + FOOTER_BYTES);
    put32(footer, writer->frames);
    footer[4] = CHECKSUM_FLAG;
    put32(footer + 5, FOOTER_MAGIC);
    NIB_TRY(append(writer, header, sizeof header));
    NIB_TRY(append(writer, writer->entries.data, writer->entries.length));
    NIB_TRY(append(writer, footer, sizeof footer));
    if (fsync(writer->fd) != 0) return NIB_FAIL(NIB_ERROR_IO, "%s: fsync failed: %s", writer->path, strerror(errno));
    nib_sha256_end(&writer->hash, digest);
    nib_sha256_hex(digest, hex);
    *size = writer->size;
    nib_zstd_writer_close(writer);
    return NIB_OK;
}

void nib_zstd_writer_close(nib_zstd_writer *writer)
{
    if (writer->fd >= 0) close(writer->fd);
    nib_buffer_free(&writer->entries);
    nib_free(writer->path);
    *writer = (nib_zstd_writer){.fd = -1};
}
