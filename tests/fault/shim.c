/* Preloaded: makes the n-th call of one function fail once. NIB_FAULT is "write:N", "fsync:N" or "rename:N", counted
 * from 1 over calls that concern the folder named by NIB_FAULT_FOLDER; or "malloc:N" (calloc, realloc and aligned_alloc
 * too) or "mmap:N", counted over the program's own calls, not its libraries'. The errors are those of a full or broken
 * disk, or of no memory. "cut:N" is counted like "write:N": the n-th file that is mapped is cut to nothing thereafter.
 * "recv:N" damages what the n-th recv of at least a KiB has brought. "slow:N" lets every sendmsg of at least 64 KiB
 * wait for N milliseconds first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static atomic_int calls;
static uintptr_t program_begin, program_end; /* where the program's own code lies */

static int find_program(struct dl_phdr_info *info, size_t size, void *user)
{
    (void)size, (void)user;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
        program_begin = info->dlpi_addr + part->p_vaddr;
        program_end = program_begin + part->p_memsz;
    }
    return 1; /* the first is the program */
}

__attribute__((constructor)) static void set(void) { dl_iterate_phdr(find_program, NULL); }

/* Whether this call is the one. */
static int counts(const char *function)
{
    const char *fault = getenv("NIB_FAULT");
    size_t length = strlen(function);
    if (fault == NULL || strncmp(fault, function, length) != 0 || fault[length] != ':') return 0;
    return atomic_fetch_add(&calls, 1) + 1 == atoi(fault + length + 1);
}

static int fails(const char *function, const char *path)
{
    const char *folder = getenv("NIB_FAULT_FOLDER");
    return folder != NULL && strncmp(path, folder, strlen(folder)) == 0 && counts(function);
}

static int memory_fails(const char *function, const void *caller)
{
    if ((uintptr_t)caller < program_begin || (uintptr_t)caller >= program_end || !counts(function)) return 0;
    fprintf(stderr, "shim.c: %s\n", getenv("NIB_FAULT")); /* it may be of no consequence: a cache is done without */
    errno = ENOMEM;
    return 1;
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

#define CALLER __builtin_return_address(0)

/* glibc's own, so that none is needed to look them up. */
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

void *malloc(size_t bytes) { return memory_fails("malloc", CALLER) ? NULL : __libc_malloc(bytes); }

void *calloc(size_t count, size_t size) { return memory_fails("malloc", CALLER) ? NULL : __libc_calloc(count, size); }

void *realloc(void *block, size_t bytes)
{
    return memory_fails("malloc", CALLER) ? NULL : __libc_realloc(block, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    return memory_fails("malloc", CALLER) ? NULL : __libc_memalign(alignment, bytes);
}

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    void *(*real)(void *, size_t, int, int, int, off_t);
    *(void **)&real = dlsym(RTLD_NEXT, "mmap");
    if (memory_fails("mmap", CALLER)) return MAP_FAILED;
    void *data = real(address, bytes, protection, flags, fd, offset);
    if (data != MAP_FAILED && fd >= 0 && descriptor_fails("cut", fd)) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if (truncate(link, 0) != 0) perror("shim.c: cut");
    }
    return data;
}

ssize_t recv(int fd, void *bytes, size_t length, int flags)
{
    ssize_t (*real)(int, void *, size_t, int);
    *(void **)&real = dlsym(RTLD_NEXT, "recv");
    ssize_t got = real(fd, bytes, length, flags);
    if (got >= 1024 && counts("recv")) ((unsigned char *)bytes)[got / 2] ^= 1;
    return got;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int);
    const char *fault = getenv("NIB_FAULT");
    size_t bytes = 0;
    *(void **)&real = dlsym(RTLD_NEXT, "sendmsg");
    for (size_t i = 0; i < message->msg_iovlen; i++) bytes += message->msg_iov[i].iov_len;
    if (bytes >= 65536 && fault != NULL && strncmp(fault, "slow:", 5) == 0) usleep(1000 * (useconds_t)atoi(fault + 5));
    return real(fd, message, flags);
}
