/* The layout is the reference implementation's: header length, compact JSON padded with spaces to a multiple of 8, the
 * tensors without gaps in the order declared. */
#include "formats/safetensors_writer.h"
#include "base/buffer.h"
#include "base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct nib_safetensors_writer {
    nib_buffer path, temporary;
    int fd;                       /* -1: no temporary exists */
    nib_buffer metadata, tensors; /* members of the header so far, each followed by a comma */
    uint64_t declared, written;   /* bytes of data */
    bool header_written;
    nib_sha256 hash;
};

nib_status nib_safetensors_writer_begin(const char *path, nib_safetensors_writer **out)
{
    nib_status status = NIB_OK;
    *out = NULL;
    nib_safetensors_writer *writer = nib_calloc(1, sizeof *writer);
    if (writer == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", path);
    writer->fd = -1;
    nib_sha256_begin(&writer->hash);
    nib_buffer_text(&writer->path, path);
    nib_buffer_format(&writer->temporary, "%s.tmp-%ld", path, (long)getpid());
    if (writer->path.failed || writer->temporary.failed) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", path);
        goto done;
    }
    writer->fd = open(writer->temporary.data, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (writer->fd < 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be created: %s", writer->temporary.data, strerror(errno));
        goto done;
    }
    *out = writer;
    writer = NULL;
done:
    nib_safetensors_writer_abandon(writer);
    return status;
}

nib_status nib_safetensors_writer_metadata(nib_safetensors_writer *writer, const char *key, const char *value)
{
    if (writer->header_written)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: metadata \"%s\" comes after data", writer->path.data, key);
    nib_buffer_json_string(&writer->metadata, key, strlen(key), false);
    nib_buffer_char(&writer->metadata, ':');
    nib_buffer_json_string(&writer->metadata, value, strlen(value), false);
    nib_buffer_char(&writer->metadata, ',');
    return NIB_OK;
}

nib_status nib_safetensors_writer_declare(nib_safetensors_writer *writer, const char *name, nib_dtype dtype, int rank,
                                          const int64_t *shape)
{
    const char *path = writer->path.data;
    nib_buffer *header = &writer->tensors;
    uint64_t bytes = (uint64_t)nib_dtype_block_bytes(dtype), end;
    if (writer->header_written)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: tensor \"%s\" is declared after data", path, name);
    if (nib_dtype_block(dtype) != 1 || rank < 0 || rank > NIB_TENSOR_MAX_RANK)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: tensor \"%s\" of type %s and rank %d cannot be written", path, name,
                        nib_dtype_name(dtype), rank);
    nib_buffer_json_string(header, name, strlen(name), false);
    nib_buffer_format(header, ":{\"dtype\":\"%s\",\"shape\":[", nib_dtype_name(dtype));
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(bytes, (uint64_t)shape[i], &bytes))
            return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: tensor \"%s\": its shape is negative or overflows", path, name);
        nib_buffer_format(header, i > 0 ? ",%lld" : "%lld", (long long)shape[i]);
    }
    if (__builtin_add_overflow(writer->declared, bytes, &end))
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: tensor \"%s\": the file's size overflows", path, name);
    nib_buffer_format(header, "],\"data_offsets\":[%llu,%llu]},", (unsigned long long)writer->declared,
                      (unsigned long long)end);
    writer->declared = end;
    return NIB_OK;
}

static nib_status append(nib_safetensors_writer *writer, const void *bytes, size_t length)
{
    NIB_TRY(nib_file_write_all(writer->fd, bytes, length, writer->temporary.data));
    nib_sha256_update(&writer->hash, bytes, length);
    return NIB_OK;
}

static nib_status write_header(nib_safetensors_writer *writer)
{
    nib_buffer header = {0};
    nib_status status = NIB_OK;
    uint8_t length[8];
    nib_buffer_char(&header, '{');
    if (writer->metadata.length > 0) {
        nib_buffer_text(&header, "\"__metadata__\":{");
        nib_buffer_append(&header, writer->metadata.data, writer->metadata.length - 1);
        nib_buffer_text(&header, "},");
    }
    nib_buffer_append(&header, writer->tensors.data, writer->tensors.length);
    if (header.length > 1) header.data[--header.length] = 0; /* the last comma */
    nib_buffer_char(&header, '}');
    while (header.length % 8 != 0 && !header.failed) nib_buffer_char(&header, ' ');
    if (header.failed || writer->metadata.failed || writer->tensors.failed) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its header", writer->path.data);
        goto done;
    }
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)header.length >> (8 * i));
    NIB_TRY_GOTO(append(writer, length, sizeof length), done);
    NIB_TRY_GOTO(append(writer, header.data, header.length), done);
    writer->header_written = true;
done:
    nib_buffer_free(&header);
    return status;
}

nib_status nib_safetensors_writer_data(nib_safetensors_writer *writer, const void *bytes, uint64_t length)
{
    if (!writer->header_written) NIB_TRY(write_header(writer));
    if (length > writer->declared - writer->written)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: %llu bytes more than the %llu declared", writer->path.data,
                        (unsigned long long)(length - (writer->declared - writer->written)),
                        (unsigned long long)writer->declared);
    NIB_TRY(append(writer, bytes, length));
    writer->written += length;
    return NIB_OK;
}

/* Hash of what the disk gives back. The clean pages are dropped first, so that it is the disk that answers. */
static nib_status hash_of_file(const nib_safetensors_writer *writer, char hex[65])
{
    enum { PIECE = 1 << 20 };
    uint8_t *piece = nib_calloc(PIECE, 1), digest[32];
    if (piece == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it back", writer->temporary.data);
    nib_status status = NIB_OK;
    nib_sha256 hash;
    nib_sha256_begin(&hash);
    posix_fadvise(writer->fd, 0, 0, POSIX_FADV_DONTNEED);
    for (off_t at = 0;;) {
        ssize_t n = pread(writer->fd, piece, PIECE, at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            status = NIB_FAIL(NIB_ERROR_IO, "%s: reading back failed at byte %lld: %s", writer->temporary.data,
                              (long long)at, strerror(errno));
        if (n <= 0) break;
        nib_sha256_update(&hash, piece, (size_t)n);
        at += n;
    }
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, hex);
    nib_free(piece);
    return status;
}

/* Our own reader must accept the file too: it finds what a hash cannot, a name declared twice. */
static nib_status check_readable(const nib_safetensors_writer *writer)
{
    nib_tensor_set *set;
    NIB_TRY(nib_tensor_set_open(writer->temporary.data, &set));
    nib_tensor_set_close(set);
    return NIB_OK;
}

nib_status nib_safetensors_writer_finish(nib_safetensors_writer *writer, char hex[65])
{
    nib_status status = NIB_OK;
    uint8_t digest[32];
    char wanted[65], found[65];
    const char *path = writer->path.data;
    char *folder = nib_path_folder(path);
    if (folder == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", path);
        goto done;
    }
    if (!writer->header_written) NIB_TRY_GOTO(write_header(writer), done);
    if (writer->written != writer->declared) {
        status = NIB_FAIL(NIB_ERROR_INTERNAL, "%s: %llu bytes of data, %llu declared", path,
                          (unsigned long long)writer->written, (unsigned long long)writer->declared);
        goto done;
    }
    if (fsync(writer->fd) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: fsync failed: %s", writer->temporary.data, strerror(errno));
        goto done;
    }
    nib_sha256_end(&writer->hash, digest);
    nib_sha256_hex(digest, wanted);
    NIB_TRY_GOTO(hash_of_file(writer, found), done);
    if (strcmp(wanted, found) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO,
                          "%s: read back with SHA-256 %s, written with %s; %s is unchanged; is the disk failing?",
                          writer->temporary.data, found, wanted, path);
        goto done;
    }
    NIB_TRY_GOTO(check_readable(writer), done);
    if (rename(writer->temporary.data, path) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be replaced: %s", path, strerror(errno));
        goto done;
    }
    close(writer->fd);
    writer->fd = -1;
    NIB_TRY_GOTO(nib_file_sync_folder(folder), done);
    if (hex != NULL) memcpy(hex, wanted, sizeof wanted);
done:
    nib_free(folder);
    nib_safetensors_writer_abandon(writer);
    return status;
}

void nib_safetensors_writer_abandon(nib_safetensors_writer *writer)
{
    if (writer == NULL) return;
    if (writer->fd >= 0) {
        close(writer->fd);
        unlink(writer->temporary.data);
    }
    nib_buffer_free(&writer->path);
    nib_buffer_free(&writer->temporary);
    nib_buffer_free(&writer->metadata);
    nib_buffer_free(&writer->tensors);
    nib_free(writer);
}
