/* What the kernels for sm_90a build on, tried on the card at hand: that its copy engine and its warp groups' products
 * do what intrinsics_hopper.cuh says of them, to the bit. The emulator does so; only this says whether a chip does. */
#ifndef NIB_CUDA_CONFORMANCE_HOPPER_H
#define NIB_CUDA_CONFORMANCE_HOPPER_H

#include "cuda/c_headers.h"

#define NIB_CUDA_CONFORMANCE_HOPPER 4

typedef struct {
    const char *instruction;
    int64_t values, wrong; /* compared, and those that differ from plain loops on the host */
} nib_cuda_conformance;

/* "tma_load", ...: of result[i]. */
const char *nib_cuda_conformance_hopper_name(int i);

/* Waits for the device. NIB_ERROR_DEVICE if it is not of sm_90. */
nib_status nib_cuda_conformance_hopper(nib_ops *ops, nib_cuda_conformance result[NIB_CUDA_CONFORMANCE_HOPPER]);

#endif
