#include "doctor_machine.h"
#include "base/file.h"
#include "base/memory.h"
#include "cpu/backend.h"
#include "device.h"
#include "machine.h"
#include "version.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

enum { MOST_CARDS = 64 };

typedef struct {
    nib_doctor_fact fact;
    void *user;
} listener;

static void say(listener l, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void say(listener l, const char *name, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    l.fact(l.user, name, text);
}

static double gib(double bytes) { return bytes / (1 << 30); }

/* Room on the disk of a folder that need not be there yet: of the closest one above it that is. */
static void say_room(listener l, const char *name, const char *path)
{
    struct statvfs disk;
    char *at = nib_path_join(path, "");
    while (at != NULL && statvfs(at, &disk) != 0 && errno == ENOENT && strcmp(at, "/") != 0 && strcmp(at, ".") != 0) {
        char *above = nib_path_folder(at);
        nib_free(at);
        at = above;
    }
    if (at != NULL && statvfs(at, &disk) == 0)
        say(l, name, "%.1f GiB free (%s)", gib((double)disk.f_bavail * (double)disk.f_frsize), path);
    else
        say(l, name, "not known (%s)", path);
    nib_free(at);
}

static void say_cards(listener l)
{
    char text[512], name[32];
    for (int i = 0; i < MOST_CARDS; i++) {
        if (nib_device_describe(NIB_DEVICE_CUDA, i, text, sizeof text) != NIB_OK) {
            if (i == 0) say(l, "GPU", "none: %s", nib_error_message());
            return;
        }
        snprintf(name, sizeof name, "GPU %d", i);
        say(l, name, "%s", text);
    }
}

/* NCCL's version as one number: 22703 is 2.27.3 (nccl.h, NCCL_VERSION). */
static void say_nccl(listener l)
{
    void *library = dlopen("libnccl.so.2", RTLD_LAZY | RTLD_LOCAL);
    int (*version_of)(int *), version = 0;
    void *symbol = library == NULL ? NULL : dlsym(library, "ncclGetVersion");
    memcpy(&version_of, &symbol, sizeof symbol);
    if (symbol == NULL || version_of(&version) != 0)
        say(l, "NCCL", "not found (libnccl.so.2)");
    else
        say(l, "NCCL", "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

/* MPI_Get_library_version may be called before MPI_Init (MPI standard 3.0, section 8.1). */
static void say_mpi(listener l)
{
    static const char *const names[] = {"libmpi.so.40", "libmpi.so.12", "libmpi.so"}; /* Open MPI, MPICH, either */
    int (*version_of)(char *, int *), length = 0;
    char text[8192] = "";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
        void *symbol = library == NULL ? NULL : dlsym(library, "MPI_Get_library_version");
        memcpy(&version_of, &symbol, sizeof symbol);
        if (symbol == NULL || version_of(text, &length) != 0) continue;
        text[strcspn(text, ",\n")] = 0;
        say(l, "MPI", "%s", text);
        return;
    }
    say(l, "MPI", "not found (%s)", names[0]);
}

void nib_doctor_machine(nib_doctor_fact fact, void *user)
{
    const listener l = {fact, user};
    nib_machine machine;
    nib_machine_read(&machine);
    char *cache = nib_cache_path("");
    say(l, "nibble", "%s", nib_build());
    say(l, "system", "%s", machine.system);
    say(l, "processor", "%s, %d online, %d threads", machine.processor, machine.processors, machine.threads);
    say(l, "features", "%s", nib_cpu_features());
    say(l, "memory", "%.1f GiB, %.1f available", gib((double)machine.memory), gib((double)nib_available_memory()));
    say_room(l, "runs", ".");
    if (cache != NULL) say_room(l, "cache", cache);
    nib_free(cache);
    say_cards(l);
    say_nccl(l);
    say_mpi(l);
}
