#include "cuda/matmul_choice.h"

extern "C" {
#include "base/buffer.h"
#include "base/file.h"
#include "base/memory.h"
}

#include <dirent.h>
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

/* What one file holds. */
typedef struct {
    char *path; /* NULL: not kept on disk */
    entry *entries;
    size_t count, capacity;
    int lock; /* descriptor, while it is held; -1 */
} table;

struct nib_matmul_choices {
    char *identity;
    bool follows_run;
    table cache, run; /* run: if follows_run, and then it goes first */
    bool told;        /* the user knows that a file cannot be kept */
};

static table *first_of(nib_matmul_choices *c) { return c->follows_run ? &c->run : &c->cache; }

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

static void name_file(nib_buffer *name, const char *identity)
{
    nib_buffer_format(name, "matmul-%016" PRIx64 ".txt", nib_matmul_hash(identity, strlen(identity)));
}

nib_matmul_choices *nib_matmul_choices_create(const char *identity)
{
    nib_matmul_choices *c = (nib_matmul_choices *)nib_calloc(1, sizeof *c);
    nib_buffer name = {}, copy = {};
    if (c == NULL) return NULL;
    c->cache.lock = c->run.lock = -1;
    name_file(&name, identity);
    nib_buffer_text(&copy, identity);
    c->identity = copy.data;
    c->cache.path = name.failed ? NULL : nib_cache_path(name.data);
    nib_buffer_free(&name);
    if (!copy.failed) return c;
    nib_matmul_choices_free(c);
    return NULL;
}

static void free_table(table *t)
{
    nib_free(t->path);
    nib_free(t->entries);
    *t = table{};
    t->lock = -1;
}

void nib_matmul_choices_free(nib_matmul_choices *c)
{
    if (c == NULL) return;
    nib_free(c->identity);
    free_table(&c->cache);
    free_table(&c->run);
    nib_free(c);
}

static entry *find(const table *t, const nib_matmul_class *shape)
{
    for (size_t i = 0; i < t->count; i++)
        if (memcmp(&t->entries[i].shape, shape, sizeof *shape) == 0) return &t->entries[i];
    return NULL;
}

bool nib_matmul_is_known(nib_matmul_choices *c, const nib_matmul_class *shape)
{
    return find(first_of(c), shape) != NULL;
}

static nib_status put(table *t, const entry *one)
{
    entry *known = find(t, &one->shape);
    if (known == NULL && !nib_grow(&t->entries, &t->capacity, t->count + 1, sizeof *t->entries))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the algorithms of matrix products");
    if (known == NULL) known = &t->entries[t->count++];
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
static nib_status read_file(const nib_matmul_choices *c, table *t)
{
    char *text, *line;
    size_t length;
    if (t->path == NULL || !nib_file_exists(t->path)) return NIB_OK;
    if (nib_file_read(t->path, MOST_FILE_BYTES, &text, &length) != NIB_OK) {
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
            status = put(t, &one);
        }
    }
    if (damaged > 0)
        nib_warn("%s:%d: not what Nibble has written there; what is lost is measured again, and a run that is resumed "
                 "may differ in its last bits",
                 t->path, damaged);
    nib_free(text);
    return status;
}

static nib_status write_file(const nib_matmul_choices *c, const table *t)
{
    nib_buffer text = {};
    nib_buffer_format(&text, "%s\n", c->identity);
    for (size_t i = 0; i < t->count; i++) {
        const entry *one = &t->entries[i];
        const nib_matmul_class *s = &one->shape;
        nib_buffer_format(&text, LINE_FORMAT "\n", s->M, s->N, s->K, s->transpose_a, s->transpose_b, s->wide,
                          s->a_alignment, s->b_alignment, s->c_alignment, s->nf4, s->room, one->hash,
                          (double)one->microseconds);
    }
    nib_status status = text.failed ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory to write %s", t->path)
                                    : nib_file_replace(t->path, text.data, text.length);
    nib_buffer_free(&text);
    return status;
}

/* Waits for processes that have the file; none is waited for where there can be no lock. */
static void lock(table *t)
{
    nib_buffer name = {};
    char *folder = t->path == NULL ? NULL : nib_path_folder(t->path);
    if (folder != NULL && nib_file_make_folders(folder) == NIB_OK) {
        nib_buffer_format(&name, "%s.lock", t->path);
        t->lock = name.failed ? -1 : open(name.data, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    }
    while (t->lock >= 0 && flock(t->lock, LOCK_EX) != 0 && errno == EINTR) continue;
    nib_buffer_free(&name);
    nib_free(folder);
}

static void unlock(table *t)
{
    if (t->lock >= 0) close(t->lock);
    t->lock = -1;
}

static void keep(nib_matmul_choices *c, const table *t)
{
    if (t->lock >= 0 && write_file(c, t) == NIB_OK) return;
    if (!c->told)
        nib_warn("%s cannot be written: the algorithms of matrix products are measured in every run, and runs may "
                 "differ in their last bits",
                 t->path != NULL ? t->path : "the cache folder");
    c->told = true;
}

/* Which of the offered ones the table names, or -1. */
static int named(const table *t, const nib_matmul_class *shape, int offered, const uint64_t *hash)
{
    const entry *known = find(t, shape);
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
    const bool known = find(&c->cache, s) != NULL || find(&c->run, s) != NULL;
    NIB_TRY(measure(user, offered, microseconds));
    for (int i = 1; i < offered; i++)
        if (microseconds[i] < MARGIN * microseconds[best]) best = i;
    const entry one = {*s, hash[best], microseconds[best]};
    NIB_TRY(put(&c->cache, &one));
    keep(c, &c->cache);
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

/* The run takes the class from the cache, and every other that it has none for, so that it is written once. */
static nib_status take_over(nib_matmul_choices *c, const nib_matmul_class *shape)
{
    for (size_t i = 0; i < c->cache.count; i++) {
        const entry *one = &c->cache.entries[i];
        if (find(&c->run, &one->shape) == NULL || memcmp(&one->shape, shape, sizeof *shape) == 0)
            NIB_TRY(put(&c->run, one));
    }
    keep(c, &c->run);
    return NIB_OK;
}

/* With the lock of the first table. */
static nib_status choose(nib_matmul_choices *c, const nib_matmul_class *shape, int offered, const uint64_t *hash,
                         const char *const *name, nib_matmul_measure measure, void *user, int *chosen)
{
    if (c->follows_run) {
        NIB_TRY(read_file(c, &c->run)); /* what the run has found so far, or another rank of it since */
        *chosen = named(&c->run, shape, offered, hash);
        if (*chosen >= 0) return NIB_OK;
    }
    lock(&c->cache);
    nib_status status = read_file(c, &c->cache); /* what earlier runs have found, or another process since */
    if (status == NIB_OK) *chosen = named(&c->cache, shape, offered, hash);
    if (status == NIB_OK && *chosen < 0) status = measure_now(c, shape, offered, hash, name, measure, user, chosen);
    unlock(&c->cache);
    return status == NIB_OK && c->follows_run ? take_over(c, shape) : status;
}

nib_status nib_matmul_choose(nib_matmul_choices *c, const nib_matmul_class *shape, int offered, const uint64_t *hash,
                             const char *const *name, nib_matmul_measure measure, void *user, int *chosen)
{
    *chosen = named(first_of(c), shape, offered, hash);
    if (*chosen >= 0) return NIB_OK;
    if (c->follows_run) lock(&c->run);
    const nib_status status = choose(c, shape, offered, hash, name, measure, user, chosen);
    unlock(&c->run);
    return status;
}

/* What the run computed with, where that is another card, driver or version. */
static void warn_of_others(const nib_matmul_choices *c, const char *folder)
{
    char was[256] = "";
    DIR *open = opendir(folder);
    for (struct dirent *e; open != NULL && (e = readdir(open)) != NULL;) {
        char *text, *path = strncmp(e->d_name, "matmul-", 7) == 0 && strstr(e->d_name, ".txt.") == NULL
                                ? nib_path_join(folder, e->d_name)
                                : NULL;
        size_t length;
        if (path != NULL && nib_file_read(path, MOST_FILE_BYTES, &text, &length) == NIB_OK) {
            snprintf(was, sizeof was, "%.*s", (int)strcspn(text, "\n"), text);
            nib_free(text);
        }
        nib_free(path);
    }
    if (open != NULL) closedir(open);
    if (was[0] != '\0')
        nib_warn("the run was begun on \"%s\", this is \"%s\": the algorithms of its matrix products are chosen anew, "
                 "and it may differ in its last bits from one that never stopped",
                 was, c->identity);
}

nib_status nib_matmul_choices_follow(nib_matmul_choices *c, const char *folder)
{
    nib_buffer name = {};
    free_table(&c->run);
    name_file(&name, c->identity);
    c->run.path = name.failed ? NULL : nib_path_join(folder, name.data);
    nib_buffer_free(&name);
    if (c->run.path == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its paths", folder);
    c->follows_run = true;
    if (!nib_file_exists(c->run.path)) warn_of_others(c, folder);
    return NIB_OK;
}
