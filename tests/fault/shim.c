/* Preloaded: makes the n-th call of one function fail once. NIB_FAULT is "write:N", "fsync:N" or "rename:N", counted
 * from 1 over calls that concern the folder named by NIB_FAULT_FOLDER. The errors are those of a full or broken disk.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_int calls;

static int fails(const char *function, const char *path)
{
    const char *fault = getenv("NIB_FAULT"), *folder = getenv("NIB_FAULT_FOLDER");
    size_t length = strlen(function);
    if (fault == NULL || folder == NULL || strncmp(fault, function, length) != 0 || fault[length] != ':') return 0;
    if (strncmp(path, folder, strlen(folder)) != 0) return 0;
    return atomic_fetch_add(&calls, 1) + 1 == atoi(fault + length + 1);
}

static int descriptor_fails(const char *function, int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(function, path);
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    ssize_t (*real)(int, const void *, size_t);
    *(void **)&real = dlsym(RTLD_NEXT, "write");
    if (!descriptor_fails("write", fd)) return real(fd, bytes, length);
    errno = ENOSPC;
    return -1;
}

int fsync(int fd)
{
    int (*real)(int);
    *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    if (!descriptor_fails("fsync", fd)) return real(fd);
    errno = EIO;
    return -1;
}

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *);
    *(void **)&real = dlsym(RTLD_NEXT, "rename");
    if (!fails("rename", to)) return real(from, to);
    errno = EIO;
    return -1;
}
