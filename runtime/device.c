#include "device.h"
#include "base/log.h"
#include "cpu/backend.h"
#include "model/plugin.h"
#include "version.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SCRATCH_BYTES ((size_t)256 << 20) /* touched only as far as ops need it */
#define PATH_BYTES    4096

nib_status nib_parse_device(const char *text, nib_device *device)
{
    static const char *const names[] = {"auto", "cpu", "cuda", "emulated"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *device = (nib_device)i;
        return NIB_OK;
    }
    return NIB_FAIL(NIB_ERROR_USAGE, "--device %s: expected auto, cpu, cuda or emulated", text);
}

/* The file of a plugin; false if there is none. */
static bool find_plugin(const char *file, char path[PATH_BYTES])
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

/* Loads a plugin, for good: its library's own threads and handlers outlive the backend. */
static nib_status load(const char *file, const char *preset, const nib_plugin **plugin)
{
    char path[PATH_BYTES];
    if (!find_plugin(file, path))
        return NIB_FAIL(NIB_ERROR_DEVICE,
                        "%s is not beside the program: this build has no such backend; build the "
                        "preset %s",
                        file, preset);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return NIB_FAIL(NIB_ERROR_DEVICE, "%s cannot be loaded: %s", path, dlerror());
    *plugin = dlsym(library, NIB_PLUGIN_SYMBOL);
    if (*plugin == NULL) return NIB_FAIL(NIB_ERROR_DEVICE, "%s is no backend of Nibble: %s", path, dlerror());
    if (strcmp((*plugin)->build, nib_build()) != 0)
        return NIB_FAIL(NIB_ERROR_DEVICE, "%s was built as %s, the program as %s; install both from one build", path,
                        (*plugin)->build, nib_build());
    return NIB_OK;
}

static nib_status load_device(nib_device device, const nib_plugin **plugin)
{
    return device == NIB_DEVICE_CUDA ? load("libnibble_cuda.so", "release where a CUDA toolkit is installed", plugin)
                                     : load("libnibble_cuda_emulated.so", "emulated", plugin);
}

static nib_status open_plugin(nib_device device, nib_ops **ops)
{
    const nib_plugin *plugin;
    NIB_TRY(load_device(device, &plugin));
    return plugin->create(0, ops);
}

nib_status nib_open_backend(nib_device device, nib_dtype compute, nib_ops **ops)
{
    nib_status status;
    *ops = NULL;
    switch (device) {
    case NIB_DEVICE_CUDA:
    case NIB_DEVICE_EMULATED:
        status = open_plugin(device, ops);
        return status == NIB_OK
                   ? NIB_OK
                   : nib_error_context(status, "--device %s", device == NIB_DEVICE_CUDA ? "cuda" : "emulated");
    case NIB_DEVICE_AUTO:
        if (compute == NIB_DTYPE_F32) break;
        status = open_plugin(NIB_DEVICE_CUDA, ops);
        if (status == NIB_OK) return NIB_OK;
        if (status != NIB_ERROR_DEVICE) return status;
        nib_log("no GPU: %s", nib_error_message());
        break;
    case NIB_DEVICE_CPU:
        break;
    }
    return nib_cpu_backend_create(SCRATCH_BYTES, ops);
}

void nib_close_backend(nib_ops *ops)
{
    if (ops != NULL) ops->close(ops);
}

nib_status nib_device_describe(nib_device device, char *text, size_t bytes)
{
    const nib_plugin *plugin;
    if (device == NIB_DEVICE_CPU) {
        snprintf(text, bytes, "%s", nib_cpu_features());
        return NIB_OK;
    }
    NIB_TRY(load_device(device, &plugin));
    return plugin->describe(0, text, bytes);
}
