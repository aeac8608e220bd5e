#include "formats/zstd_frames.h"
#include "base/file.h"
#include "base/memory.h"
#include "formats/zstd_frames_internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

/* Frames of other programs may be larger than ours, up to this. */
enum { MAX_CONTENT = 64 << 20 };
#define NO_FRAME UINT32_MAX

typedef struct {
    uint64_t at, content; /* of its first byte in the file, in the content */
    uint32_t checksum;
} frame_place;

struct nib_zstd_reader {
    int fd;
    char *path;
    uint64_t size;
    uint32_t frames;
    frame_place *frame; /* [frames + 1] the last one is the end */
    ZSTD_DCtx *context;
    uint8_t *packed; /* bytes of the frame that is being decoded */
    size_t packed_capacity;
    uint8_t *content; /* of frame `kept` */
    size_t content_capacity;
    uint32_t kept;
};

static uint32_t get32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static nib_status read_at(const nib_zstd_reader *r, uint64_t at, void *bytes, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = pread(r->fd, (uint8_t *)bytes + done, length - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return NIB_FAIL(NIB_ERROR_IO, "%s: reading failed at byte %llu: %s", r->path,
                            (unsigned long long)(at + done), strerror(errno));
        if (n == 0)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: ends at byte %llu, had %llu bytes when it was opened", r->path,
                            (unsigned long long)(at + done), (unsigned long long)r->size);
        done += (size_t)n;
    }
    return NIB_OK;
}

/* Reads the footer; *table: where the skippable frame that holds the table begins. */
static nib_status read_footer(nib_zstd_reader *r, uint64_t *table)
{
    uint8_t footer[FOOTER_BYTES], header[TABLE_HEADER_BYTES];
    if (r->size < TABLE_HEADER_BYTES + FOOTER_BYTES)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: %llu bytes, too few for a file of zstd frames with a table", r->path,
                        (unsigned long long)r->size);
    NIB_TRY(read_at(r, r->size - FOOTER_BYTES, footer, sizeof footer));
    if (get32(footer + 5) != FOOTER_MAGIC)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "%s: byte %llu: found %08x, expected %08x, the end of a table of zstd frames; is it truncated?",
                        r->path, (unsigned long long)r->size - 4, get32(footer + 5), FOOTER_MAGIC);
    r->frames = get32(footer);
    if (footer[4] != CHECKSUM_FLAG)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: flags of the table are %02x, expected %02x: checksums", r->path,
                        (unsigned long long)r->size - 5, footer[4], CHECKSUM_FLAG);
    uint64_t bytes = TABLE_HEADER_BYTES + (uint64_t)r->frames * ENTRY_BYTES + FOOTER_BYTES;
    if (r->frames > MAX_FRAMES || bytes > r->size)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: byte %llu: the table states %u frames, more than the file can hold",
                        r->path, (unsigned long long)r->size - FOOTER_BYTES, r->frames);
    *table = r->size - bytes;
    NIB_TRY(read_at(r, *table, header, sizeof header));
    if (get32(header) != TABLE_MAGIC || get32(header + 4) != bytes - TABLE_HEADER_BYTES)
        return NIB_FAIL(
            NIB_ERROR_DATA,
            "%s: byte %llu: found %08x and a length of %u, expected %08x and %llu, the start of the table of "
            "%u frames",
            r->path, (unsigned long long)*table, get32(header), get32(header + 4), TABLE_MAGIC,
            (unsigned long long)bytes - TABLE_HEADER_BYTES, r->frames);
    return NIB_OK;
}

/* Places of all frames; they must tile the file up to the table. */
static nib_status read_table(nib_zstd_reader *r, uint64_t table)
{
    enum { AT_ONCE = 1024 };
    uint8_t entries[AT_ONCE * ENTRY_BYTES];
    r->frame = nib_calloc((size_t)r->frames + 1, sizeof *r->frame);
    if (r->frame == NULL)
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a table of %u frames", r->path, r->frames);
    for (uint32_t i = 0; i < r->frames; i++) {
        uint32_t slot = i % AT_ONCE, count = r->frames - i < AT_ONCE ? r->frames - i : AT_ONCE;
        if (slot == 0)
            NIB_TRY(read_at(r, table + TABLE_HEADER_BYTES + (uint64_t)i * ENTRY_BYTES, entries, count * ENTRY_BYTES));
        const uint8_t *entry = entries + slot * ENTRY_BYTES;
        if (get32(entry + 4) > MAX_CONTENT)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: frame %u: the table states %u bytes of content, at most %d expected",
                            r->path, i, get32(entry + 4), MAX_CONTENT);
        r->frame[i].checksum = get32(entry + 8);
        r->frame[i + 1].at = r->frame[i].at + get32(entry);
        r->frame[i + 1].content = r->frame[i].content + get32(entry + 4);
    }
    if (r->frame[r->frames].at == table) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: the frames of the table end at byte %llu, the table begins at byte %llu",
                    r->path, (unsigned long long)r->frame[r->frames].at, (unsigned long long)table);
}

nib_status nib_zstd_reader_open(const char *path, nib_zstd_reader **reader)
{
    nib_status status;
    uint64_t table = 0;
    *reader = NULL;
    nib_zstd_reader *r = nib_calloc(1, sizeof *r);
    if (r == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path);
    r->fd = -1;
    r->kept = NO_FRAME;
    r->path = nib_path_join("", path);
    r->context = ZSTD_createDCtx();
    if (r->path == NULL || r->context == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path);
        goto done;
    }
    NIB_TRY_GOTO(nib_file_open_regular(path, &r->fd, &r->size), done);
    NIB_TRY_GOTO(read_footer(r, &table), done);
    NIB_TRY_GOTO(read_table(r, table), done);
    *reader = r;
    r = NULL;
done:
    nib_zstd_reader_close(r);
    return status;
}

void nib_zstd_reader_close(nib_zstd_reader *r)
{
    if (r == NULL) return;
    if (r->fd >= 0) close(r->fd);
    ZSTD_freeDCtx(r->context);
    nib_free(r->path);
    nib_free(r->frame);
    nib_free(r->packed);
    nib_free(r->content);
    nib_free(r);
}

uint64_t nib_zstd_reader_size(const nib_zstd_reader *r) { return r->size; }
uint64_t nib_zstd_reader_content(const nib_zstd_reader *r) { return r->frame[r->frames].content; }
uint32_t nib_zstd_reader_frames(const nib_zstd_reader *r) { return r->frames; }

static nib_status corrupt(const nib_zstd_reader *r, uint32_t i, const char *found)
{
    return NIB_FAIL(NIB_ERROR_DATA, "%s: frame %u of %u, which begins at byte %llu, is corrupt: %s; restore the file",
                    r->path, i, r->frames, (unsigned long long)r->frame[i].at, found);
}

/* The frame's bytes must be exactly one zstd frame that ends with the table's checksum: then what zstd verifies is the
 * table's checksum too. */
static nib_status check_packed(const nib_zstd_reader *r, uint32_t i, size_t size)
{
    const uint8_t *p = r->packed;
    if (size < 10 || get32(p) != ZSTD_MAGICNUMBER) return corrupt(r, i, "it does not begin as a zstd frame does");
    if ((p[4] & 4) == 0) return corrupt(r, i, "it has no checksum of its content");
    size_t own = ZSTD_findFrameCompressedSize(p, size);
    if (ZSTD_isError(own)) return corrupt(r, i, ZSTD_getErrorName(own));
    if (own != size) return corrupt(r, i, "its length is not the table's");
    if (get32(p + size - 4) != r->frame[i].checksum) return corrupt(r, i, "its checksum is not the table's");
    return NIB_OK;
}

static nib_status decode_frame(nib_zstd_reader *r, uint32_t i)
{
    size_t packed = (size_t)(r->frame[i + 1].at - r->frame[i].at);
    size_t length = (size_t)(r->frame[i + 1].content - r->frame[i].content);
    if (r->kept == i) return NIB_OK;
    r->kept = NO_FRAME;
    if (packed > ZSTD_compressBound(MAX_CONTENT)) return corrupt(r, i, "it is too long");
    if (!nib_grow(&r->packed, &r->packed_capacity, packed, 1) ||
        !nib_grow(&r->content, &r->content_capacity, length, 1))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to decode frame %u (%zu bytes)", r->path, i, length);
    NIB_TRY(read_at(r, r->frame[i].at, r->packed, packed));
    NIB_TRY(check_packed(r, i, packed));
    size_t got = ZSTD_decompressDCtx(r->context, r->content, length, r->packed, packed);
    if (ZSTD_isError(got)) return corrupt(r, i, ZSTD_getErrorName(got));
    if (got != length) return corrupt(r, i, "it holds less content than the table states");
    r->kept = i;
    return NIB_OK;
}

/* The frame that holds the byte of content at offset, which is below the content's size. */
static uint32_t frame_of(const nib_zstd_reader *r, uint64_t offset)
{
    uint32_t low = 0, high = r->frames;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (r->frame[middle].content <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

nib_status nib_zstd_reader_read(nib_zstd_reader *r, uint64_t offset, void *bytes, size_t length)
{
    uint64_t all = nib_zstd_reader_content(r);
    uint8_t *out = bytes;
    if (offset > all || length > all - offset)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: bytes %llu to %llu of its content are wanted, it has %llu", r->path,
                        (unsigned long long)offset, (unsigned long long)(offset + length), (unsigned long long)all);
    while (length > 0) {
        uint32_t i = frame_of(r, offset);
        NIB_TRY(decode_frame(r, i));
        uint64_t left = r->frame[i + 1].content - offset;
        size_t n = length < left ? length : (size_t)left;
        memcpy(out, r->content + (offset - r->frame[i].content), n);
        out += n;
        offset += n;
        length -= n;
    }
    return NIB_OK;
}
