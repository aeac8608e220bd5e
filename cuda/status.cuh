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

/* Returns the call's failure, with the call as written: "cudaMalloc(&block, bytes): out of memory". */
#define NIB_CHECK_CUDA(call)                                                                                           \
    do {                                                                                                               \
        cudaError_t nib_cuda_error_ = (call);                                                                          \
        if (nib_cuda_error_ != cudaSuccess)                                                                            \
            return NIB_FAIL(nib_cuda_status(nib_cuda_error_), "%s: %s", #call, cudaGetErrorString(nib_cuda_error_));   \
    } while (0)

#endif
