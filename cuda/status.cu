/* What a failed call of CUDA means to a user. */
#include "cuda/status.cuh"

#include <stdio.h>

/* The latest launches of this thread; a kernel's failure is told by a call that comes after some of them. */
enum { KEPT = 4 };
static thread_local struct {
    const char *kernel;
    int length;
    dim3 grid, block;
} launches[KEPT];
static thread_local unsigned launched;

void nib_cuda_note_launch(const char *kernel, int length, dim3 grid, dim3 block)
{
    launches[launched++ % KEPT] = {kernel, length, grid, block};
}

/* ", the last kernels started, latest first: ..." */
static size_t list_launches(char *text, size_t bytes)
{
    size_t used = 0;
    for (unsigned i = 0; i < KEPT && i < launched && used < bytes; i++) {
        const auto &l = launches[(launched - 1 - i) % KEPT];
        used +=
            (size_t)snprintf(text + used, bytes - used, "%s%.*s <<<%u x %u x %u, %u x %u x %u>>>", i == 0 ? "" : ", ",
                             l.length, l.kernel, l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z);
    }
    return used;
}

const char *nib_cuda_explain(cudaError_t error)
{
    static thread_local char text[1024];
    char names[700] = "none";
    switch (error) {
    case cudaErrorECCUncorrectable:
        return ": the GPU's memory has an error that it cannot correct; reset it (nvidia-smi --gpu-reset) or take "
               "another, and go on with --resume";
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceAlreadyInUse:
        return ": another process has the GPU for itself";
    case cudaErrorNoKernelImageForDevice:
        return ": this build has no code for the GPU's architecture";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
        list_launches(names, sizeof names);
        snprintf(text, sizeof text,
                 ": a kernel failed; the last ones started, latest first: %s. With CUDA_LAUNCH_BLOCKING=1 the one that "
                 "fails is named; `nibble doctor` checks each",
                 names);
        return text;
    default:
        return "";
    }
}
