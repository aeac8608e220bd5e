#include "device.h"
#include "base/log.h"
#include "cpu/backend.h"
#include "plugin_file.h"
#include "self_check_once.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define SCRATCH_BYTES ((size_t)256 << 20) /* touched only as far as ops need it */

static const char *const names[] = {"auto", "cpu", "cuda", "emulated"};

const char *nib_device_name(nib_device device) { return names[device]; }

nib_status nib_parse_device(const char *text, nib_device *device)
{
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *device = (nib_device)i;
        return NIB_OK;
    }
    return NIB_FAIL(NIB_ERROR_USAGE, "--device %s: expected auto, cpu, cuda or emulated", text);
}

static nib_status load(const char *file, const char *remedy, const nib_plugin **plugin)
{
    const void *found;
    NIB_TRY(nib_plugin_load(file, NIB_PLUGIN_SYMBOL, remedy, &found));
    *plugin = found;
    return nib_plugin_same_build(file, (*plugin)->build);
}

/* The plugin brings cuBLASLt, 150 MB resident, so where there is no driver it is not even loaded. */
static nib_status find_driver(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver == NULL) return NIB_FAIL(NIB_ERROR_DEVICE, "no NVIDIA driver is installed (libcuda.so.1 is not found)");
    dlclose(driver);
    return NIB_OK;
}

static nib_status load_device(nib_device device, const nib_plugin **plugin)
{
    if (device == NIB_DEVICE_CUDA) NIB_TRY(find_driver());
    return device == NIB_DEVICE_CUDA
               ? load("libnibble_cuda.so", "build the preset release where a CUDA toolkit is installed", plugin)
               : load("libnibble_cuda_emulated.so", "build the preset emulated", plugin);
}

nib_status nib_open_device(nib_device device, int local_rank, nib_ops **ops)
{
    const nib_plugin *plugin;
    *ops = NULL;
    if (device == NIB_DEVICE_CPU) return nib_cpu_backend_create(SCRATCH_BYTES, ops);
    NIB_TRY(load_device(device, &plugin));
    return plugin->create(local_rank, ops);
}

/* A GPU, or *ops NULL and why there is none logged. Ranks of one machine must not compute on different kinds of device:
 * where the first has a GPU, the others need one. */
static nib_status open_gpu_if_any(int local_rank, nib_ops **ops)
{
    char first[256];
    nib_status status = nib_open_device(NIB_DEVICE_CUDA, local_rank, ops);
    if (status != NIB_ERROR_DEVICE) return status;
    if (local_rank > 0 && nib_device_describe(NIB_DEVICE_CUDA, 0, first, sizeof first) == NIB_OK)
        return nib_open_device(NIB_DEVICE_CUDA, local_rank, ops); /* the refusal's own words again */
    nib_log("no GPU: %s", nib_error_message());
    return NIB_OK;
}

static nib_status check_once(nib_ops **ops)
{
    nib_status status = nib_self_check_once(*ops);
    if (status == NIB_OK) return NIB_OK;
    nib_close_backend(*ops);
    *ops = NULL;
    return status;
}

nib_status nib_open_backend(nib_device device, nib_dtype compute, int local_rank, nib_ops **ops)
{
    *ops = NULL;
    if (device == NIB_DEVICE_AUTO && compute != NIB_DTYPE_F32) {
        NIB_TRY(open_gpu_if_any(local_rank, ops));
        if (*ops != NULL) return check_once(ops);
    }
    if (device == NIB_DEVICE_AUTO || device == NIB_DEVICE_CPU) return nib_open_device(NIB_DEVICE_CPU, 0, ops);
    nib_status status = nib_open_device(device, local_rank, ops);
    if (status == NIB_OK) status = check_once(ops);
    return status == NIB_OK ? NIB_OK : nib_error_context(status, "--device %s", nib_device_name(device));
}

void nib_close_backend(nib_ops *ops)
{
    if (ops != NULL) ops->close(ops);
}

nib_status nib_device_describe(nib_device device, int number, char *text, size_t bytes)
{
    const nib_plugin *plugin;
    if (device == NIB_DEVICE_CPU) {
        snprintf(text, bytes, "%s", nib_cpu_features());
        return NIB_OK;
    }
    NIB_TRY(load_device(device, &plugin));
    return plugin->describe(number, text, bytes);
}

nib_status nib_device_libraries(nib_device device, char *text, size_t bytes)
{
    const nib_plugin *plugin;
    text[0] = 0;
    if (device == NIB_DEVICE_CPU) return NIB_OK;
    NIB_TRY(load_device(device, &plugin));
    plugin->libraries(text, bytes);
    return NIB_OK;
}

nib_status nib_device_instructions(nib_device device, nib_ops *ops, nib_instruction_visit visit, void *user)
{
    const nib_plugin *plugin;
    if (device == NIB_DEVICE_CPU) return NIB_OK;
    NIB_TRY(load_device(device, &plugin));
    for (int i = 0; i < plugin->instructions(); i++) {
        nib_instruction_line line;
        NIB_TRY(plugin->check_instruction(ops, i, &line));
        visit(user, &line);
    }
    return NIB_OK;
}
