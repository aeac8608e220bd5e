/* Recordings (ops.h, record_begin) as CUDA graphs. */
#ifndef NIB_CUDA_RECORDING_H
#define NIB_CUDA_RECORDING_H

#include "cuda/c_headers.h"

nib_status nib_cuda_record_begin(nib_ops *ops);
nib_status nib_cuda_record_end(nib_ops *ops, nib_recording **recording);
nib_status nib_cuda_replay(nib_ops *ops, nib_recording *recording);
void nib_cuda_recording_free(nib_ops *ops, nib_recording *recording);

#endif
