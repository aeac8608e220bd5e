/* From CUDA's errors to ours. */
#ifndef NIB_CUDA_STATUS_CUH
#define NIB_CUDA_STATUS_CUH

#include "c_headers.h"

#include <cuda_runtime.h>

/* Out of device memory is NIB_ERROR_MEMORY, everything else NIB_ERROR_DEVICE. */
inline nib_status nib_cuda_status(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? NIB_ERROR_MEMORY : NIB_ERROR_DEVICE;
}

/* What a user can do about it, or which kernels may be to blame; "" where the error speaks for itself. Valid until the
 * next call in this thread. */
const char *nib_cuda_explain(cudaError_t error);

/* Remembers a launch, for nib_cuda_explain: a kernel's failure shows only later. kernel: a literal of `length`. */
void nib_cuda_note_launch(const char *kernel, int length, dim3 grid, dim3 block);

/* Returns the call's failure, with the call as written: "cudaMalloc(&block, bytes): out of memory". */
#define NIB_CHECK_CUDA(call)                                                                                           \
    do {                                                                                                               \
        cudaError_t nib_cuda_error_ = (call);                                                                          \
        if (nib_cuda_error_ != cudaSuccess)                                                                            \
            return NIB_FAIL(nib_cuda_status(nib_cuda_error_), "%s: %s%s", #call, cudaGetErrorString(nib_cuda_error_),  \
                            nib_cuda_explain(nib_cuda_error_));                                                        \
    } while (0)

#endif
