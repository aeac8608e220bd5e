/* Kernel launches: one function, checked. */
#ifndef NIB_CUDA_LAUNCH_CUH
#define NIB_CUDA_LAUNCH_CUH

#include "status.cuh"

#include <utility>

/* Length of the first of the macro's arguments: to the first comma outside of <>. */
constexpr int nib_first_argument_length(const char *arguments)
{
    int depth = 0, i = 0;
    for (; arguments[i] != '\0' && (arguments[i] != ',' || depth > 0); i++)
        depth += arguments[i] == '<' ? 1 : arguments[i] == '>' ? -1 : 0;
    return i;
}

/* The stream of a backend in rehearsal: launchers take their scratch, nothing is launched. */
inline cudaStream_t nib_cuda_dry_stream() { return reinterpret_cast<cudaStream_t>(~uintptr_t{0}); }

template <class... Parameters, class... Arguments>
nib_status nib_cuda_launch_named(const char *source, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 size_t shared_bytes, cudaStream_t stream, Arguments &&...arguments)
{
    if (stream == nib_cuda_dry_stream()) return NIB_OK;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaError_t error = cudaSuccess;
    if (shared_bytes > 48 * 1024) /* more than a kernel gets without asking */
        error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
#ifdef NIB_CUDA_EMULATED
    nib_emulator::name_kernel(reinterpret_cast<const void *>(kernel), source, nib_first_argument_length(source));
#endif
    nib_cuda_note_launch(source, nib_first_argument_length(source), grid, block);
    if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
    if (error == cudaSuccess) return NIB_OK;
    return NIB_FAIL(nib_cuda_status(error),
                    "%.*s, grid %u x %u x %u, block %u x %u x %u, %zu bytes of shared memory: %s%s",
                    nib_first_argument_length(source), source, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                    shared_bytes, cudaGetErrorString(error), nib_cuda_explain(error));
}

/* nib_status nib_cuda_launch(kernel, grid, block, shared_bytes, stream, kernel arguments...)
 * Starts the kernel in the stream. What the kernel does wrong shows at a later call; what is wrong with the launch
 * shows here, with the kernel's name and the shape. */
#define nib_cuda_launch(...) nib_cuda_launch_named(#__VA_ARGS__, __VA_ARGS__)

#endif
