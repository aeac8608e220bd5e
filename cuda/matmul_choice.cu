#include "cuda/matmul_choice.h"

extern "C" {
#include "base/buffer.h"
#include "base/file.h"
#include "base/memory.h"
}

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#define MOST_FILE_BYTES ((size_t)1 << 20)
#define MARGIN          0.98f /* a later algorithm has to be this much faster: less is noise */

typedef struct {
    nib_matmul_class shape;
    uint64_t hash;
    float microseconds;
} entry;

struct nib_matmul_choices {
    char *identity, *path; /* path NULL: not kept on disk */
    entry *entries;
    size_t count, capacity;
    bool told; /* the user knows that the file cannot be kept */
};

uint64_t nib_matmul_hash(const void *bytes, size_t count)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    return hash;
}

int64_t nib_matmul_class_size(int64_t size)
{
    int64_t step = 1;
    while (step * 16 <= size) step *= 2;
    return (size + step - 1) / step * step;
}

nib_matmul_choices *nib_matmul_choices_create(const char *identity)
{
    nib_matmul_choices *c = (nib_matmul_choices *)nib_calloc(1, sizeof *c);
    nib_buffer name = {}, copy = {};
    if (c == NULL) return NULL;
    nib_buffer_format(&name, "matmul-%016" PRIx64 ".txt", nib_matmul_hash(identity, strlen(identity)));
    nib_buffer_text(&copy, identity);
    c->identity = copy.data;
    c->path = name.failed ? NULL : nib_cache_path(name.data);
    nib_buffer_free(&name);
    if (!copy.failed) return c;
    nib_matmul_choices_free(c);
    return NULL;
}

void nib_matmul_choices_free(nib_matmul_choices *c)
{
    if (c == NULL) return;
    nib_free(c->identity);
    nib_free(c->path);
    nib_free(c->entries);
    nib_free(c);
}

static entry *find(const nib_matmul_choices *c, const nib_matmul_class *shape)
{
    for (size_t i = 0; i < c->count; i++)
        if (memcmp(&c->entries[i].shape, shape, sizeof *shape) == 0) return &c->entries[i];
    return NULL;
}

bool nib_matmul_is_known(const nib_matmul_choices *c, const nib_matmul_class *shape) { return find(c, shape) != NULL; }

static nib_status put(nib_matmul_choices *c, const entry *one)
{
    entry *known = find(c, &one->shape);
    if (known == NULL && !nib_grow(&c->entries, &c->capacity, c->count + 1, sizeof *c->entries))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the algorithms of matrix products");
    if (known == NULL) known = &c->entries[c->count++];
    *known = *one;
    return NIB_OK;
}

#define LINE_FORMAT                                                                                                    \
    "%" PRId64 " %" PRId64 " %" PRId64 " %" PRId32 " %" PRId32 " %" PRId32 " %" PRId32 " %" PRId32 " %" PRId32         \
    " %" PRId32 " %" PRId32 " %016" PRIx64 " %.9g"
#define LINE_PATTERN                                                                                                   \
    "%" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd32 " %" SCNd32 " %" SCNd32 " %" SCNd32 " %" SCNd32 " %" SCNd32         \
    " %" SCNd32 " %" SCNd32 " %" SCNx64 " %f%n"

static bool parse(const char *line, entry *one)
{
    nib_matmul_class *s = &one->shape;
    int end = 0;
    int fields =
        sscanf(line, LINE_PATTERN, &s->M, &s->N, &s->K, &s->transpose_a, &s->transpose_b, &s->wide, &s->a_alignment,
               &s->b_alignment, &s->c_alignment, &s->nf4, &s->room, &one->hash, &one->microseconds, &end);
    return fields == 13 && line[end] == '\0' && s->M > 0 && s->N > 0 && s->K > 0;
}

/* Adds what the file holds. A file that cannot be read, or is another's, is one that is not there. */
static nib_status read_file(nib_matmul_choices *c)
{
    char *text, *line;
    size_t length;
    if (c->path == NULL || !nib_file_exists(c->path)) return NIB_OK;
    if (nib_file_read(c->path, MOST_FILE_BYTES, &text, &length) != NIB_OK) {
        nib_warn("%s; matrix products are measured again", nib_error_message());
        return NIB_OK;
    }
    nib_status status = NIB_OK;
    int number = 1, damaged = 0;
    char *rest = text;
    for (; (line = strsep(&rest, "\n")) != NULL && status == NIB_OK; number++) {
        entry one;
        if (number == 1 ? strcmp(line, c->identity) != 0 : *line != '\0' && !parse(line, &one)) {
            if (damaged == 0) damaged = number;
            if (number == 1) break;
        } else if (number > 1 && *line != '\0') {
            status = put(c, &one);
        }
    }
    if (damaged > 0)
        nib_warn("%s:%d: not what Nibble has written there; what is lost is measured again, and a run that is resumed "
                 "may differ in its last bits",
                 c->path, damaged);
    nib_free(text);
    return status;
}

static nib_status write_file(const nib_matmul_choices *c)
{
    nib_buffer text = {};
    nib_buffer_format(&text, "%s\n", c->identity);
    for (size_t i = 0; i < c->count; i++) {
        const entry *one = &c->entries[i];
        const nib_matmul_class *s = &one->shape;
        nib_buffer_format(&text, LINE_FORMAT "\n", s->M, s->N, s->K, s->transpose_a, s->transpose_b, s->wide,
                          s->a_alignment, s->b_alignment, s->c_alignment, s->nf4, s->room, one->hash,
                          (double)one->microseconds);
    }
    nib_status status = text.failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory to write %s", c->path)
                                    : nib_file_replace(c->path, text.data, text.length);
    nib_buffer_free(&text);
    return status;
}

/* The descriptor of the lock that is held, or -1 where there can be none. */
static int lock(nib_matmul_choices *c)
{
    nib_buffer name = {};
    char *folder = c->path == NULL ? NULL : nib_path_folder(c->path);
    int fd = -1;
    if (folder != NULL && nib_file_make_folders(folder) == NIB_OK) {
        nib_buffer_format(&name, "%s.lock", c->path);
        fd = name.failed ? -1 : open(name.data, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    }
    while (fd >= 0 && flock(fd, LOCK_EX) != 0 && errno == EINTR) continue;
    nib_buffer_free(&name);
    nib_free(folder);
    return fd;
}

static void keep(nib_matmul_choices *c, int fd)
{
    if (fd >= 0 && write_file(c) == NIB_OK) return;
    if (!c->told)
        nib_warn("%s cannot be written: the algorithms of matrix products are measured in every run, and runs may "
                 "differ in their last bits",
                 c->path != NULL ? c->path : "the cache folder");
    c->told = true;
}

/* Which of the offered ones the table names, or -1. */
static int named(nib_matmul_choices *c, const nib_matmul_class *shape, int offered, const uint64_t *hash)
{
    const entry *known = find(c, shape);
    for (int i = 0; known != NULL && i < offered; i++)
        if (hash[i] == known->hash) return i;
    return -1;
}

static nib_status measure_now(nib_matmul_choices *c, const nib_matmul_class *s, int offered, const uint64_t *hash,
                              const char *const *name, nib_matmul_measure measure, void *user, int *chosen)
{
    char number[32];
    float microseconds[NIB_MATMUL_MOST_OFFERED];
    int best = 0;
    const bool known = find(c, s) != NULL;
    NIB_TRY(measure(user, offered, microseconds));
    for (int i = 1; i < offered; i++)
        if (microseconds[i] < MARGIN * microseconds[best]) best = i;
    const entry one = {*s, hash[best], microseconds[best]};
    NIB_TRY(put(c, &one));
    snprintf(number, sizeof number, "algorithm %d of %d", best + 1, offered);
    nib_log("matmul up to [%" PRId64 ", %" PRId64 "] x [%" PRId64 ", %" PRId64 "]: %s, %.1f us (%s: %.1f us)", s->M,
            s->K, s->K, s->N, name != NULL ? name[best] : number, (double)microseconds[best],
            name != NULL ? name[best == 0] : "the first offered", (double)microseconds[name != NULL ? best == 0 : 0]);
    if (known)
        nib_warn("the algorithm that computed this product in earlier runs is offered no longer; a run that is resumed "
                 "may differ in its last bits");
    *chosen = best;
    return NIB_OK;
}

nib_status nib_matmul_choose(nib_matmul_choices *c, const nib_matmul_class *shape, int offered, const uint64_t *hash,
                             const char *const *name, nib_matmul_measure measure, void *user, int *chosen)
{
    *chosen = named(c, shape, offered, hash);
    if (*chosen >= 0) return NIB_OK;
    const int fd = lock(c);
    nib_status status = read_file(c); /* what earlier runs have found, or another process since */
    if (status == NIB_OK) *chosen = named(c, shape, offered, hash);
    if (status == NIB_OK && *chosen < 0) {
        status = measure_now(c, shape, offered, hash, name, measure, user, chosen);
        if (status == NIB_OK) keep(c, fd);
    }
    if (fd >= 0) close(fd);
    return status;
}
