#include "data/sample_index.h"

#include "base/file.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { AT_ONCE = 1024 };

static void put(uint8_t *bytes, uint64_t value, int size)
{
    for (int i = 0; i < size; i++) bytes[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *bytes, int size)
{
    uint64_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

void nib_sample_place_append(const nib_sample_place *p, nib_buffer *bytes)
{
    uint8_t entry[NIB_SAMPLE_PLACE_BYTES];
    const uint32_t words[] = {p->length, p->shard, p->line, p->draft, p->tokens, p->supervised};
    put(entry, p->offset, 8);
    put(entry + 8, p->fingerprint, 8);
    for (int i = 0; i < 6; i++) put(entry + 16 + 4 * i, words[i], 4);
    nib_buffer_append(bytes, entry, sizeof entry);
}

static nib_sample_place parse(const uint8_t *entry)
{
    uint32_t word[6];
    for (int i = 0; i < 6; i++) word[i] = (uint32_t)get(entry + 16 + 4 * i, 4);
    return (nib_sample_place){.offset = get(entry, 8),
                              .fingerprint = get(entry + 8, 8),
                              .length = word[0],
                              .shard = word[1],
                              .line = word[2],
                              .draft = word[3],
                              .tokens = word[4],
                              .supervised = word[5]};
}

nib_status nib_sample_index_open(const char *path, int64_t count, nib_sample_index *index)
{
    struct stat info;
    *index = (nib_sample_index){.fd = open(path, O_RDONLY | O_CLOEXEC), .count = count};
    if (index->fd < 0)
        return NIB_FAIL(errno == ENOENT ? NIB_ERROR_DATA : NIB_ERROR_IO, "%s: cannot be opened: %s", path,
                        strerror(errno));
    nib_status status = NIB_OK;
    index->path = nib_path_join("", path);
    if (index->path == NULL)
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to read it", path);
    else if (fstat(index->fd, &info) != 0 || info.st_size != count * NIB_SAMPLE_PLACE_BYTES)
        status =
            NIB_FAIL(NIB_ERROR_DATA, "%s: %lld bytes, expected %lld: %d for each of %lld samples; is it truncated?",
                     path, (long long)info.st_size, (long long)count * NIB_SAMPLE_PLACE_BYTES, NIB_SAMPLE_PLACE_BYTES,
                     (long long)count);
    if (status != NIB_OK) nib_sample_index_close(index);
    return status;
}

void nib_sample_index_close(nib_sample_index *index)
{
    if (index->fd >= 0) close(index->fd);
    nib_free(index->path);
    *index = (nib_sample_index){.fd = -1};
}

static nib_status read_block(const nib_sample_index *index, int64_t first, int64_t n, nib_sample_place *place)
{
    uint8_t bytes[AT_ONCE * NIB_SAMPLE_PLACE_BYTES];
    size_t wanted = (size_t)n * NIB_SAMPLE_PLACE_BYTES;
    for (size_t done = 0; done < wanted;) {
        ssize_t got =
            pread(index->fd, bytes + done, wanted - done, (off_t)(first * NIB_SAMPLE_PLACE_BYTES) + (off_t)done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return NIB_FAIL(NIB_ERROR_IO, "%s: reading failed at entry %lld: %s", index->path, (long long)first,
                            strerror(errno));
        if (got == 0)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: ends before entry %lld of %lld", index->path, (long long)(first + n),
                            (long long)index->count);
        done += (size_t)got;
    }
    for (int64_t i = 0; i < n; i++) place[i] = parse(bytes + i * NIB_SAMPLE_PLACE_BYTES);
    return NIB_OK;
}

nib_status nib_sample_index_read(const nib_sample_index *index, int64_t first, int64_t n, nib_sample_place *place)
{
    for (int64_t at = 0; at < n; at += AT_ONCE)
        NIB_TRY(read_block(index, first + at, n - at < AT_ONCE ? n - at : AT_ONCE, place + at));
    return NIB_OK;
}

nib_status nib_sample_index_each(const nib_sample_index *index, nib_sample_visit visit, void *context)
{
    nib_sample_place place[AT_ONCE];
    for (int64_t first = 0, n; first < index->count; first += n) {
        n = index->count - first < AT_ONCE ? index->count - first : AT_ONCE;
        NIB_TRY(read_block(index, first, n, place));
        NIB_TRY(visit(context, first, place, n));
    }
    return NIB_OK;
}

typedef struct {
    nib_repetitions of;
    int64_t count;
} counter;

static nib_status count_block(void *context, int64_t first, const nib_sample_place *place, int64_t n)
{
    counter *c = context;
    (void)first;
    for (int64_t i = 0; i < n; i++)
        if (!nib_repetitions_count(&c->of, place[i].fingerprint, &c->count))
            return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to look for duplicates");
    return NIB_OK;
}

nib_status nib_sample_index_repetitions(const nib_sample_index *index, nib_repetitions *of, int64_t *count)
{
    counter c = {*of, *count};
    nib_status status = nib_sample_index_each(index, count_block, &c);
    *of = c.of;
    *count = c.count;
    return status;
}

nib_status nib_sample_index_duplicates(const nib_sample_index *index, int64_t *duplicates)
{
    nib_repetitions r = {.passes = nib_repetition_passes(index->count)};
    nib_status status = NIB_OK;
    *duplicates = 0;
    for (; r.pass < r.passes && status == NIB_OK; r.pass++) {
        nib_fingerprints_clear(&r.seen);
        status = nib_sample_index_repetitions(index, &r, duplicates);
    }
    nib_fingerprints_free(&r.seen);
    return status;
}
