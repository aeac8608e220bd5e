#include "nccl/nccl_api.h"
#include "plugin_file.h"

#include <dlfcn.h>
#include <string.h>

#define REMEDY "install NVIDIA's NCCL 2.28 or newer (the package libnccl2)"

static nib_status open_library(const char *backend, void **library)
{
    if (strcmp(backend, "emulated") == 0) return nib_plugin_open("libnibble_cuda_emulated.so", "", library);
    *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (*library == NULL) return NIB_FAIL(NIB_ERROR_DEVICE, "NCCL cannot be loaded (%s); " REMEDY, dlerror());
    return NIB_OK;
}

static nib_status check_version(void *library, int *version)
{
    int (*get_version)(int *);
    *(void **)&get_version = dlsym(library, "ncclGetVersion");
    if (get_version == NULL || get_version(version) != NIB_NCCL_SUCCESS)
        return NIB_FAIL(NIB_ERROR_DEVICE, "NCCL does not say its version; " REMEDY);
    if (*version >= NIB_NCCL_OLDEST) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_DEVICE, "NCCL is version %d.%d.%d; " REMEDY, *version / 10000, *version / 100 % 100,
                    *version % 100);
}

nib_status nib_nccl_load(const char *backend, nib_nccl_api *api)
{
    const struct {
        const char *name;
        void *function; /* address of a pointer in api */
    } wanted[] = {
        {"ncclGetUniqueId", &api->get_unique_id},
        {"ncclCommInitRankConfig", &api->comm_init_rank_config},
        {"ncclCommGetAsyncError", &api->comm_get_async_error},
        {"ncclCommFinalize", &api->comm_finalize},
        {"ncclCommDestroy", &api->comm_destroy},
        {"ncclCommAbort", &api->comm_abort},
        {"ncclGroupStart", &api->group_start},
        {"ncclGroupEnd", &api->group_end},
        {"ncclSend", &api->send},
        {"ncclRecv", &api->receive},
        {"ncclGetErrorString", &api->get_error_string},
        {"ncclGetLastError", &api->get_last_error},
    };
    void *library;
    *api = (nib_nccl_api){0};
    NIB_TRY(open_library(backend, &library));
    NIB_TRY(check_version(library, &api->version));
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL) return NIB_FAIL(NIB_ERROR_DEVICE, "NCCL has no %s; " REMEDY, wanted[i].name);
        memcpy(wanted[i].function, &found, sizeof found);
    }
    return NIB_OK;
}
