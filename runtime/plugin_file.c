#include "plugin_file.h"
#include "version.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PATH_BYTES 4096

/* false if there is none. */
static bool find(const char *file, char path[PATH_BYTES])
{
    static const char *const places[] = {"", "../lib/nibble/"};
    char program[PATH_BYTES];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0) return false;
    program[length] = 0;
    char *name = strrchr(program, '/');
    if (name == NULL) return false;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int n = snprintf(path, PATH_BYTES, "%.*s%s%s", (int)(name + 1 - program), program, places[i], file);
        if (n < PATH_BYTES && access(path, R_OK) == 0) return true;
    }
    return false;
}

nib_status nib_plugin_open(const char *file, const char *remedy, void **library)
{
    char path[PATH_BYTES];
    if (!find(file, path)) return NIB_FAIL(NIB_ERROR_DEVICE, "%s is not beside the program: %s", file, remedy);
    *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (*library == NULL) return NIB_FAIL(NIB_ERROR_DEVICE, "%s cannot be loaded: %s", path, dlerror());
    return NIB_OK;
}

nib_status nib_plugin_load(const char *file, const char *symbol, const char *remedy, const void **found)
{
    void *library;
    NIB_TRY(nib_plugin_open(file, remedy, &library));
    *found = dlsym(library, symbol);
    if (*found == NULL) return NIB_FAIL(NIB_ERROR_DEVICE, "%s is no plugin of this kind: %s", file, dlerror());
    return NIB_OK;
}

nib_status nib_plugin_same_build(const char *file, const char *build)
{
    if (strcmp(build, nib_build()) == 0) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DEVICE, "%s was built as %s, the program as %s; install both from one build", file, build,
                    nib_build());
}
