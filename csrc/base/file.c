#include "base/file.h"
#include "base/mapping.h"
#include "base/memory.h"
#include "base/sha256.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static char *copy_text(const char *text)
{
    size_t length = strlen(text);
    char *copy = nib_calloc(length + 1, 1);
    if (copy != NULL) memcpy(copy, text, length);
    return copy;
}

static const char *kind_of(mode_t mode)
{
    return S_ISDIR(mode) ? "a folder" : S_ISFIFO(mode) ? "a pipe" : S_ISSOCK(mode) ? "a socket" : "a device";
}

nib_status nib_file_open_regular(const char *path, int *fd, uint64_t *size)
{
    struct stat info = {0};
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would be waited for */
    if (*fd < 0) {
        int absent = errno == ENOENT || errno == ENOTDIR, error = errno;
        char target[256];
        ssize_t length = error == ENOENT ? readlink(path, target, sizeof target) : -1;
        if (length > 0)
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: found a symbolic link to %.*s, where no file is; copy the file it stands for", path,
                            (int)length, target);
        return NIB_FAIL(absent ? NIB_ERROR_DATA : NIB_ERROR_IO, "%s: cannot be opened: %s", path, strerror(error));
    }
    nib_status status = NIB_OK;
    if (fstat(*fd, &info) != 0)
        status = NIB_FAIL(NIB_ERROR_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: found %s, expected a regular file", path, kind_of(info.st_mode));
    *size = (uint64_t)info.st_size;
    if (status != NIB_OK) {
        close(*fd);
        *fd = -1;
    }
    return status;
}

/* What a clone of a repository holds in place of a large file until it is fetched. */
static nib_status check_fetched(const nib_file *file)
{
    static const char pointer[] = "version https://git-lfs.github.com/spec/";
    if (file->size < sizeof pointer - 1 || memcmp(file->data, pointer, sizeof pointer - 1) != 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DATA, "%s: found a pointer of Git LFS, expected the file; git lfs pull fetches it",
                    file->path);
}

nib_status nib_file_map(nib_file *file, const char *path)
{
    *file = (nib_file){0};
    int fd;
    NIB_TRY(nib_file_open_regular(path, &fd, &file->size));
    nib_status status = NIB_OK;
    file->path = copy_text(path);
    if (file->path == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to open it", path);
    } else if (file->size > 0) {
        void *data = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            status =
                NIB_FAIL(errno == ENOMEM ? NIB_ERROR_MEMORY : NIB_ERROR_IO, "%s: cannot be mapped (%llu bytes): %s",
                         path, (unsigned long long)file->size, strerror(errno));
        else
            nib_mapping_add(file->data = data, file->size, file->path);
    }
    close(fd);
    if (status == NIB_OK) status = check_fetched(file);
    if (status != NIB_OK) nib_file_unmap(file);
    return status;
}

void nib_file_unmap(nib_file *file)
{
    if (file->data != NULL) {
        nib_mapping_remove(file->data);
        munmap((void *)(uintptr_t)file->data, file->size);
    }
    nib_free(file->path);
    *file = (nib_file){0};
}

void nib_file_release(const nib_file *file, uint64_t offset, uint64_t length)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), first = (offset + page - 1) / page * page;
    uint64_t end = (offset + length) / page * page;
    if (file->data != NULL && end > first && end <= file->size)
        madvise((void *)(uintptr_t)(file->data + first), end - first, MADV_DONTNEED);
}

void nib_file_hash(const nib_file *file, char hex[65])
{
    enum { PIECE = 1 << 20 };
    uint8_t digest[32];
    nib_sha256 hash;
    nib_sha256_begin(&hash);
    for (uint64_t at = 0, n; at < file->size; at += n) {
        n = file->size - at < PIECE ? file->size - at : PIECE;
        nib_sha256_update(&hash, file->data + at, (size_t)n);
        nib_file_release(file, at, n);
    }
    nib_sha256_end(&hash, digest);
    nib_sha256_hex(digest, hex);
}

nib_status nib_file_read(const char *path, size_t max, char **text, size_t *length)
{
    int fd;
    uint64_t size;
    *text = NULL;
    NIB_TRY(nib_file_open_regular(path, &fd, &size));
    nib_status status = NIB_OK;
    size_t got = 0;
    char *bytes = NULL;
    if (size > max) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s: %llu bytes, at most %llu expected", path, (unsigned long long)size,
                          (unsigned long long)max);
        goto done;
    }
    bytes = nib_calloc(size + 1, 1);
    if (bytes == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for its %llu bytes", path, (unsigned long long)size);
        goto done;
    }
    while (got < size) {
        ssize_t n = read(fd, bytes + got, size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = NIB_FAIL(NIB_ERROR_IO, "%s: reading failed at byte %zu: %s", path, got, strerror(errno));
            goto done;
        }
        if (n == 0) break;
        got += (size_t)n;
    }
    bytes[got] = 0;
    *text = bytes;
    *length = got;
    bytes = NULL;
done:
    nib_free(bytes);
    close(fd);
    return status;
}

nib_status nib_file_write_all(int fd, const void *bytes, size_t length, const char *path)
{
    const char *data = bytes;
    for (size_t done = 0; done < length;) {
        ssize_t n = write(fd, data + done, length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return NIB_FAIL(NIB_ERROR_IO, "%s: writing failed at byte %zu: %s", path, done, strerror(errno));
        done += (size_t)n;
    }
    return NIB_OK;
}

nib_status nib_file_sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return NIB_FAIL(NIB_ERROR_IO, "%s: folder cannot be opened: %s", path, strerror(errno));
    nib_status status = NIB_OK;
    if (fsync(fd) != 0) status = NIB_FAIL(NIB_ERROR_IO, "%s: fsync failed: %s", path, strerror(errno));
    close(fd);
    return status;
}

static nib_status write_in_place(const char *path, const void *bytes, size_t length)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be opened for writing: %s", path, strerror(errno));
    nib_status status = nib_file_write_all(fd, bytes, length, path);
    close(fd);
    return status;
}

nib_status nib_file_replace(const char *path, const void *bytes, size_t length)
{
    struct stat info;
    /* a rename would take a device or a pipe out of its folder */
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) return write_in_place(path, bytes, length);
    nib_status status = NIB_OK;
    nib_buffer temporary = {0};
    char *folder = nib_path_folder(path);
    int fd = -1, created = 0;
    nib_buffer_format(&temporary, "%s.tmp-%ld", path, (long)getpid());
    if (temporary.failed || folder == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to write it", path);
        goto done;
    }
    fd = open(temporary.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be created: %s", temporary.data, strerror(errno));
        goto done;
    }
    created = 1;
    NIB_TRY_GOTO(nib_file_write_all(fd, bytes, length, path), done);
    if (fsync(fd) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: fsync failed: %s", path, strerror(errno));
        goto done;
    }
    if (rename(temporary.data, path) != 0) {
        status = NIB_FAIL(NIB_ERROR_IO, "%s: cannot be replaced: %s", path, strerror(errno));
        goto done;
    }
    created = 0;
    status = nib_file_sync_folder(folder);
done:
    if (fd >= 0) close(fd);
    if (created) unlink(temporary.data);
    nib_buffer_free(&temporary);
    nib_free(folder);
    return status;
}

nib_status nib_file_replace_text(const char *folder, const char *name, const nib_buffer *text)
{
    char *path = text->failed ? NULL : nib_path_join(folder, name);
    nib_status status = path == NULL ? NIB_FAIL(NIB_ERROR_MEMORY, "%s/%s: no memory to write it", folder, name)
                                     : nib_file_replace(path, text->data, text->length);
    nib_free(path);
    return status;
}

bool nib_file_exists(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

bool nib_file_is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool nib_file_is_same(const char *a, const char *b)
{
    struct stat first, second;
    return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

nib_status nib_file_make_folders(const char *path)
{
    char *partial = copy_text(path);
    if (partial == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to create the folder", path);
    nib_status status = NIB_OK;
    for (char *end = partial; status == NIB_OK;) {
        end += strspn(end, "/");
        end += strcspn(end, "/");
        char kept = *end;
        *end = 0;
        if (*partial != 0 && mkdir(partial, 0777) != 0 && !(errno == EEXIST && nib_file_is_folder(partial)))
            status = NIB_FAIL(NIB_ERROR_IO, "%s: folder cannot be created: %s", partial, strerror(errno));
        *end = kept;
        if (kept == 0) break;
    }
    nib_free(partial);
    return status;
}

nib_status nib_file_remove_tree(const char *path)
{
    struct stat info;
    if (lstat(path, &info) != 0) {
        if (errno == ENOENT) return NIB_OK;
        return NIB_FAIL(NIB_ERROR_IO, "%s: %s", path, strerror(errno));
    }
    if (S_ISDIR(info.st_mode)) {
        DIR *folder = opendir(path);
        if (folder == NULL) return NIB_FAIL(NIB_ERROR_IO, "%s: folder cannot be read: %s", path, strerror(errno));
        nib_status status = NIB_OK;
        for (struct dirent *entry; status == NIB_OK && (entry = readdir(folder)) != NULL;) {
            if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
            char *child = nib_path_join(path, entry->d_name);
            status = child == NULL ? NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory to remove it", path)
                                   : nib_file_remove_tree(child);
            nib_free(child);
        }
        closedir(folder);
        if (status != NIB_OK) return status;
    }
    if (remove(path) != 0) return NIB_FAIL(NIB_ERROR_IO, "%s: cannot be removed: %s", path, strerror(errno));
    return NIB_OK;
}

char *nib_path_join(const char *base, const char *name)
{
    if (name[0] == '/' || base[0] == 0) return copy_text(name);
    nib_buffer path = {0};
    nib_buffer_text(&path, base);
    if (path.length > 0 && path.data[path.length - 1] != '/') nib_buffer_char(&path, '/');
    nib_buffer_text(&path, name);
    if (path.failed) nib_buffer_free(&path);
    return path.data;
}

char *nib_path_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL) return copy_text(".");
    size_t length = slash == path ? 1 : (size_t)(slash - path);
    char *folder = nib_calloc(length + 1, 1);
    if (folder != NULL) memcpy(folder, path, length);
    return folder;
}

char *nib_cache_path(const char *name)
{
    nib_buffer path = {0};
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache != NULL && cache[0] == '/')
        nib_buffer_format(&path, "%s/nibble/%s", cache, name);
    else
        nib_buffer_format(&path, "%s/.cache/nibble/%s", home != NULL ? home : "", name);
    if (path.failed) nib_buffer_free(&path);
    return path.data;
}
