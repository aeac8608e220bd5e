#include "run_folder.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* A start that failed, or was killed, before its config was written leaves no run: logs, and half a config at most. */
static nib_status is_empty(const char *path, bool *empty)
{
    DIR *directory = opendir(path);
    if (directory == NULL)
        return NIB_FAIL(NIB_ERROR_IO, "%s: output folder cannot be listed: %s", path, strerror(errno));
    *empty = true;
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, "log.txt") != 0 && strncmp(entry->d_name, "log-rank-", 9) != 0 &&
            strncmp(entry->d_name, "config.json.tmp-", 16) != 0)
            *empty = false;
    closedir(directory);
    return NIB_OK;
}

static nib_status name_parts(const char *path, const char *result, nib_run_folder *folder)
{
    struct {
        char **part;
        const char *name;
    } parts[] = {{&folder->path, ""},
                 {&folder->config, "config.json"},
                 {&folder->metrics, "metrics.jsonl"},
                 {&folder->log, "log.txt"},
                 {&folder->report, "report.html"},
                 {&folder->result, result},
                 {&folder->checkpoints, "checkpoints"}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        *parts[i].part = nib_path_join(path, parts[i].name);
        if (*parts[i].part == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its paths", path);
    }
    return NIB_OK;
}

static nib_status take(const char *path, const char *result, bool resume, nib_run_folder *folder)
{
    bool empty = false;
    NIB_TRY(name_parts(path, result, folder));
    nib_status status = nib_file_make_folders(path);
    if (status != NIB_OK) return NIB_FAIL(status, "output folder: %s; give another \"output\"", nib_error_message());
    NIB_TRY(is_empty(path, &empty));
    bool holds_run = nib_file_exists(folder->config);
    if (!empty && !resume)
        return NIB_FAIL(NIB_ERROR_CONFIG,
                        "%s: output folder is not empty%s; continue with --resume, or give another \"output\"", path,
                        holds_run ? " (it holds a run)" : "");
    if (!empty && !holds_run)
        return NIB_FAIL(NIB_ERROR_CONFIG, "%s: --resume: the folder is not empty and holds no run (no config.json)",
                        path);
    if (access(path, W_OK) != 0)
        return NIB_FAIL(NIB_ERROR_IO, "%s: output folder is not writable: %s; give another \"output\"", path,
                        strerror(errno));
    folder->fresh = empty;
    folder->lock = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->lock < 0) return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (flock(folder->lock, LOCK_EX | LOCK_NB) != 0)
        return NIB_FAIL(NIB_ERROR_IO, "%s: another process trains in this folder; wait for it or stop it", path);
    return nib_log_to_file(folder->log);
}

nib_status nib_run_folder_open(const char *path, const char *result, bool resume, nib_run_folder *folder)
{
    *folder = (nib_run_folder){.lock = -1};
    nib_status status = take(path, result, resume, folder);
    if (status != NIB_OK) nib_run_folder_close(folder);
    return status;
}

nib_status nib_run_folder_follow(const char *path, const char *result, int rank, nib_run_folder *folder)
{
    char name[32];
    *folder = (nib_run_folder){.lock = -1};
    snprintf(name, sizeof name, "log-rank-%d.txt", rank);
    NIB_TRY(name_parts(path, result, folder));
    nib_free(folder->log);
    folder->log = nib_path_join(path, name);
    if (folder->log == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its paths", path);
    NIB_TRY(nib_file_make_folders(path));
    return nib_log_to_file(folder->log);
}

void nib_run_folder_close(nib_run_folder *folder)
{
    (void)nib_log_to_file(NULL);
    if (folder->lock >= 0) close(folder->lock);
    char *parts[] = {folder->path,   folder->config, folder->metrics,    folder->log,
                     folder->report, folder->result, folder->checkpoints};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) nib_free(parts[i]);
    *folder = (nib_run_folder){.lock = -1};
}
