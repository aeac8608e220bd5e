#include "self_check_once.h"
#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/sha256.h"
#include "cpu/backend.h"
#include "self_check.h"
#include "version.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define SCRATCH_BYTES     ((size_t)256 << 20)
#define MAX_VERDICT_BYTES 4096

/* The file that holds the backend's code: the program's own, or a plugin's. */
static void hash_binary(nib_sha256 *hash, const nib_ops *ops)
{
    Dl_info where;
    struct stat file;
    void *code;
    memcpy(&code, &ops->use_plain, sizeof code);
    if (dladdr(code, &where) == 0 || stat(where.dli_fname, &file) != 0) return; /* the build tells the rest apart */
    const int64_t facts[] = {file.st_size, file.st_mtim.tv_sec, file.st_mtim.tv_nsec};
    nib_sha256_update(hash, facts, sizeof facts);
}

static char *verdict_path(const nib_ops *ops)
{
    nib_sha256 hash;
    uint8_t digest[32];
    char key[65], name[64];
    nib_sha256_begin(&hash);
    nib_sha256_update(&hash, ops->device, strlen(ops->device) + 1);
    nib_sha256_update(&hash, nib_build(), strlen(nib_build()) + 1);
    hash_binary(&hash, ops);
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, key);
    snprintf(name, sizeof name, "self-check-%.32s.json", key);
    return nib_cache_path(name);
}

/* The choices that a kept verdict names. What cannot be read, or names a kernel that there is not, is no verdict. */
static bool parse(const nib_ops *ops, const nib_json *root, uint32_t *off)
{
    const nib_json *plain = nib_json_get(root, "plain");
    *off = 0;
    if (!nib_json_is(plain, NIB_JSON_ARRAY)) return false;
    for (const nib_json *name = plain->first; name != NULL; name = name->next) {
        int i = 0;
        if (!nib_json_is(name, NIB_JSON_STRING)) return false;
        while (i < ops->choices && strcmp(ops->choice[i], name->string) != 0) i++;
        if (i == ops->choices) return false;
        *off |= 1u << i;
    }
    return true;
}

static bool read_verdict(const nib_ops *ops, const char *path, uint32_t *off)
{
    char *text = NULL;
    size_t length;
    nib_pool pool = {0};
    nib_json *root;
    bool found = nib_file_exists(path) && nib_file_read(path, MAX_VERDICT_BYTES, &text, &length) == NIB_OK &&
                 nib_json_parse(path, text, length, (nib_json_options){0}, &pool, &root) == NIB_OK &&
                 parse(ops, root, off);
    nib_pool_free(&pool);
    nib_free(text);
    return found;
}

static nib_status write_verdict(const nib_ops *ops, const char *path, uint32_t off)
{
    nib_buffer text = {0};
    const char *separator = "";
    nib_buffer_text(&text, "{\"device\":");
    nib_buffer_json_string(&text, ops->device, strlen(ops->device), true);
    nib_buffer_text(&text, ",\"build\":");
    nib_buffer_json_string(&text, nib_build(), strlen(nib_build()), true);
    nib_buffer_text(&text, ",\"plain\":[");
    for (int i = 0; i < ops->choices; i++)
        if ((off >> i & 1) != 0) {
            nib_buffer_format(&text, "%s\"%s\"", separator, ops->choice[i]);
            separator = ",";
        }
    nib_buffer_text(&text, "]}\n");
    char *folder = nib_path_folder(path);
    nib_status status = text.failed || folder == NULL ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", path)
                                                      : nib_file_make_folders(folder);
    if (status == NIB_OK) status = nib_file_replace(path, text.data, text.length);
    nib_free(folder);
    nib_buffer_free(&text);
    return status;
}

/* The first case in which nothing agrees. */
static void remember_refusal(void *user, const nib_check_line *line)
{
    nib_check_line *first = user;
    if (line->verdict == NIB_CHECK_DISAGREES && first->op == NULL) *first = *line;
}

static nib_status check(nib_ops *ops, uint32_t *off)
{
    nib_ops *reference;
    nib_check_line line = {0};
    bool refused;
    nib_log("checking every op on %s, once: %s", ops->name, ops->device);
    NIB_TRY(nib_cpu_backend_create(SCRATCH_BYTES, &reference));
    nib_status status = nib_self_check(ops, reference, NIB_CHECK_SHORT, remember_refusal, &line, off, &refused);
    nib_cpu_backend_free(reference);
    if (status != NIB_OK || !refused) return status;
    return NIB_FAIL(NIB_ERROR_DEVICE,
                    "%s does not compute what its reference does: %s, %s: %s is off by %.2g, allowed are %.2g; its "
                    "results would be wrong. `nibble doctor` checks everything; --device cpu computes without it",
                    ops->device, line.op, line.shape, line.which, line.fast, line.allowed);
}

nib_status nib_self_check_once(nib_ops *ops)
{
    uint32_t off = 0;
    char *path = verdict_path(ops);
    nib_status status = path == NULL ? NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a path") : NIB_OK;
    if (status == NIB_OK && !read_verdict(ops, path, &off)) {
        status = check(ops, &off);
        if (status == NIB_OK && write_verdict(ops, path, off) != NIB_OK)
            nib_log("the verdict cannot be kept, the next run checks again: %s", nib_error_message());
    }
    nib_free(path);
    NIB_TRY(status);
    ops->use_plain(ops, off);
    for (int i = 0; i < ops->choices; i++)
        if ((off >> i & 1) != 0)
            nib_warn("%s: the fast kernel disagrees with its reference on %s; a plain one takes its place, which is "
                     "slower. Please report what `nibble doctor` prints",
                     ops->choice[i], ops->device);
    return NIB_OK;
}
