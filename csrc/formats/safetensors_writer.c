#include "formats/safetensors_writer.h"
#include "base/buffer.h"
#include "base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct nib_safetensors_writer {
    char *path, *temporary;
    int fd;
    nib_buffer metadata, tensors; /* JSON members of the header so far */
    uint64_t declared, written;   /* bytes of data */
    bool header_written;
    nib_sha256 hash;
};

nib_status nib_safetensors_writer_begin(const char *path, nib_safetensors_writer **out)
{
    *out = NULL;
    nib_safetensors_writer *writer = nib_calloc(1, sizeof *writer);
    nib_buffer copy = {0}, temporary = {0};
    nib_buffer_text(&copy, path);
    nib_buffer_format(&temporary, "%s.tmp-%ld", path, (long)getpid());
    if (writer == NULL || copy.failed || temporary.failed) {
        nib_buffer_free(&copy);
        nib_buffer_free(&temporary);
        nib_free(writer);
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", path);
    }
    writer->path = copy.data;
    writer->temporary = temporary.data;
    nib_sha256_begin(&writer->hash);
    writer->fd = open(writer->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (writer->fd < 0) {
        nib_status status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be created: %s", writer->temporary, strerror(errno));
        nib_safetensors_writer_abandon(writer);
        return status;
    }
    *out = writer;
    return NIB_OK;
}

nib_status nib_safetensors_writer_metadata(nib_safetensors_writer *writer, const char *key, const char *value)
{
    if (writer->metadata.length > 0) nib_buffer_char(&writer->metadata, ',');
    nib_buffer_json_string(&writer->metadata, key, strlen(key), false);
    nib_buffer_char(&writer->metadata, ':');
    nib_buffer_json_string(&writer->metadata, value, strlen(value), false);
    return NIB_OK;
}

nib_status nib_safetensors_writer_declare(nib_safetensors_writer *writer, const char *name, nib_dtype dtype, int rank,
                                          const int64_t *shape)
{
    nib_buffer *json = &writer->tensors;
    uint64_t bytes = (uint64_t)nib_dtype_block_bytes(dtype);
    if (json->length > 0) nib_buffer_char(json, ',');
    nib_buffer_json_string(json, name, strlen(name), false);
    nib_buffer_format(json, ":{\"dtype\":\"%s\",\"shape\":[", nib_dtype_name(dtype));
    for (int i = 0; i < rank; i++) {
        nib_buffer_format(json, i ? ",%lld" : "%lld", (long long)shape[i]);
        bytes *= (uint64_t)shape[i];
    }
    nib_buffer_format(json, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)writer->declared,
                      (unsigned long long)(writer->declared + bytes));
    writer->declared += bytes;
    return NIB_OK;
}

static nib_status put(nib_safetensors_writer *writer, const void *bytes, size_t length)
{
    nib_sha256_update(&writer->hash, bytes, length);
    return nib_file_write_all(writer->fd, bytes, length, writer->path);
}

/* The header's length is a multiple of 8, padded with spaces, so that the data is aligned. */
static nib_status write_header(nib_safetensors_writer *writer)
{
    nib_buffer header = {0};
    nib_buffer_char(&header, '{');
    if (writer->metadata.length > 0) {
        nib_buffer_format(&header, "\"__metadata__\":{%s}", writer->metadata.data);
        if (writer->tensors.length > 0) nib_buffer_char(&header, ',');
    }
    if (writer->tensors.length > 0) nib_buffer_append(&header, writer->tensors.data, writer->tensors.length);
    nib_buffer_char(&header, '}');
    while (header.length % 8 != 0 && !header.failed) nib_buffer_char(&header, ' ');
    nib_status status;
    if (header.failed || writer->metadata.failed || writer->tensors.failed) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its header", writer->path);
    } else {
        uint8_t length[8];
        for (int i = 0; i < 8; i++) length[i] = (uint8_t)(header.length >> (8 * i));
        status = put(writer, length, 8);
        if (status == NIB_OK) status = put(writer, header.data, header.length);
    }
    nib_buffer_free(&header);
    writer->header_written = true;
    return status;
}

nib_status nib_safetensors_writer_data(nib_safetensors_writer *writer, const void *bytes, uint64_t length)
{
    if (!writer->header_written) NIB_TRY(write_header(writer));
    if (length > writer->declared - writer->written)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: %llu bytes of data declared, more given", writer->path,
                        (unsigned long long)writer->declared);
    writer->written += length;
    return put(writer, bytes, length);
}

/* Reads the temporary back and compares. */
static nib_status verify(nib_safetensors_writer *writer, const uint8_t digest[32])
{
    enum { PIECE = 1 << 20 };
    nib_sha256 hash;
    uint8_t found[32];
    char *piece = nib_calloc(PIECE, 1);
    if (piece == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to verify it", writer->path);
    nib_status status = NIB_OK;
    nib_sha256_begin(&hash);
    for (off_t at = 0;;) {
        ssize_t n = pread(writer->fd, piece, PIECE, at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) status = NIB_FAIL(NIB_ERROR_IO, "%s: reading it back failed: %s", writer->path, strerror(errno));
        if (n <= 0) break;
        nib_sha256_update(&hash, piece, (size_t)n);
        at += n;
    }
    nib_sha256_end(&hash, found);
    if (status == NIB_OK && memcmp(found, digest, 32) != 0)
        status =
            NIB_FAIL(NIB_ERROR_IO, "%s: what was written reads back differently; is the disk failing?", writer->path);
    nib_free(piece);
    return status;
}

nib_status nib_safetensors_writer_finish(nib_safetensors_writer *writer, char hex[65])
{
    nib_status status = NIB_OK;
    uint8_t digest[32];
    char *folder = nib_path_folder(writer->path);
    if (folder == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to finish it", writer->path);
        goto done;
    }
    if (!writer->header_written) NIB_TRY_GOTO(write_header(writer), done);
    if (writer->written != writer->declared) {
        status = NIB_FAIL(NIB_ERROR_INTERNAL, "%s: %llu bytes of data declared, %llu given", writer->path,
                          (unsigned long long)writer->declared, (unsigned long long)writer->written);
        goto done;
    }
    nib_sha256_end(&writer->hash, digest);
    if (hex != NULL) nib_sha256_hex(digest, hex);
    if (fsync(writer->fd) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: fsync failed: %s", writer->path, strerror(errno));
        goto done;
    }
    NIB_TRY_GOTO(verify(writer, digest), done);
    if (rename(writer->temporary, writer->path) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be replaced: %s", writer->path, strerror(errno));
        goto done;
    }
    nib_free(writer->temporary);
    writer->temporary = NULL;
    status = nib_file_sync_folder(folder);
done:
    nib_free(folder);
    nib_safetensors_writer_abandon(writer);
    return status;
}

void nib_safetensors_writer_abandon(nib_safetensors_writer *writer)
{
    if (writer == NULL) return;
    if (writer->fd >= 0) close(writer->fd);
    if (writer->temporary != NULL) unlink(writer->temporary);
    nib_buffer_free(&writer->metadata);
    nib_buffer_free(&writer->tensors);
    nib_free(writer->temporary);
    nib_free(writer->path);
    nib_free(writer);
}
